"""Anything that feeds a model: each kind of feed, through each verb that reads batches.

Right is what the same inputs give as a list of tensors or dicts: the compressed module is the same to the bit. What
lies beside the inputs (labels, texts, ids) changes nothing, and is told in the report. What shuffles, is read once
or never ends is read once, as far as `samples` of it.
"""

from __future__ import annotations

import itertools
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lilliput as lp
from lilliput.encodings import tensor_digest
from lilliput.errors import CaptureError, InputError
from lilliput.feeding import Source, Takes, batch_size, fingerprint
from lilliput.feeding import source as source_room
from lilliput.training import data as data_room

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=0)
RECIPE = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.Int(8))])
WEIGHTS = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=None)])
Labelled = namedtuple("Labelled", "image target")


class Rest(TypedDict, total=False):
    position_ids: Tensor


class Image(nn.Module):
    """As a classifier of images: one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu())
        return out


class Text(nn.Module):
    """As those of transformers: keywords, of which labels make a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        held = self.words(input_ids)
        held = held if attention_mask is None else held * attention_mask[..., None]
        logits = self.last(held.mean(1))
        return (
            {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "l": logits}
        )


class Nested(nn.Module):
    """Lists and dicts of tensors, keywords alone, numbers and None."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, maps: list[Tensor], rest: dict[str, Any] | None = None, *, scale: float = 1.0) -> Tensor:
        out: Tensor = self.layer(maps[0] - 2 * maps[1]) * scale
        return out if rest is None else out + self.layer(rest["y"]) * rest["times"]


def _images() -> list[Tensor]:
    return list(torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0)))


def _ids() -> list[Tensor]:
    return list(torch.randint(50, (3, 4, 6), generator=torch.Generator().manual_seed(0)))


IMAGES, IDS, Y = _images(), _ids(), torch.arange(8) % 4
PAIRS = [(x, Y) for x in IMAGES]
MASKED = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in IDS]
NESTED = [{"maps": [x, x.flip(0)], "rest": {"y": x, "times": 2}, "scale": 0.5} for x in IMAGES]
WHOLE = TensorDataset(torch.cat(IMAGES), torch.arange(32))


class Encoding(UserDict[str, Any]):
    """As a tokenizer gives: a mapping that is no dict."""


class Named(Dataset[Any]):
    """Samples with a text and an id beside."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": IDS[i // 4][i % 4].tolist(), "labels": i % 4, "text": f"the {i}th", "id": None}


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return ((x, 1) for x in torch.cat(IMAGES))


# name: the model, what feeds it, the plain list of the same batches, what is told to be left out
KINDS: dict[str, tuple[type[nn.Module], Callable[[], Any], Any, list[str]]] = {
    "(x, y)": (Image, lambda: PAIRS, IMAGES, ["[1]"]),
    "[x, y]": (Image, lambda: [list(pair) for pair in PAIRS], IMAGES, ["[1]"]),
    "(x, names)": (Image, lambda: [(x, ["a"] * 8, 3) for x in IMAGES], IMAGES, ["[1]", "[2]"]),
    "a named tuple": (Image, lambda: [Labelled(*pair) for pair in PAIRS], IMAGES, ["[1]"]),
    "a loader of (x, y)": (Image, lambda: DataLoader(WHOLE, 8), IMAGES, ["[1]"]),
    "a loader over a stream": (Image, lambda: DataLoader(Streamed(), 8), IMAGES, ["[1]"]),
    "arrays": (Image, lambda: [(x.numpy(), Y.numpy()) for x in IMAGES], IMAGES, ["[1]"]),
    "a generator": (Image, lambda: (pair for pair in PAIRS), IMAGES, ["[1]"]),
    "a map": (Image, lambda: map(torch.clone, IMAGES), IMAGES, []),
    "a dataset": (Image, lambda: WHOLE, list(torch.cat(IMAGES).split(16)), ["[1]"]),
    "a stream of samples": (Image, lambda: Streamed(), list(torch.cat(IMAGES).split(16)), ["[1]"]),
    "other sizes": (Image, lambda: [IMAGES[0], (IMAGES[1][:3], Y[:3])], [IMAGES[0], IMAGES[1][:3]], ["[1]"]),
    "a dict with labels": (Text, lambda: [{**one, "labels": Y[:4]} for one in MASKED], MASKED, ["labels"]),
    "a dict with more": (Text, lambda: [{**one, "id": Y[:4], "t": ["a"] * 4} for one in MASKED], MASKED, ["id", "t"]),
    "a mapping": (Text, lambda: [Encoding(one, labels=Y[:4]) for one in MASKED], MASKED, ["labels"]),
    "(a mapping, y)": (Text, lambda: [(Encoding(one), Y[:4]) for one in MASKED], MASKED, ["[1]"]),
    "(ids, mask, labels)": (Text, lambda: [(*one.values(), Y[:4]) for one in MASKED], MASKED, ["[2]"]),
    "rows": (Text, lambda: Named(), [{"input_ids": torch.cat(IDS)}], ["labels", "text", "id"]),
    "nested": (Nested, lambda: NESTED, NESTED, []),
    "nested, with arrays": (
        Nested,
        lambda: [
            {
                "maps": [one["maps"][0].numpy(), one["maps"][1]],
                "rest": Encoding(y=one["rest"]["y"], times=np.int64(2)),
                "scale": np.float64(0.5),
            }
            for one in NESTED
        ],
        NESTED,
        [],
    ),
    "nested, by position": (
        Nested,
        lambda: [([x, x.flip(0)], None, Y) for x in IMAGES],
        [{"maps": [x, x.flip(0)], "rest": None} for x in IMAGES],
        ["[2]"],
    ),
}


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def digests(net: nn.Module) -> dict[str, str]:
    return {name: tensor_digest(x) for name, x in net.state_dict().items()}


def left_out(told: Any, field: str) -> list[str]:
    return [path.removeprefix(f"{field}, ") for path in told if path.startswith(f"{field}, ")]


@pytest.mark.parametrize("name", KINDS)
def test_calibration_is_that_of_the_inputs_alone(name: str) -> None:
    kind, feed, plain, _ = KINDS[name]
    net = made(kind)
    found, expected = (lp.apply(lp.Task(net, calibrate=given), RECIPE, target=QUICK) for given in (feed(), plain))
    assert digests(found) == digests(expected) != digests(net)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_opened_answers_as_the_module(name: str, tmp_path: Path) -> None:
    """Through `compress`, its file and its report, with the feed as example, to calibrate and to judge with."""
    kind, feed, plain, beside = KINDS[name]
    net = made(kind)
    task = lp.Task(net, calibrate=feed(), evaluate=feed())
    small = lp.compress(task, WEIGHTS, target=QUICK, measure=False)
    run, other = lp.open(small.save(tmp_path / "net.lil"), threads=1), Source.of(plain, "plain")
    for inputs in other:
        with torch.no_grad():
            close(_first(inputs.call(run)), _first(inputs.call(small.model)), atol=1e-5)
    told = [one["path"] for one in small.data["skipped"]]
    assert left_out(told, "calibrate") == left_out(told, "evaluate") == sorted(beside)
    assert small.data["agreement"]["samples"] == sum(map(batch_size, other))


def _first(answer: Any) -> Tensor:
    return answer["logits"] if isinstance(answer, dict) else answer


# what cannot be read again


class Endless:
    """Without a length or an end; other batches each time."""

    def __iter__(self) -> Iterator[Any]:
        return ((torch.randn(8, 16), Y) for _ in itertools.count())


SAMPLED: dict[str, tuple[Callable[[], Any], str]] = {
    "shuffled": (lambda: DataLoader(WHOLE, 8, shuffle=True), "it gives other batches each time"),
    "a generator without end": (lambda: iter(Endless()), "it can be read only once"),
    "without end": (Endless, "it gives other batches each time"),
    "without a length": (lambda: DataLoader(Streamed(), 8), "it does not tell its length"),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_sample_is_kept_and_told(name: str) -> None:
    feed, why = SAMPLED[name]
    task = lp.Task(made(Image), calibrate=feed(), evaluate=feed(), samples=20)
    small = lp.compress(task, RECIPE, target=QUICK, measure=False)
    told = {one["path"]: one["reason"] for one in small.data["skipped"]}
    for field in ("calibrate", "evaluate"):
        assert told[field] == f"only its first 24 samples are used, for {why}; Task(samples=…) says how many"
    assert small.data["agreement"]["samples"] == 24
    assert small.data["conditions"]["calibration_samples"] == 24


def test_nothing_is_told_of_what_is_read_whole() -> None:
    for given in (iter(IMAGES), DataLoader(torch.cat(IMAGES), 8, shuffle=True)):  # type: ignore[arg-type]
        assert Source.of(given, "calibrate").cut == ""


def test_a_sample_is_the_same_each_time_and_in_every_process() -> None:
    before = torch.get_rng_state()
    one, two = (Source.of(DataLoader(WHOLE, 8, shuffle=True), "calibrate", samples=16) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    read = [[fingerprint(inputs) for inputs in source] for source in (one, one, two)]
    assert read[0] == read[1] == read[2] and len(set(read[0])) == 2
    assert read[0] != [fingerprint(inputs) for inputs in Source.of(DataLoader(WHOLE, 8), "calibrate")][:2]


def test_a_run_over_a_shuffled_loader_goes_on_in_its_folder(tmp_path: Path) -> None:
    def run() -> Any:
        task = lp.Task(made(Image), calibrate=DataLoader(WHOLE, 8, shuffle=True), samples=16)
        return lp.compress(task, RECIPE, target=QUICK, measure=False, folder=tmp_path)

    first, again = run(), run()
    assert digests(first.model) == digests(again.model)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_what_is_large_lies_on_disk(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source_room, "_IN_MEMORY", 100)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    batches = [(torch.randn(4, 3).to(kind).T, torch.randn(4)) for _ in range(3)]
    kept = list(Source.of(iter(batches), "calibrate"))
    for (x, y), inputs in zip(batches, kept, strict=True):
        assert torch.equal(inputs.args[0], x) and torch.equal(inputs.args[1], y) and inputs.args[0].dtype == kind
    assert kept[-1].args[0].data_ptr() != batches[-1][0].data_ptr() and not list(tmp_path.iterdir())


def test_a_buffer_that_a_loader_fills_again_is_copied() -> None:
    buffer = torch.zeros(2, 3)
    kept = Source.of((buffer.fill_(i) for i in (1.0, 2.0)), "calibrate")
    assert [float(inputs.args[0].mean()) for inputs in kept] == [1.0, 2.0]


# what forward takes


def test_labels_that_a_model_needs_are_an_input() -> None:
    def conditional(z: Tensor, labels: Tensor) -> Tensor:
        return z * labels

    inputs, beside = Takes.of(conditional).inputs({"z": torch.ones(2), "labels": torch.ones(2)}, "calibrate[0]")
    assert list(inputs.tensors()) == ["z", "labels"] and not beside


def test_a_loss_is_not_what_is_judged() -> None:
    """The answer to a batch with labels is that without them."""
    batch = {"input_ids": IDS[0], "labels": Y[:4]}
    small = lp.compress(lp.Task(made(Text), calibrate=[batch]), RECIPE, target=QUICK, measure=False)
    assert [one["place"] for one in small.data["agreement"]["outputs"]] == ["logits"]


def test_keywords_that_have_a_type_take_what_it_names() -> None:
    def forward(x: Tensor, **kwargs: Unpack[Rest]) -> Tensor:
        return x

    batch = {"x": torch.ones(2), "position_ids": torch.ones(2), "special_tokens_mask": torch.ones(2)}
    inputs, beside = Takes.of(forward).inputs(batch, "calibrate[0]")
    assert list(inputs.kwargs) == ["x", "position_ids"] and list(beside) == ["special_tokens_mask"]


def test_a_forward_that_takes_one_dict_is_given_it() -> None:
    def forward(batch: dict[str, Tensor]) -> Tensor:
        return batch["image"]

    given = {"image": torch.ones(2), "labels": torch.ones(2), "names": ["a", "b"]}
    inputs, beside = Takes.of(forward).inputs(given, "calibrate[0]")
    assert list(inputs.tensors()) == ["0.image"] and list(beside) == ["labels", "names"]


def test_samples_of_other_lengths_need_a_collator() -> None:
    class Ragged(Named):
        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"input_ids": list(range(3 + i % 2)), "offsets": list(range(i + 1))}

    def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"input_ids": nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], True)}

    with pytest.raises(
        InputError, match=r"calibrate\[0\]: input 'input_ids' has samples of the shapes \(3,\) to \(4,\)"
    ):
        lp.apply(lp.Task(made(Text), calibrate=Ragged()), RECIPE)
    lp.apply(lp.Task(made(Text), calibrate=Ragged(), collate=padded), RECIPE)


