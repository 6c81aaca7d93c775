"""Models that cannot be compressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import CaptureError, InputError

Refused = Callable[..., Any]


class Branches(nn.Module):
    """Its control flow depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x  # type: ignore[no-any-return]


class BranchesAlone(nn.Module):
    """The same without any part that could be captured by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if x.sum() > 0 else x


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not today")


class Bare(nn.Module):
    """Nothing in it multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Uncopied(nn.Module):
    """Holds a tensor with a history, which deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.kept = self.fc.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


def _task(model: Any) -> lp.Task:
    return lp.Task(model, calibrate=[torch.ones(2, 4)])


@pytest.mark.parametrize("model", [Branches, BranchesAlone])
def test_control_flow_that_depends_on_data(model: type[nn.Module], refused: Refused) -> None:
    error = refused(CaptureError, _task(model()))
    assert "data-dependent" in error.why


def test_a_model_that_fails_on_its_example(refused: Refused) -> None:
    error = refused(InputError, _task(Fails()))
    assert "fails on this input" in error.what and error.why == "ValueError: not today"


def test_a_model_without_layers(refused: Refused) -> None:
    assert "no convolution, linear or recurrent layer, or embedding" in refused(InputError, _task(Bare())).what


def test_a_model_that_cannot_be_copied(refused: Refused) -> None:
    error = refused(InputError, _task(Uncopied()))
    assert "cannot be copied" in error.what and "deepcopy" in error.next


@pytest.mark.parametrize("model", ["net.onnx", None, nn.Linear], ids=repr)
def test_no_module(model: Any, refused: Refused) -> None:
    assert "torch.nn.Module" in refused(InputError, _task(model)).next


def test_neither_module_nor_task(refused: Refused) -> None:
    assert refused(InputError, torch.sin).next == "give a torch.nn.Module or a Task"


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", ["conv.weight", "fc.bias", "norm.weight"])
def test_damaged_parameters_are_named(
    name: str, value: float, net: nn.Module, task: Callable[..., lp.Task], refused: Refused
) -> None:
    net.get_parameter(name).data.reshape(-1)[0] = value
    error = refused(InputError, task())
    assert error.where == name and error.next == "repair the model"


def test_damaged_statistics_are_named(net: nn.Module, task: Callable[..., lp.Task], refused: Refused) -> None:
    net.get_buffer("norm.running_var")[3] = float("nan")
    assert refused(InputError, task()).where == "norm.running_var"


def test_infinite_answers_of_a_sound_model(
    batches: list[Tensor], task: Callable[..., lp.Task], refused: Refused
) -> None:
    error = refused(InputError, task(example=batches[0] * 1e38))
    assert error.where == "example" and "NaN or infinity" in error.what


def test_an_unknown_target(task: Callable[..., lp.Task], refused: Refused) -> None:
    error = refused(InputError, task(), target="onnxruntim")
    assert error.next.startswith("did you mean 'onnxruntime'?")
