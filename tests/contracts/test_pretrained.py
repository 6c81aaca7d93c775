"""Folders of Hugging Face by the name of their task: what is read of them, what is asked of data, what is refused.

Right is what the folder's own `from_pretrained` and tokenizer or processor give for the same samples.
"""

from __future__ import annotations

import csv
import itertools
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from compared import close
from PIL import Image

import lilliput as lp
from lilliput.errors import InputError
from lilliput.pretrained import KINDS

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=0)
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
NAMES = {0: "good", 1: "bad", 2: "neither"}
TEXTS = [(f"w{i} w{2 * i} " + "w7 " * (i % 5), NAMES[i % 3]) for i in range(12)]
PICTURES = [np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8) for i in range(6)]
SOUNDS = [np.random.default_rng(i).normal(size=4000 + 400 * i).astype(np.float32) for i in range(6)]


def _tokenizer(words: int = 60, **given: Any) -> Any:
    known = {
        name: i
        for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(words))])
    }
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends
    )
    marks = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, **{"pad_token": "[PAD]", "eos_token": "[SEP]", **marks, **given}
    )


def _bert(cls: str, **given: Any) -> Callable[[], Any]:
    def made() -> Any:
        torch.manual_seed(0)
        return getattr(transformers, cls)(transformers.BertConfig(vocab_size=65, **{**SIZES, **given}))

    return made


def _llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=65, **SIZES))


def _vit() -> Any:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "num_labels": 2, "id2label": {0: "cat", 1: "dog"}}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, **sizes, label2id={"cat": 0, "dog": 1})
    )


def _whisper() -> Any:
    torch.manual_seed(0)
    sizes = {
        "d_model": 32,
        "num_mel_bins": 16,
        "max_source_positions": 50,
        "max_target_positions": 40,
        "vocab_size": 65,
    }
    sides = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 64))
    }
    marks = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**sizes, **sides, **marks, suppress_tokens=None, begin_suppress_tokens=None)
    )


def _segformer() -> Any:
    torch.manual_seed(0)
    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(depths=[1] * 4, num_labels=4))


def _ast() -> Any:
    torch.manual_seed(0)
    sizes = {"max_length": 64, "num_mel_bins": 32, "num_labels": 3}
    return transformers.ASTForAudioClassification(transformers.ASTConfig(**SIZES, **sizes))


