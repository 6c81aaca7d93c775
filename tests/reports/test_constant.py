"""Inputs that never vary, and layers of zeros, under roundings that look at what flows.

Reported as AutoGPTQ#572 and #708: GPTQ fails in its Cholesky factor, here where all calibration batches come from one
class, one timestep or one sample, for then the centred moments are 0 but for rounding, and correlations inf / inf.
Right is: finite weights, and on those very batches no worse than rounding to the nearest.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.model.views.view import Call
from lilliput.techniques.inputs import Stop
from lilliput.techniques.rounding import GPTQ, AdaRound
from lilliput.techniques.technique import Technique

TARGET = lp.targets.OnnxRuntime(threads=1, seconds=1)
CALL = Call("linear", "linear", "fc:linear#0", ("input x", "tensor fc.weight"), (), weights=("fc.weight",))
NOISE = 2e-6  # of answers: sums in float32


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def first_layer_zero() -> nn.Module:
    net = mlp()
    net[0].weight.data.zero_()  # type: ignore[index,operator,union-attr]
    return net


def second_layer_zero() -> nn.Module:
    net = mlp()
    net[2].weight.data.zero_()  # type: ignore[index,operator,union-attr]
    return net


class Timestep(nn.Module):
    """The head of a diffusion network: an embedding of the time beside a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32))
        self.c, self.o = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 3, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.t((t[:, None] / torch.arange(1, 33)).sin())
        return self.o((self.c(x) + time[..., None, None]).relu())  # type: ignore[no-any-return]


def timestep() -> nn.Module:
    torch.manual_seed(0)
    return Timestep().eval()


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def partly() -> Tensor:
    x = drawn(16, 24)
    x[:, ::3], x[:, 5] = x[:1, ::3].clone(), 0
    return x


Batches = list[Tensor] | list[tuple[Tensor, Tensor]]
CASES: dict[str, tuple[Callable[[], nn.Module], Batches]] = {
    "one class": (mlp, [drawn(1, 24).repeat(4, 1)] * 3),
    "one sample": (mlp, [drawn(1, 24)]),
    "zeros": (mlp, [torch.zeros(4, 24)] * 2),
    "ones": (mlp, [torch.ones(4, 24)] * 2),
    "large": (mlp, [torch.full((4, 24), 1e15)] * 2),
    "tiny": (mlp, [torch.full((4, 24), 1e-20)] * 2),
    "hardly varies": (mlp, [drawn(1, 24) + 1e-6 * drawn(8, 24), drawn(1, 24)]),
    "some channels": (mlp, [partly(), partly().flip(0)]),
    "a layer of zeros": (first_layer_zero, list(drawn(16, 24).split(4))),
    "a last layer of zeros": (second_layer_zero, list(drawn(16, 24).split(4))),
    "one timestep": (timestep, [(drawn(2, 3, 8, 8), torch.tensor([7.0, 7.0]))] * 3),
}
INT4 = lp.Int(4)
ROUNDINGS: dict[str, list[Technique]] = {
    "GPTQ": [lp.Quantize(weights=INT4, rounding=lp.rounding.GPTQ())],
    "GPTQ, swept": [lp.Quantize(weights=INT4, rounding=lp.rounding.GPTQ(sweeps=2))],
    "GPTQ, shrunk": [lp.Quantize(weights=INT4, rounding=lp.rounding.GPTQ(shrink=0.5, correct=False))],
    "AdaRound": [lp.Quantize(weights=INT4, rounding=lp.rounding.AdaRound(steps=20))],
    "HQQ": [lp.Quantize(weights=INT4, fit=lp.ranges.HQQ(), rounding=lp.rounding.GPTQ())],
    "AWQ": [
        lp.techniques.Equalize(lp.rescaling.AWQ(weights=INT4)),
        lp.Quantize(weights=INT4, rounding=lp.rounding.GPTQ()),
    ],
    "SmoothQuant": [
        lp.techniques.Equalize(lp.rescaling.SmoothQuant()),
        lp.Quantize(weights=INT4, rounding=lp.rounding.GPTQ()),
    ],
}


def error(make: Callable[[], nn.Module], batches: Batches, steps: list[Technique]) -> float:
    """How far the answers to the batches are from the module's own, of the answers' size."""
    net = make()
    driver, _ = begin(lp.Task(net, calibrate=batches), TARGET, Store(None), lambda *told: None)
    follow(lp.Recipe(steps), driver)
    assert all(bool(x.isfinite().all()) for x in driver.model.state_dict().values() if x.is_floating_point())
    apart, size = 0.0, 0.0
    with torch.no_grad():
        for batch in batches:
            given = batch if isinstance(batch, tuple) else (batch,)
            found, right = driver.model(*given).double(), net(*given).double()
            apart, size = apart + float((found - right).square().sum()), size + float(right.square().sum())
    return (apart / size) ** 0.5  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_constant_inputs(name: str) -> None:
    make, batches = CASES[name]
    nearest = error(make, batches, [lp.Quantize(weights=INT4)])
    for rounding in ROUNDINGS if name == "some channels" else ("GPTQ", "AdaRound")[: 1 + (name == "one class")]:
        assert error(make, batches, ROUNDINGS[rounding]) <= nearest * 1.02 + NOISE, rounding


@pytest.mark.parametrize("name", ["one sample", "a layer of zeros"])
def test_brecq_ends_in_numbers(name: str) -> None:
    rounding = lp.rounding.BRECQ(steps=20, blocks="*")
    assert error(*CASES[name], [lp.Quantize(weights=INT4, rounding=rounding)]) < 0.3


@pytest.mark.parametrize("rounding", [GPTQ(), GPTQ(correct=False), AdaRound(steps=20)], ids=repr)
@pytest.mark.parametrize("absorbed", [True, False])
def test_a_layer_never_does_worse_than_its_nearest_numbers(rounding: lp.rounding.GPTQ, absorbed: bool) -> None:
    """Of few samples in common: what varies is far less than what is damped, or nothing."""
    weight, one = drawn(8, 24), drawn(1, 24)
    for x in (one.repeat(6, 1), one, one + 1e-7 * drawn(6, 24), one + 1e-3 * drawn(6, 24), drawn(6, 24)):
        stop = Stop(CALL, lambda x=x: {0: x}, lambda x=x: {0: x})  # type: ignore[misc]
        stop.absorbed = absorbed
        rounded, found = rounding.round(weight, INT4, INT4.fit(weight), stop)
        away = x - x.mean(0) if absorbed else x
        least = ((INT4.represent(weight).decode() - weight) @ away.T).square().sum()
        left = ((INT4.represent(rounded, found).decode() - weight) @ away.T).square().sum()
        assert bool(rounded.isfinite().all()) and left <= least * 1.001 + 1e-10
