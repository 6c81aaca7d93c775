"""The half-quadratic fit: never worse than where it starts, better where few weights are far off, for every grid."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from compared import close
from torch import Tensor

import lilliput as lp
from lilliput.encodings import (
    NF4,
    BFloat16,
    Codebook,
    Encoding,
    Float16,
    Int,
    MiniFloat,
    PowerOfTwo,
    Signs,
    Sparse,
    mxfp4,
)
from lilliput.errors import RecipeError
from lilliput.techniques.hqq import HQQ, least_squares, shrunk
from lilliput.techniques.ranges import MSE

ENCODINGS: tuple[Encoding, ...] = (
    Int(4),
    Int(2, group=32),
    Int(3, symmetric=False, group=32),
    Int(4, symmetric=False, per="tensor", scale=Float16()),
    Int(4, axis=1),
    Int(3, symmetric=False, group=32, minimum=Float16()),
    Int(2, symmetric=False, axis=1, scale=Float16(), minimum=BFloat16()),
    PowerOfTwo(4),
    PowerOfTwo(5, terms=2, group=32, scale=BFloat16()),
    Signs(2),
    Signs(3, per="tensor"),
    NF4(group=64),
    MiniFloat("e2m1", group=32),
    mxfp4(),
    Sparse(Int(4)),
)


def weights(shape: tuple[int, ...] = (16, 64)) -> Tensor:
    """Normally distributed, but for a few that are far off."""
    x = torch.randn(shape) * 0.02
    return torch.where(torch.rand(shape) < 0.01, x * 12, x)


def off(x: Tensor, encoding: Encoding, parameters: object, p: float) -> float:
    return float((x - encoding.represent(x, parameters).decode()).abs().double().pow(p).sum())  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
@pytest.mark.parametrize("p", [0.5, 0.9])
def test_never_worse_than_its_starts(encoding: Encoding, p: float) -> None:
    x = weights()
    inner = encoding.values if isinstance(encoding, Sparse) else encoding
    assert inner is not None
    found, free = HQQ(p=p).fit(x, encoding), HQQ(p=p, bound=math.inf).fit(x, encoding)
    plain, squares = inner.fit(x), MSE().fit(x, encoding)
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {k: (v.shape, v.dtype) for k, v in plain.items()}
    assert off(x, encoding, found, p) <= off(x, encoding, squares, p) * (1 + 1e-6)
    assert off(x, encoding, found, 2) <= off(x, encoding, squares, 2) * (1.1 + 1e-6)
    assert off(x, encoding, free, p) <= min(off(x, encoding, start, p) for start in (plain, squares, found)) * (
        1 + 1e-6
    )
    assert off(x, encoding, free, p) < off(x, encoding, plain, p)


def test_most_weights_are_met_better_than_by_least_squares() -> None:
    x, encoding = weights((64, 256)), Int(3, group=64)
    errors = [
        (x - encoding.represent(x, fit.fit(x, encoding)).decode()).abs() for fit in (HQQ(), MSE())
    ]  # the median tells of most, the squares of all
    assert errors[0].median() < 0.98 * errors[1].median()


@pytest.mark.parametrize("encoding", [Float16(), Codebook(8), Sparse(Float16())], ids=repr)
def test_what_has_no_scale_is_refused(encoding: Encoding) -> None:
    with pytest.raises(RecipeError, match=r"HQQ\(\) for weights as"):
        lp.Quantize(weights=encoding, fit=HQQ())


def test_shrinkage_is_about_the_least_of_its_sum() -> None:
    p, beta = 0.7, 10.0
    e = torch.linspace(-3, 3, 60001, dtype=torch.float64)
    for x in (-2.0, -0.5, 0.05, 0.3, 1.0):
        best = e[(e.abs().pow(p) + beta / 2 * (e - x).square()).argmin()]
        found = shrunk(torch.tensor(x, dtype=torch.float64), p, beta)
        assert abs(float(found - best)) < 0.16 and abs(float(found)) <= abs(x)


def test_least_squares_find_the_grid_again() -> None:
    encoding = Int(4, symmetric=False)
    true = {"scale": torch.tensor([0.3, 2.0]), "offset": torch.tensor([3, 9], dtype=torch.uint8)}
    numbers = torch.arange(16.0)[None] - true["offset"][:, None]
    wanted = numbers * true["scale"][:, None]
    apart = {"scale": torch.tensor([0.4, 1.5]), "offset": torch.tensor([3, 9], dtype=torch.uint8)}
    found = least_squares(wanted, numbers * apart["scale"][:, None], apart, encoding)
    close(found["scale"], true["scale"])
    assert torch.equal(found["offset"], true["offset"])


@pytest.mark.parametrize("x", [torch.zeros(4, 32), torch.full((4, 32), 0.5), torch.zeros(0, 32)], ids=str)
def test_weights_without_a_range(x: Tensor) -> None:
    for encoding in (Int(4), Int(4, symmetric=False), NF4()):
        close(encoding.represent(x, HQQ().fit(x, encoding)).decode(), x, rtol=1e-3, atol=1e-6)


def test_bad_input_is_answered() -> None:
    for wrong in ({"p": 0.0}, {"p": 1.0}, {"bound": 0.9}, {"steps": 0}, {"beta": 0.0}, {"growth": 0.9}):
        with pytest.raises(RecipeError, match="HQQ with"):
            replace(HQQ(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"HQQ.* for values that flow"):
        lp.Recipe([lp.Quantize(activations=Int(8), calibration=HQQ())])


def test_a_step_takes_it() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 16)).eval()
    small = lp.compress(
        net,
        lp.Recipe([lp.Quantize(weights=Int(4, group=32), fit=HQQ())]),
        calibrate=[torch.randn(4, 64)],
        target=lp.targets.OnnxRuntime(seconds=1),
    )
    exact = net[0].weight.detach()
    found = small.model.get_submodule("0").weight
    wanted = Int(4, group=32).represent(exact, HQQ().fit(exact, Int(4, group=32))).decode()
    close(found, wanted, rtol=0, atol=0)


def test_minima_are_the_offsets_of_any_value() -> None:
    """The line of least squares through what the codes are to mean, against NumPy's."""
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)) + 0.3
    encoding = Int(3, symmetric=False, minimum=BFloat16())
    codes = (x - x.amin(1, keepdim=True)).round().clamp(0, 7)
    start = {"scale": torch.ones(6), "minimum": x.amin(1)}
    rounded = codes + start["minimum"][:, None]
    found = least_squares(x, rounded, start, encoding)
    for row in range(6):
        slope, above = np.polyfit(codes[row].double().numpy(), x[row].double().numpy(), 1)
        assert float(found["scale"][row]) == pytest.approx(slope, rel=1e-5)
        assert float(found["minimum"][row]) == pytest.approx(above, rel=2**-8, abs=1e-6)


def test_what_is_held_together_is_never_worse_than_by_squared_error() -> None:
    x, six = weights((16, 256)), Int(6, group=8, symmetric=False)
    for encoding in (
        Int(3, group=32, symmetric=False, scale=six, minimum=six),
        Int(3, group=32, scale=six),
        Int(3, group=32, symmetric=False, scale=six),
    ):
        found, squares = HQQ().fit(x, encoding), MSE().fit(x, encoding)
        assert off(x, encoding, found, 0.7) <= off(x, encoding, squares, 0.7) * (1 + 1e-6)
        assert {name: part.shape for name, part in found.items()} == {
            name: part.shape for name, part in squares.items()
        }
    free = Int(3, group=32, symmetric=False, minimum=Float16())
    assert off(x, free, HQQ().fit(x, free), 0.7) < 0.99 * off(x, free, MSE().fit(x, free), 0.7)