CLASSES = {"num_labels": 3, "id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}}
PICTURE = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
HEARD = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
# name of the task: the network, what makes its inputs, its data
FOLDERS: dict[str, tuple[Callable[[], Any], list[Any], Any]] = {
    "text-classification": (_bert("BertForSequenceClassification", **CLASSES), [_tokenizer()], TEXTS),
    "token-classification": (
        _bert("BertForTokenClassification", num_labels=4),
        [_tokenizer()],
        [{"tokens": one.split(), "ner_tags": [len(w) % 4 for w in one.split()]} for one, _ in TEXTS],
    ),
    "fill-mask": (_bert("BertForMaskedLM"), [_tokenizer()], [one for one, _ in TEXTS]),
    "feature-extraction": (_bert("BertModel"), [_tokenizer()], [one for one, _ in TEXTS]),
    "sentence-similarity": (_bert("BertModel"), [_tokenizer()], [one for one, _ in TEXTS]),
    "text-generation": (_llama, [_tokenizer()], [one for one, _ in TEXTS]),
    "image-classification": (_vit, [PICTURE], [(x, ("cat", "dog")[i % 2]) for i, x in enumerate(PICTURES)]),
    "image-segmentation": (
        _segformer,
        [transformers.SegformerImageProcessor(size={"height": 64, "width": 64})],
        PICTURES,
    ),
    "audio-classification": (
        _ast,
        [transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64)],
        [(x, i % 3) for i, x in enumerate(SOUNDS)],
    ),
    "automatic-speech-recognition": (_whisper, [HEARD, _tokenizer()], SOUNDS),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (network, makers, _) in FOLDERS.items():
        made[name] = tmp_path_factory.mktemp(name)
        for one in (network(), *makers):
            one.save_pretrained(made[name])
    return made


def _refused(*given: Any, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        lp.Task.from_pretrained(*given, **more)
    assert caught.value.next
    return str(caught.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_computes_what_its_network_computes(name: str, folders: dict[str, Path]) -> None:
    network, _, data = FOLDERS[name]
    task = lp.Task.from_pretrained(folders[name], name, data)
    batch = next(iter(task.calibrate))
    assert "labels" not in batch
    with torch.no_grad():
        ours, theirs = task.model(**batch), (own := network().eval())(**batch)
    if name == "sentence-similarity":
        mask = batch["attention_mask"][..., None]
        close(ours, (theirs.last_hidden_state * mask).sum(1) / mask.sum(1))
    else:
        close(ours[0], theirs[0])
    assert type(own).__name__ in (type(task.model).__name__, type(getattr(task.model, "network", None)).__name__)


def test_every_task_of_the_table_names_classes_of_transformers() -> None:
    for kind in KINDS.values():
        assert all(hasattr(getattr(transformers, one), "_model_mapping") for one in kind.auto)


@pytest.mark.parametrize("name", ["text-classification", "text-generation", "image-classification"])
def test_a_folder_is_compressed_by_its_name(name: str, folders: dict[str, Path]) -> None:
    result = lp.compress(folders[name], task=name, data=FOLDERS[name][2], target=QUICK, measure=False)
    assert result.data["outcome"] == "done" and result.data["name"] == folders[name].name
    assert result.data["metric"]["name"] == {"text-generation": "loss a token"}.get(name, "top1")
    if "image" in name:
        return
    for length in (7, 60):  # exported once
        given = {"input_ids": torch.randint(5, 60, (2, length), generator=torch.Generator().manual_seed(length))}
        given |= {} if "generation" in name else {"attention_mask": torch.ones_like(given["input_ids"])}
        with torch.no_grad():
            wanted = result.model(**given)["logits"]
        found = lp.open(result.folder / "net.lil")(**given)
        close(found["logits"] if isinstance(found, dict) else found[0], wanted, share=0.05)


def test_a_decoder_goes_on_with_its_past(folders: dict[str, Path]) -> None:
    """Built once: a text read at once, in two parts, and token by token has the answers of the network."""
    kind, texts = "text-generation-with-past", [one for one, _ in TEXTS]
    task = lp.Task.from_pretrained(folders["text-generation"], kind, texts, length=12)
    weights = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=None)])
    result = lp.compress(task, weights, target=QUICK, measure=False)
    assert result.data["metric"]["name"] == "loss a token"
    run, ids = (
        lp.open(result.folder / "net.lil"),
        torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        right = result.model.network(ids).logits  # type: ignore[operator,union-attr]
        past = task.model.nothing(2)  # type: ignore[operator]
    close(run(input_ids=ids, past=past)["logits"], right, rtol=1e-3, atol=1e-4)
    for parts in ((4, 5), (1,) * 9):
        held, found = past, []
        for part in torch.split(ids, list(parts), dim=1):
            told = run(input_ids=part, past=held)
            held, found = told["past"], [*found, told["logits"]]
        close(torch.cat(found, 1), right, rtol=1e-3, atol=1e-4)
    assert held[0].shape[2] == 9


def test_a_decoder_that_keeps_a_window_is_refused() -> None:
    config = transformers.Gemma2Config(vocab_size=65, **SIZES, head_dim=16)
    said = _refused(transformers.Gemma2ForCausalLM(config), "text-generation-with-past", ["w1"], processor=_tokenizer())
    assert "DynamicSlidingWindowLayer" in said and 'task="text-generation"' in said


def test_labels_are_judged_and_do_not_calibrate(folders: dict[str, Path]) -> None:
    task = lp.Task.from_pretrained(folders["text-classification"], "text-classification", TEXTS)
    scores = task.metric(task.model)
    tokenizer, right = _tokenizer(), {}
    with torch.no_grad():
        for text, label in TEXTS:
            said = int(task.model(**tokenizer(text, return_tensors="pt")).logits.argmax())
            right[tuple(tokenizer(text)["input_ids"])] = float(NAMES[said] == label)
    judged = [tuple(int(one) for one in ids if one) for batch in task.evaluate for ids in batch["input_ids"]]
    assert scores.tolist() == [right[one] for one in judged] and 0 < scores.mean() < 1
    calibrating = {tuple(int(one) for one in ids if one) for batch in task.calibrate for ids in batch["input_ids"]}
    assert not calibrating & set(judged) and len(calibrating) + len(judged) == len(TEXTS)


def test_words_are_judged_at_their_first_token(folders: dict[str, Path]) -> None:
    rows = [{"tokens": ["w1", "w2 w3", "w4"], "ner_tags": [1, 2, 3]}] * 2  # the second word is of two tokens
    task = lp.Task.from_pretrained(folders["token-classification"], "token-classification", rows)
    labels = next(iter(task.metric.batches))["labels"]
    assert labels.tolist() == [[-100, 1, 2, -100, 3, -100]]
    with torch.no_grad():
        said = task.model(**next(iter(task.evaluate))).logits.argmax(-1)[0]
    close(
        task.metric(task.model),
        torch.tensor([float((said[[1, 2, 4]] == torch.tensor([1, 2, 3])).float().mean())]),
    )


def test_a_loss_a_token_is_the_network_s_own(folders: dict[str, Path]) -> None:
    task = lp.Task.from_pretrained(folders["text-generation"], "text-generation", [one for one, _ in TEXTS], length=8)
    ids = next(iter(task.evaluate))["input_ids"]
    with torch.no_grad():
        wanted = task.model(ids, labels=ids).loss
    close(task.metric(task.model)[: len(ids)].mean(), wanted)
    assert ids.shape[1] == 8


def _csv(folder: Path) -> Path:
    with (path := folder / "some texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence", "label"), *TEXTS])
    return path


