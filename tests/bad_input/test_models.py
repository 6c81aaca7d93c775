"""Models that cannot be compressed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import CaptureError, ExportError, InputError
from lilliput.model.views.values import value_encodings

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
    """Holds a lock, which deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.guard = threading.Lock()

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
    assert "cannot be copied" in error.what and error.where == "guard" and "deepcopy" in error.next


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


def _scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(4, 4)))


def _on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 4))


def _quantized_by_torch() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})


def _within() -> nn.Module:
    return nn.Sequential(torch.compile(nn.Linear(4, 4), backend="eager"), nn.ReLU())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "what", "where"),
    [
        (_scripted, "TorchScript", "RecursiveScriptModule"),
        (_within, "compiled", "0"),
        (_on_meta, "meta device", "0"),
        (_quantized_by_torch, "PyTorch has quantized", "0"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), "no shape yet", "0"),
    ],
    ids=["script", "compiled", "meta", "quantized", "lazy"],
)
def test_modules_that_are_not_what_runs(make: Callable[[], nn.Module], what: str, where: str) -> None:
    with pytest.raises(InputError) as caught:
        lp.compress(_task(make()))
    assert what in caught.value.what and caught.value.where == where and caught.value.next


@pytest.mark.parametrize("dtype", [torch.float64], ids=str)  # halves are taken: tests/reports/test_halves.py
@pytest.mark.parametrize(
    "step", [lp.Quantize(), lp.Quantize(activations=lp.Int(8)), lp.Prune("weights", 0.5)], ids=repr
)
def test_models_in_other_floats(dtype: torch.dtype, step: Any, refused: Refused) -> None:
    task = lp.Task(nn.Sequential(nn.Linear(4, 4)).to(dtype), calibrate=[torch.ones(2, 4, dtype=dtype)])
    error = refused(InputError, task, lp.Recipe([step]))
    assert str(dtype) in error.what and error.where == "0.weight" and "model.float()" in error.next


class Unexportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) / x.amax()  # type: ignore[no-any-return]


def test_an_operator_without_onnx_is_named(refused: Refused) -> None:
    error = refused(ExportError, _task(Unexportable()))
    assert "amax" in error.why and "\x1b" not in str(error)


class Overflows(nn.Module):
    """What flows into its second layer is not always a number; its answers are."""

    def __init__(self, flow: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.flow = nn.Linear(4, 4), nn.Linear(4, 4), flow

    def forward(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(self.second(self.flow(self.first(x)))).sigmoid()


@pytest.mark.parametrize("flow", [torch.exp, lambda x: torch.sqrt(5 - x.abs())], ids=["infinity", "nan"])
@pytest.mark.parametrize("step", [lp.Quantize(activations=lp.Int(8)), lp.Quantize(weights=lp.Int(4))], ids=repr)
def test_what_flows_is_not_finite(step: lp.Quantize, flow: Callable[[Tensor], Tensor], refused: Refused) -> None:
    torch.manual_seed(0)
    batches = [torch.rand(2, 4), 1e4 * torch.rand(2, 4)]
    error = refused(InputError, lp.Task(Overflows(flow), calibrate=batches), lp.Recipe([step]))
    assert error.where == "second:linear#0@0, calibrate[1]" and "NaN or infinite" in error.what


class Grows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).abs().exp()  # type: ignore[no-any-return]


def test_answers_to_samples_of_evaluation_are_not_finite(refused: Refused) -> None:
    torch.manual_seed(0)
    task = lp.Task(Grows(), calibrate=[torch.rand(2, 4)], evaluate=[torch.rand(2, 4), 1e4 * torch.rand(2, 4)])
    error = refused(InputError, task, lp.Recipe([lp.Quantize(activations=lp.Int(8))]))  # whose range is 0 … 1
    assert error.where == "evaluate[1]" and "in different places" in error.what


@pytest.fixture(scope="module")
def once(_net: nn.Module, batches: list[Tensor]) -> nn.Module:
    step = lp.Quantize(activations=lp.Int(8))
    return lp.compress(
        lp.Task(_net, calibrate=batches), lp.Recipe([step]), target=lp.targets.OnnxRuntime(seconds=1.5)
    ).model


@pytest.mark.parametrize("activations", [lp.Int(8), lp.Int(8, dynamic=True), lp.formats.PowerOfTwo(4)], ids=repr)
def test_activations_that_are_quantized_already(
    once: nn.Module, activations: Any, batches: list[Tensor], refused: Refused
) -> None:
    task = lp.Task(once, calibrate=[10 * x for x in batches])
    error = refused(InputError, task, lp.Recipe([lp.Quantize(activations=activations)]))
    assert "quantized already" in error.what and error.where.startswith("conv:conv2d#0")
    assert "all steps in one recipe" in error.next


@pytest.mark.parametrize("step", [lp.Quantize(weights=lp.Int(4)), lp.Prune("weights", 0.5)], ids=repr)
def test_ranges_that_stay_are_told(
    once: nn.Module, step: Any, batches: list[Tensor], quick: lp.targets.OnnxRuntime
) -> None:
    small = lp.compress(lp.Task(once, calibrate=batches), lp.Recipe([step]), target=quick)
    kept = {row["path"] for row in small.data["skipped"] if "found before this recipe" in row["reason"]}
    assert kept == set(value_encodings(once)) != set()