@pytest.mark.parametrize("samples", [0, 2.5, "all"])
def test_a_number_of_samples_that_is_none(samples: Any) -> None:
    with pytest.raises(InputError, match=r"^samples: is"):
        lp.apply(lp.Task(made(Image), calibrate=IMAGES, samples=samples), RECIPE)


def test_one_tensor_given_twice_is_two_inputs(tmp_path: Path) -> None:
    x, other = IMAGES[0], IMAGES[1]
    net = made(Nested)
    lp.save(tmp_path / "net.lil", net, example={"maps": [x] * 2}, target=QUICK)
    with torch.no_grad():
        close(lp.open(tmp_path / "net.lil", threads=1)(maps=[x, other]), net([x, other]), atol=1e-5)


class Stateful(nn.Module):
    """The state's first axis is one of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(16, 8, 2, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.cell(x, (h, c))[0]
        return out


def test_a_first_axis_that_is_no_batch() -> None:
    given = (torch.randn(4, 5, 16), torch.randn(2, 4, 8), torch.randn(2, 4, 8))
    net = made(Stateful)
    with pytest.raises(CaptureError, match=r"name the axes that vary, dynamic=\{input: \{axis: name\}\}, or \{\}"):
        lp.compress(lp.Task(net, calibrate=[given]), WEIGHTS, target=QUICK, measure=False)
    lp.compress(lp.Task(net, calibrate=[given], dynamic={}), WEIGHTS, target=QUICK, measure=False)


# training


def own_loss(model: Any, batch: Any) -> Tensor:
    out: Tensor = model(**batch)["loss"]
    return out


LABELLED = [{**one, "labels": (one["input_ids"][:, 0] % 4)} for one in MASKED]
ROWS = [{"input_ids": row.tolist(), "labels": int(row[0]) % 4} for row in torch.cat(IDS)]


def collated_rows(rows: list[dict[str, Any]]) -> Encoding:
    return Encoding({key: torch.tensor([row[key] for row in rows]) for key in rows[0]})


# name: what trains, and how samples are collated
TRAINED: dict[str, tuple[Callable[[], Any], Any]] = {
    "dicts": (lambda: LABELLED, None),
    "mappings": (lambda: [Encoding(one) for one in LABELLED], None),
    "rows with a collator": (lambda: ROWS, collated_rows),
    "a dataset with a collator": (lambda: _Rows(), collated_rows),
    "a dataset": (lambda: _Rows(), None),
}


class _Rows(Dataset[Any]):
    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, i: int) -> Any:
        return ROWS[i]


@pytest.mark.parametrize("name", TRAINED)
def test_what_calibrates_trains(name: str) -> None:
    """By the loss that the model itself makes of labels, beside a teacher; the terms find the logits."""
    feed, collate = TRAINED[name]
    torch.manual_seed(1)
    teacher, net = Text().eval(), made(Text)
    given: dict[str, Any] = {"train": feed(), "validate": feed(), "collate": collate, "teacher": teacher}
    kd = lp.distill.LogitKD(temperature=1)
    step = lp.Finetune(epochs=12, lr=0.03, distill=[kd])
    trained = lp.train(lp.Task(net, loss=own_loss, **given), step)
    assert trained.history[-1]["validation_loss"] < 0.8 * trained.history[0]["validation_loss"]
    lp.apply(lp.Task(net, calibrate=feed(), collate=collate), RECIPE)

    inputs = MASKED[0]["input_ids"]
    alone = lp.train(lp.Task(net, **given), step).model
    with torch.no_grad():
        near, far = (((x(inputs)["logits"] - teacher(inputs)["logits"]) ** 2).mean() for x in (alone, net))
    assert near < 0.5 * far


def test_training_data_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_room, "LONGEST", 5)
    loss = lambda model, batch: model(batch[0]).square().mean()  # noqa: E731
    with pytest.raises(InputError, match=r"^train: does not end within 5 batches; give a source that tells its length"):
        lp.train(lp.Task(made(Image), train=Endless(), loss=loss))


# pipelines


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far", "away"],
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    net = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=len(words), **sizes))
    return transformers.pipeline("text-classification", model=net.eval(), tokenizer=tokenizer)


def test_a_pipeline_is_taken_for_its_model_and_its_tokenizer(pipe: Any, tmp_path: Path) -> None:
    texts = ["the cat sat", "a dog ran far away", "the mat"] * 6
    small = lp.compress(pipe, WEIGHTS, calibrate=texts, target=QUICK, measure=False)
    run = lp.open(small.save(tmp_path / "net.lil"), threads=1)
    assert small.data["conditions"]["calibration_samples"] == 18
    given = pipe.tokenizer(["the cat ran", "a mat and a dog sat far away"], return_tensors="pt", padding=True)
    with torch.no_grad():
        close(run(**given)["logits"], small.model(**given)["logits"], atol=1e-5)