def _jsonl(folder: Path) -> Path:
    (path := folder / "texts.jsonl").write_text(
        "\n".join(json.dumps({"review": text, "labels": label}) for text, label in TEXTS), encoding="utf-8"
    )
    return path


def _columns(folder: Path) -> Any:
    import pandas

    return pandas.DataFrame(
        {"id": range(len(TEXTS)), "said": [a for a, _ in TEXTS], "label": [i % 3 for i in range(len(TEXTS))]}
    )


@pytest.mark.parametrize(
    "given", [_csv, _jsonl, _columns, lambda _: iter(TEXTS)], ids=["csv", "jsonl", "pandas", "once"]
)
def test_data_as_people_have_them(given: Callable[[Path], Any], folders: dict[str, Path], tmp_path: Path) -> None:
    """The same texts and labels give the same task, however they lie."""
    folder = folders["text-classification"]
    wanted = lp.Task.from_pretrained(folder, "text-classification", TEXTS)
    found = lp.Task.from_pretrained(folder, "text-classification", given(tmp_path))
    assert found.metric is not None
    for a, b in zip(found.metric.batches, wanted.metric.batches, strict=True):
        assert {key: x.tolist() for key, x in a.items()} == {key: x.tolist() for key, x in b.items()}


def test_folders_of_pictures_are_their_labels(folders: dict[str, Path], tmp_path: Path) -> None:
    for i, x in enumerate(PICTURES):
        (tmp_path / ("cat", "dog")[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(x).save(tmp_path / ("cat", "dog")[i % 2] / f"{i}.png")
    task = lp.Task.from_pretrained(folders["image-classification"], "image-classification", tmp_path)
    batches = list(task.metric.batches)
    assert (
        sorted(int(one) for batch in batches for one in batch["labels"]) == [0, 1, 1] or len(batches[0]["labels"]) == 3
    )
    first = batches[0]["pixel_values"][0]
    known = {
        int(label): PICTURE(images=[Image.fromarray(x)], return_tensors="pt")["pixel_values"][0]
        for label, x in enumerate(PICTURES)
    }
    assert any(torch.equal(first, one) for one in known.values())


def test_sounds_in_files(folders: dict[str, Path], tmp_path: Path) -> None:
    for i, x in enumerate(SOUNDS):
        with wave.open(str(tmp_path / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((np.clip(x / 4, -1, 1) * 32767).astype("<i2").tobytes())
    name = "automatic-speech-recognition"
    task = lp.Task.from_pretrained(folders[name], name, tmp_path, evaluate=[SOUNDS[0] / 4])
    written = lp.Task.from_pretrained(folders[name], name, [x / 4 for x in SOUNDS], evaluate=[SOUNDS[0] / 4])
    a, b = (next(iter(one.calibrate))["input_features"] for one in (task, written))
    close(a.mean(), b.mean(), rtol=0.02)
    assert a.shape == b.shape and a.shape[0] == len(SOUNDS)


def test_what_is_not_read_is_told(folders: dict[str, Path]) -> None:
    folder, name, many = folders["text-classification"], "text-classification", TEXTS * 60
    task = lp.Task.from_pretrained(folder, name, many)
    assert sum(len(batch["input_ids"]) for batch in task.evaluate) == 512
    told = lp.compress(task, target=QUICK, measure=False).data["skipped"]
    assert [row["reason"] for row in told] == ["128 samples calibrate and 512 judge, 80 are not read: see samples="]
    few = lp.Task.from_pretrained(folder, name, TEXTS, samples=2)
    assert [len(batch["input_ids"]) for batch in few.evaluate] == [2]
    assert not lp.Task.from_pretrained(folder, name, TEXTS).evaluate.cut


def test_a_network_that_answers_with_a_number_is_judged_by_its_error(tmp_path: Path) -> None:
    network = _bert("BertForSequenceClassification", num_labels=1)().eval()
    rows = [{"text": text, "label": str(i / 4)} for i, (text, _) in enumerate(TEXTS)]
    task = lp.Task.from_pretrained(network, "text-classification", rows, processor=_tokenizer())
    batch = next(iter(task.metric.batches))
    assert task.output == "values" and batch["labels"].shape == (6, 1)
    right = batch.pop("labels")
    with torch.no_grad():
        close(task.metric(network), (network(**batch).logits - right).square()[:, 0])
    rows[3]["label"] = "much"
    with pytest.raises(InputError, match="give one"):
        lp.Task.from_pretrained(network, "text-classification", rows, processor=_tokenizer())


def test_what_is_refused_of_a_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    assert "did you mean 'text-classification'" in _refused(tmp_path, "text-clasification", TEXTS)
    assert "holds no config.json" in _refused(tmp_path, "text-classification", TEXTS)
    remote = _refused("someone/bert-of-theirs", "text-classification", TEXTS)
    assert "nothing is downloaded unasked" in remote and "hf download someone/bert-of-theirs" in remote
    other = _refused(folders["feature-extraction"], "text-classification", TEXTS)
    assert "holds no weights of classifier" in other and "BertModel" in other
    assert "has no AutoModelForImageClassification" in _refused(folders["fill-mask"], "image-classification", PICTURES)
    (tmp_path / "config.json").write_text("{")
    assert "is no JSON" in _refused(tmp_path, "text-classification", TEXTS)
    assert "no network of transformers" in _refused(torch.nn.Linear(2, 2), "text-classification", TEXTS)
    assert "is a list" in _refused([1], "text-classification", TEXTS)


def test_what_is_refused_of_a_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    larger = _tokenizer(words=200)
    network = _bert("BertForSequenceClassification", **CLASSES)()
    assert "the network knows 65" in _refused(network, "text-classification", ["w150 w3", "w3"], processor=larger)
    assert "give processor=" in _refused(network, "text-classification", TEXTS)
    strange = ["they know none of w1 these"] * 2
    known = _refused(network, "text-classification", strange, processor=_tokenizer())
    assert "83 % of the words are unknown" in known
    network.save_pretrained(tmp_path)
    assert "nothing that makes inputs of a text" in _refused(tmp_path, "text-classification", TEXTS)


def test_what_is_refused_of_data(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, name = folders["text-classification"], "text-classification"
    assert "holds no samples" in _refused(folder, name, [])
    assert (
        "data[1]" in (said := _refused(folder, name, [("w1", "good"), ("w2", "god")])) and "did you mean 'good'" in said
    )
    assert "data[1]: has no label" in _refused(folder, name, [("w1", "good"), "w2"])
    assert "may never end" in _refused(folder, name, (("w1", 0) for _ in itertools.count()))
    assert "the label 3" in _refused(folder, name, [("w1", 3)])
    assert "columns id, a, b" in _refused(folder, name, [{"id": 1, "a": "w1", "b": "w2"}])
    assert "there is no such file" in _refused(folder, name, tmp_path / "missing.csv")
    assert "is a folder" in _refused(folder, name, tmp_path)
    (tmp_path / "x.xlsx").write_text("")
    assert ".xlsx" in _refused(folder, name, tmp_path / "x.xlsx")
    (tmp_path / "x.json").write_text("[")
    assert "cannot be read" in _refused(folder, name, tmp_path / "x.json")
    assert "is a int" in _refused(folder, name, 3)
    vit = folders["image-classification"]
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(InputError, match="is no image"):
        lp.compress(vit, task="image-classification", data=[tmp_path / "x.png"], target=QUICK)
    with pytest.raises(InputError, match="give one of both"):
        lp.compress(lp.Task(torch.nn.Linear(2, 2)), task=name)
    with pytest.raises(InputError, match="not what it is for"):
        lp.compress(folder)
    with pytest.raises(InputError, match="without the name of a task"):
        lp.compress(torch.nn.Linear(2, 2), data=TEXTS)
