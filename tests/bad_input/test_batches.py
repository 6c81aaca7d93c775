"""Data that cannot be calibrated with or judged on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lilliput as lp
from lilliput.errors import InputError
from lilliput.feeding import fingerprint

Batches = list[Tensor]


class Raises:
    """Its second batch cannot be read."""

    def __init__(self, batch: Tensor) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Tensor]:
        yield self.batch
        raise OSError("the disk is gone")


def _labelled(batches: Batches, **options: Any) -> DataLoader[Any]:
    images = torch.cat(batches)
    return DataLoader(TensorDataset(images, torch.arange(len(images))), 4, **options)


def _spoilt(x: Tensor, value: float) -> Tensor:
    spoilt = x.clone()
    spoilt[1, 2, 3, 0] = value
    return spoilt


# name: calibrate, where it is refused, words of what and of what to do
UNSOUND: dict[str, tuple[Callable[[Batches], Any], str, str, str]] = {
    "empty": (lambda b: [], "calibrate", "holds no batches", "at least one batch"),
    "a batch of none": (lambda b: [b[0], b[1][:0]], "calibrate[1]", "is empty", "leave the batch out"),
    "NaN": (lambda b: [b[0], _spoilt(b[1], float("nan"))], "calibrate[1]", "NaN or infinity", "repair"),
    "infinity": (lambda b: [_spoilt(b[0], float("inf"))], "calibrate[0]", "NaN or infinity", "repair"),
    "another size": (
        lambda b: [b[0], torch.randn(4, 8, 5, 4)],
        "calibrate[1]",
        "shape (4, 8, 5, 4)",
        "dynamic=",
    ),
    "an axis less": (lambda b: [b[0], b[1][0]], "calibrate[1]", "shape (8, 4, 4)", "resize"),
    "another type": (lambda b: [b[0], b[1].double()], "calibrate[1]", "torch.float64", "torch.float32"),
    "whole numbers": (lambda b: [b[0], b[1].long()], "calibrate[1]", "torch.int64", "torch.float32"),
    "a generator of nothing": (lambda b: iter(()), "calibrate", "holds no batches", "at least one batch"),
    "labels alone": (
        lambda b: [{"labels": torch.arange(4)}],
        "calibrate[0]",
        "does not take this input",
        "forward takes: x",
    ),
    "samples": (lambda b: list(b[0]), "calibrate[0]", "fails on this input", "that it accepts"),
    "one tensor": (lambda b: b[0], "calibrate", "is one tensor", "[tensor]"),
    "one array": (lambda b: b[0].numpy(), "calibrate", "is one array", "[array]"),
    "one dict": (lambda b: {"x": b[0]}, "calibrate", "is one dict", "[dict]"),
    "a number": (lambda b: 5, "calibrate", "int", "give a list"),
    "text": (lambda b: "photographs/", "calibrate[0]", "str", "give a tensor"),
    "no tensor": (lambda b: [{"x": 3}], "calibrate[0]", "holds no tensor", "what the model takes"),
    "a loader that fails": (lambda b: Raises(b[0]), "calibrate[1]", "cannot be read", "repair"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_calibration(
    name: str, batches: Batches, task: Callable[..., lp.Task], refused: Callable[..., Any]
) -> None:
    make, where, what, remedy = UNSOUND[name]
    error = refused(InputError, task(calibrate=make(batches)))
    assert error.where == where
    assert what in error.what
    assert remedy in error.next


@pytest.mark.parametrize("name", [name for name in UNSOUND if name != "samples"])
def test_unsound_evaluation_is_found_before_any_work(
    name: str, batches: Batches, task: Callable[..., lp.Task], refused: Callable[..., Any], tmp_path: Path
) -> None:
    make, where, what, remedy = UNSOUND[name]
    error = refused(InputError, task(example=batches[0][:1], evaluate=make(batches)))
    assert error.where == where.replace("calibrate", "evaluate")
    assert what in error.what and remedy in error.next
    assert not (tmp_path / "out").exists()


def test_labels_that_the_model_takes_for_something_else(batches: Batches, refused: Callable[..., Any]) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(128, 4)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            x = x if mask is None else x * mask[:, None, None]
            out: Tensor = self.fc(x.flatten(1))
            return out

    error = refused(InputError, lp.Task(Masked(), calibrate=_labelled(batches)))
    assert error.where == "calibrate[0]" and "fails on this input" in error.what


@pytest.mark.parametrize("wrong", ["channels", "type"])
def test_the_first_batch_is_wrong(
    wrong: str, batches: Batches, task: Callable[..., lp.Task], refused: Callable[..., Any]
) -> None:
    first = batches[0][:, :3] if wrong == "channels" else batches[0].double()
    error = refused(InputError, task(calibrate=[first]))
    assert error.where == "calibrate[0]"
    assert {"channels": "fails on this input", "type": "the inputs are torch.float64"}[wrong] in error.what
    assert error.why.startswith("RuntimeError: ")


@pytest.mark.parametrize(
    ("example", "what"),
    [(torch.full((1, 8, 4, 4), float("nan")), "NaN"), (torch.empty(0, 8, 4, 4), "empty"), ([[1.0]], "no tensor")],
    ids=["NaN", "empty", "a list"],
)
def test_unsound_example(example: Any, what: str, task: Callable[..., lp.Task], refused: Callable[..., Any]) -> None:
    error = refused(InputError, task(example=example))
    assert error.where == "example" and what in error.what


def test_a_loader_that_shuffles_later(
    batches: Batches, task: Callable[..., lp.Task], refused: Callable[..., Any]
) -> None:
    """Its first batch is always the same; it is found out when the rest is read again."""

    class Later:
        turns = 0

        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Iterator[Tensor]:
            self.turns += 1
            yield batches[0]
            yield from batches[1:] if self.turns < 5 else reversed(batches[1:])

    error = refused(InputError, task(calibrate=Later()))
    assert error.where == "calibrate" and "other batches" in error.what and "shuffles from the first" in error.next


@pytest.mark.parametrize(
    ("clusters", "evaluated", "what"),
    [
        (["one", "two"], True, "2 labels for 16 samples"),
        (list(range(17)), True, "17 labels for 16 samples"),
        (list(range(16)), False, "labels for no samples"),
        (iter(range(16)), True, "iterator"),
    ],
    ids=["too few", "too many", "of nothing", "read once"],
)
def test_unsound_clusters(
    clusters: Any,
    evaluated: bool,
    what: str,
    batches: Batches,
    task: Callable[..., lp.Task],
    refused: Callable[..., Any],
) -> None:
    error = refused(InputError, task(clusters=clusters, evaluate=batches if evaluated else None))
    assert error.where == "clusters" and what in error.what and error.next


@pytest.mark.parametrize(
    "dynamic",
    [[0], {0: 0}, {0: {-1: "width"}}, {0: {9: "width"}}, {1: {0: "batch"}}, {"y": {0: "batch"}}],
    ids=repr,
)
def test_unsound_dynamic_axes(dynamic: Any, task: Callable[..., lp.Task], refused: Callable[..., Any]) -> None:
    assert "dynamic" in str(refused(InputError, task(dynamic=dynamic)))


def test_neither_example_nor_calibration(net: nn.Module, refused: Callable[..., Any]) -> None:
    error = refused(InputError, net)
    assert error.next == "give example= or calibrate="


def test_calibration_beside_a_task(task: Callable[..., lp.Task], batches: Batches) -> None:
    with pytest.raises(InputError, match="give them to the task"):
        lp.compress(task(), calibrate=batches)


def test_a_validation_by_what_judges() -> None:
    x, y = torch.randn(24, 6), torch.arange(24) % 3
    labelled = list(zip(x.split(8), y.split(8), strict=True))
    net, given = nn.Linear(6, 3), {"train": labelled, "loss": lambda model, batch: model(batch[0]).square().mean()}
    with pytest.raises(InputError, match=r"^validate: holds 16 of the 16 samples of evaluate .*cannot judge it"):
        lp.train(lp.Task(net, **given, validate=labelled, evaluate=[x[:8], x[16:]]))
    lp.train(lp.Task(net, **given, validate=labelled[:1], evaluate=[x[4:16]]))  # a third by chance


def test_large_arrays_that_differ_in_the_middle_are_told_apart() -> None:
    first = np.zeros(5000)
    second = first.copy()
    second[2500] = 1.0
    assert repr(first) == repr(second)
    assert fingerprint([first]) == fingerprint([first.copy()]) != fingerprint([second])
    assert fingerprint([first]) != fingerprint([first.reshape(50, 100)]) != fingerprint([first.astype("f4")])
