"""What an exporter with a fault wrote is refused by `compress` itself, with the place; what is right passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mutants import MUTANTS, NoPlace, exporting
from subjects import EXACT
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import ExportError

TARGETS = {
    "onnxruntime": lp.targets.OnnxRuntime(threads=1, seconds=0),
    "openvino": lp.targets.OpenVino(threads=1, seconds=0),
}
STATIC = lp.Recipe([lp.Quantize(weights=EXACT, activations=lp.Int(8))])
RUN_TIME = lp.Recipe([lp.Quantize(weights=EXACT, activations=lp.Int(8, dynamic=True))])
GROUPS = lp.Recipe([lp.Quantize(weights=lp.Int(4, group=16, symmetric=False))])
BLOCKS = lp.Recipe([lp.Quantize(weights=lp.Int(4, group=16), activations=lp.Int(8, dynamic=True))])
FOUR = lp.Recipe([lp.Quantize(weights=lp.Int(4))])


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.body = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for layer in self.body:
            x = x + layer(x).relu()
        return self.last(x.mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x)[0])


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], lp.Recipe]] = {
    "images, static": (Images, (4, 3, 12, 12), STATIC),
    "images, four bits": (Images, (4, 3, 12, 12), FOUR),
    "tokens, at run time": (Tokens, (4, 6, 32), RUN_TIME),
    "tokens, static": (Tokens, (4, 6, 32), STATIC),
    "tokens, groups of four bits": (Tokens, (4, 6, 32), GROUPS),
    "tokens, groups at run time": (Tokens, (4, 6, 32), BLOCKS),
    "steps, at run time": (Steps, (4, 6, 16), RUN_TIME),
}


def compressed(kind: str, target: str) -> lp.results.Result:
    make, shape, recipe = KINDS[kind]
    torch.manual_seed(0)
    net, batches = make().eval(), [torch.randn(shape) for _ in range(3)]
    return lp.compress(net, recipe, calibrate=batches, target=TARGETS[target])


def test_a_file_that_is_built_again_is_compared_again(tmp_path: Path) -> None:
    """A resumed run whose file is gone remembered that an earlier one was right, and believed the new one to be."""
    make, shape, recipe = KINDS["images, static"]
    torch.manual_seed(0)
    net, batches = make().eval(), [torch.randn(shape)]

    def run() -> lp.results.Result:
        return lp.compress(net, recipe, calibrate=batches, target=TARGETS["onnxruntime"], folder=tmp_path / "out")

    first = run().data["export"]["after"]
    (tmp_path / "out" / "work" / "net.onnx").unlink()
    with exporting(MUTANTS["a scale times 1.3"]), pytest.raises(ExportError, match="does not compute"):
        run()
    assert run().data["export"]["after"] == first


def test_builds_are_compared_on_batches_to_evaluate_with_too() -> None:
    torch.manual_seed(0)
    task = lp.Task(Images().eval(), example=torch.randn(1, 3, 12, 12), evaluate=[torch.randn(5, 3, 12, 12)] * 2)
    written: Any = lp.compress(task, FOUR, target=TARGETS["onnxruntime"]).data["export"]["after"]["written"]
    assert written["samples"] == 9


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_right_passes(kind: str, target: str) -> None:
    if target == "openvino" and kind.endswith("at run time"):
        pytest.skip("OpenVINO finds such ranges by itself")
    written: Any = compressed(kind, target).data["export"]["after"]["written"]
    assert written["relative"] < 1e-3 and written["largest"] < 1e-2 and written["samples"] == 9
    assert not written["rounded"]


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_is_refused_with_its_place(kind: str, mutant: str) -> None:
    try:
        with exporting(MUTANTS[mutant]), pytest.raises(ExportError, match="does not compute what the module") as caught:
            compressed(kind, "onnxruntime")
    except NoPlace:
        pytest.skip("the file has no place for this fault")
    if mutant != "outputs times 1.3":
        assert ":" in caught.value.where and "first value" in str(caught.value.why)
