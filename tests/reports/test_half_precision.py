"""Models and inputs in other floats than float32: refused before any work, with a remedy that works when followed.

Models in half precision are taken: computed in float32, and given back as they came. Files hold them too. What is left
to refuse of halves are inputs of a float32 model, and code that converts.

Found in use: a model in half precision was refused with `model.float()` as the remedy, which helps neither where the
inputs are half too, nor where the model's own code converts. Right is: the message names the model, the inputs and the
fields that give them; each remedy told is followed here, and what comes of it answers as the module does in float32.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.begin import begin
from lilliput.engine.halves import in_float32
from lilliput.engine.store import Store
from lilliput.errors import InputError
from lilliput.progress import silent

TARGET = lp.targets.OnnxRuntime(threads=1, seconds=1)
WEIGHTS = lp.Recipe([lp.Quantize()])
OTHERS = [torch.float16, torch.bfloat16, torch.float64]


class Net(nn.Module):
    """Converts what it reads to what its first layer computes in."""

    def __init__(self, to: torch.dtype | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.to_ = nn.Linear(16, 16), nn.Linear(16, 4), to
        self.register_buffer("shift", torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.to(self.to_ or self.first.weight.dtype))
        return self.last((x + self.shift).relu().to(self.last.weight.dtype))


class Plain(nn.Sequential):
    """Converts nothing."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def batches(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(4, 16).to(dtype) for _ in range(2)]


def compress(net: nn.Module, given: list[Tensor], **fields: Any) -> lp.results.Result:
    return lp.compress(lp.Task(net.eval(), calibrate=given, **fields), WEIGHTS, target=TARGET)


