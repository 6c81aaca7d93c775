"""Metrics that do not give one finite score a sample.

All in one folder: a bad metric costs nothing of what was done before, where only the whole run shows that it is bad.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lilliput as lp
from lilliput.errors import InputError
from lilliput.targets.onnx import OnnxWriter


class Fewer:
    """A score less at each call."""

    name = "fewer"

    def __init__(self) -> None:
        self.scores = 9

    def __call__(self, model: Any) -> Tensor:
        self.scores -= 1
        return torch.ones(self.scores)


class Clustered:
    """Three labels for four scores."""

    name, clusters = "clustered", (1, 2, 3)

    def __call__(self, model: Any) -> Tensor:
        return torch.ones(4)


def raises(model: Any) -> Tensor:
    raise KeyError("labels")


def in_modules(model: Any) -> Tensor:
    """It is given a callable, not a module."""
    return torch.ones(4) if model.eval() else torch.zeros(4)


def scalar(model: Any) -> float:
    return 0.9


def nan(model: Any) -> Tensor:
    return torch.tensor([0.5, float("nan"), 1.0])


def nothing(model: Any) -> list[float]:
    return []


def table(model: Any) -> Tensor:
    return torch.ones(4, 2)


def words(model: Any) -> list[str]:
    return ["good"]


METRICS: list[tuple[Any, str, str]] = [
    (raises, "failed", "what the model takes"),
    (in_modules, "failed", "what the model takes"),
    (scalar, "shape ()", "one score a sample"),
    (nan, "1 of 3 scores", "repair"),
    (nothing, "shape (0,)", "one score a sample"),
    (table, "shape (4, 2)", "one score a sample"),
    (words, "failed", "what the model takes"),
    (Fewer(), "gave 7 scores, then 6", "same samples"),  # and 8 when it was tried
    (Clustered(), "3 cluster labels for 4 scores", "one a sample"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metrics") / "out"


@pytest.mark.parametrize(
    ("metric", "what", "remedy"), METRICS, ids=[getattr(m, "__name__", type(m).__name__) for m, *_ in METRICS]
)
def test_unsound_metric(
    metric: Any,
    what: str,
    remedy: str,
    task: Callable[..., lp.Task],
    folder: Path,
    refused: Callable[..., Any],
) -> None:
    error = refused(InputError, task(metric=metric), folder=folder)
    assert error.where == f"metric {getattr(metric, 'name', getattr(metric, '__name__', ''))}"
    assert what in error.what and remedy in error.next


def test_the_data_of_our_own_metric(
    task: Callable[..., lp.Task], batches: list[Tensor], folder: Path, refused: Callable[..., Any]
) -> None:
    metric = lp.metrics.top1([(batches[0] * float("nan"), torch.zeros(4))])
    error = refused(InputError, task(metric=metric), folder=folder)
    assert error.where == "top1: batch 0" and "NaN" in error.what


def test_work_survives_a_bad_metric(
    task: Callable[..., lp.Task], folder: Path, quick: lp.targets.OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a sound metric the same folder goes on: nothing is built again."""

    def build(*args: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(OnnxWriter, "build", build)
    result = lp.compress(task(metric=lambda model: [0.5, 1.0]), folder=folder, target=quick)
    assert result.data["after"]["metric"]["value"] == 0.75
