"""Outputs of an exported file have the names that they have in the module's answer."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.outputs import departure

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=0)
Box = namedtuple("Box", "corners score")


class Answering(nn.Module):
    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.answer = nn.Linear(16, 8), answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.layer(x), x)


ANSWERS: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[str]]] = {
    "one": (lambda y, x: y, ["output"]),
    "a dict": (lambda y, x: {"logits": y, "box": (y + 1, [y * 2])}, ["logits", "box.0", "box.1.0"]),
    "a named tuple": (lambda y, x: Box(y, y.tanh()), ["corners", "score"]),
    "what is no tensor": (lambda y, x: (y, None, "a", y.shape[0]), ["0", "3"]),
    "twice": (lambda y, x: {"a": y, "b": y}, ["a", "b"]),
    "names that torch gave": (lambda y, x: {"linear": y.relu(), "relu": y}, ["linear", "relu"]),
    "an input's name": (lambda y, x: {"x": y}, ["x_output"]),
    "an input": (lambda y, x: {"y": y, "same": x}, ["y", "same"]),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_outputs_are_named_as_the_module_does(name: str, tmp_path: Path) -> None:
    answer, names = ANSWERS[name]
    torch.manual_seed(0)
    net, x = Answering(answer).eval(), torch.randn(4, 16)
    path = lp.export(tmp_path / "net.onnx", net, x, target=QUICK)
    onnx.checker.check_model(str(path))
    assert [value.name for value in onnx.load(path).graph.output] == names
    lp.save(tmp_path / "net.lil", net, example=x, target=QUICK)
    other = torch.randn(3, 16)
    assert departure(net(other), lp.open(tmp_path / "net.lil", threads=1)(other)) < 1e-5