def refused(net: nn.Module, given: list[Tensor], **fields: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        compress(net, given, **fields)
    return caught.value


def follow(error: InputError, net: nn.Module, given: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """What the remedy says, and nothing else."""
    net = copy.deepcopy(net)
    if "model.float()" in error.next:
        net = net.float()
    if "out of the model's code" in error.next:
        net.to_ = None
    named = re.findall(r"(\w+)=", error.next) if "x.float()" in error.next else []
    converted = {
        name: x.float() if isinstance(x, Tensor) else [one.float() for one in x]
        for name, x in given.items()
        if name in named
    }
    return net, {**given, **converted}


def taken(net: nn.Module, fields: dict[str, Any]) -> None:
    """All verbs begin so."""
    begin(in_float32(lp.Task(net.eval(), **fields)), TARGET, Store(), silent)


def right(small: lp.results.Result, net: nn.Module, given: list[Tensor]) -> None:
    """It answers as the network, whose weights have 8 bits now: not more than 2 % apart."""
    with torch.no_grad():
        expected, found = net.float()(given[0].float()), small.model(given[0].float())
    assert float((found - expected).norm() / expected.norm()) < 0.02


def half(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    net.first.to(dtype)
    return net


CASES = {
    "all of it": lambda dtype: (Plain().to(dtype), batches(dtype)),
    "the inputs alone": lambda dtype: (Plain(), batches(dtype)),
    "the model alone": lambda dtype: (Plain().to(dtype), batches()),
    "some layers": lambda dtype: (half(Net(), dtype), batches()),
    "some layers, and the inputs": lambda dtype: (half(Net(), dtype), batches(dtype)),
    "its code converts too": lambda dtype: (Net(dtype).to(dtype), batches(dtype)),
    "its code alone": lambda dtype: (Net(dtype), batches()),
}


TAKEN = ("all of it", "the model alone", "some layers", "some layers, and the inputs")  # in halves
REFUSED = [(kind, dtype) for kind in CASES for dtype in OTHERS if dtype == torch.float64 or kind not in TAKEN]


TORCHS_WORD = {torch.float16: "Half", torch.bfloat16: "BFloat16", torch.float64: "Double"}


@pytest.mark.parametrize(("kind", "dtype"), REFUSED, ids=str)
def test_the_remedy_works(kind: str, dtype: torch.dtype) -> None:
    net, given = CASES[kind](dtype)
    task = {"calibrate": given, "example": given[0][:1], "evaluate": given}
    error = refused(net, given, **{name: x for name, x in task.items() if name != "calibrate"})
    names = str(dtype), TORCHS_WORD.get(dtype, "?")
    assert any(name in str(error) for name in names) or kind == "its code alone"
    mended, task = follow(error, net, task)
    taken(mended, task)


@pytest.mark.parametrize("kind", ["all of it", "its code converts too"])
def test_what_comes_of_it_is_right(kind: str) -> None:
    net, given = CASES[kind](torch.float64)
    mended, task = follow(refused(net, given), net, {"calibrate": given})
    right(compress(mended, task["calibrate"]), mended, given)


def test_inputs_that_no_runtime_is_given() -> None:
    """The module takes them, for it converts; what is built of it could not be fed."""
    net, given = Net(), batches(torch.bfloat16)
    error = refused(net, given)
    assert error.where == "calibrate" and "bfloat16" in error.what and "model.float()" not in error.next
    mended, task = follow(error, net, {"calibrate": given})
    taken(mended, task)


def test_buffers_in_half_are_the_models_own_affair() -> None:
    net = Net()
    net.shift = net.shift.half()
    right(compress(net, batches()), net, batches())


HALVES = [torch.float16, torch.bfloat16]
STEPS: dict[str, Any] = {
    "weights": lp.Quantize(weights=lp.Int(4)),
    "by what flows": lp.Quantize(weights=lp.Int(4), rounding=lp.rounding.GPTQ()),
    "what flows too": lp.Quantize(weights=lp.Int(8), activations=lp.Int(8)),
    "zeros": lp.Prune("weights", 0.5),
    "channels": lp.Prune("channels", 0.5, multiple=1),
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_apply_computes_in_float32(step: str, dtype: torch.dtype) -> None:
    """What is stored is what the float32 network of the same numbers becomes; what comes back is in half."""
    net, recipe = Net().to(dtype).eval(), lp.Recipe([STEPS[step]])
    found = lp.apply(net, recipe, calibrate=batches(dtype), target="eager")
    given = [x.to(dtype).float() for x in batches()]
    right = lp.apply(copy.deepcopy(net).float(), recipe, calibrate=given, target="eager")
    assert {x.dtype for x in found.parameters()} | {found.first.weight.dtype, found.shift.dtype} == {dtype}
    stored = {name: x for name, x in right.state_dict().items() if "_encoded" in name}
    held = found.state_dict()
    assert held.keys() == right.state_dict().keys() and (stored or step == "channels")
    assert [name for name, x in stored.items() if not torch.equal(held[name], x)] == []
    with torch.no_grad():
        close(copy.deepcopy(found).float()(given[0]), right(given[0]), share=0.02)
        close(found(batches(dtype)[0]).float(), right(given[0]), share=0.02)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_files_of_what_apply_gives(dtype: torch.dtype, tmp_path: Any) -> None:
    net = lp.apply(Plain().to(dtype).eval(), WEIGHTS, calibrate=batches(dtype))
    lp.save(tmp_path / "net.lil", net)
    found = lp.load(tmp_path / "net.lil", into=Plain().to(dtype))
    for name, x in net.state_dict().items():
        assert torch.equal(found.state_dict()[name], x) and found.state_dict()[name].dtype == x.dtype
    with torch.no_grad():
        assert torch.equal(found(batches(dtype)[0]), net(batches(dtype)[0]))


def test_parts_in_half_stay_so() -> None:
    net = half(Net(), torch.bfloat16).eval()
    found = lp.apply(net, WEIGHTS, calibrate=batches())
    assert (found.first.weight.dtype, found.first.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (found.last.weight.dtype, found.shift.dtype) == (torch.float32, torch.float32)
    with torch.no_grad():
        close(found(batches()[0]), net(batches()[0]), share=0.02)
