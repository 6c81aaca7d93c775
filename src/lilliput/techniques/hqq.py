"""Half-quadratic quantization: parameters for which most weights are met well, found without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lilliput.encodings import Encoding, Int
from lilliput.encodings.blocks import held_scale
from lilliput.encodings.grids import Grid
from lilliput.errors import RecipeError
from lilliput.techniques.ranges import MSE, Range, Use

Parameters = dict[str, Tensor]  # of each block, [blocks]


@dataclass(frozen=True, repr=False)
class HQQ(Range):
    """Scales (and offsets) of least Σ |w - Q(w)|ᵖ, p < 1: few weights may be far off if many are closer.

    By turns, the largest errors are set aside by shrinkage, and the parameters become the least squares of the rest.
    Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023. There, scales stay
    and offsets of any value are fitted. Here scales are fitted too, the offsets of asymmetric integers stay whole
    numbers, and `bound` keeps scales from shrinking until many weights are clipped. Never worse in its sum than `MSE`,
    its first start. For integers and fixed grids of numbers.

    >>> w = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    >>> found, squares = (Int(4).represent(w, fit.fit(w, Int(4))).decode() for fit in (HQQ(), MSE()))
    >>> bool(((w - found).abs() ** 0.7).sum() < ((w - squares).abs() ** 0.7).sum())
    True
    """

    takes: ClassVar[Mapping[Use, tuple[type[Encoding], ...]]] = {"weights": (Int, Grid), "values": ()}

    p: float = 0.7  # 0 < p < 1
    bound: float = 1.1  # of the squared error of a block, in units of that of `MSE`; inf: none
    steps: int = 20
    beta: float = 10.0  # errors, in units of the scale, shrink by |error|**(p - 1) / beta
    growth: float = 1.01  # of beta at each step

    def __post_init__(self) -> None:
        for wrong, what, remedy in (
            (not 0 < self.p < 1, f"p={self.p}", "use more than 0 and less than 1, such as 0.7"),
            (not self.bound >= 1, f"bound={self.bound}", "use 1 or more, such as 1.1"),
            (self.steps < 1, f"{self.steps} steps", "use 1 or more"),
            (not self.beta > 0, f"beta={self.beta}", "use more than 0, such as 10"),
            (not self.growth >= 1, f"growth={self.growth}", "use 1 or more, such as 1.01"),
        ):
            if wrong:
                raise RecipeError(f"HQQ with {what}", next=remedy)

    def parameters(
        self, points: Tensor, counts: Tensor | None, encoding: Encoding, shape: tuple[int, ...]
    ) -> Mapping[str, Tensor]:
        assert isinstance(encoding, Int | Grid)
        x, rows = encoding.unblocked(points, shape), points
        shaped = encoding.parameter_shape(shape)
        own = {name: part.reshape(-1) for name, part in encoding.fit(x).items()}
        halved = {**own, "scale": held_scale(own["scale"] / 2, encoding.scale)}
        least_squared = {name: part.reshape(-1) for name, part in MSE().fit(x, encoding).items()}
        allowed = self.bound * (rows - encoding.nearest(rows, least_squared)).double().square().sum(1)
        best, least = half_quadratic(rows, least_squared, encoding, self, allowed)
        for start in (own, halved):
            found, reached = half_quadratic(rows, start, encoding, self, allowed)
            best = {name: torch.where(reached < least, found[name], part) for name, part in best.items()}
            least = torch.minimum(reached, least)
        return {name: part.reshape(shaped) for name, part in best.items()}


def half_quadratic(
    rows: Tensor, start: Parameters, encoding: Int | Grid, knobs: HQQ, allowed: Tensor
) -> tuple[Parameters, Tensor]:
    """The best parameters of each block on the way from `start`, and their sums of errors, both [blocks].

    Of those whose squared error is `allowed`, [blocks]; the sum is infinite where none is.
    """
    parameters, beta = start, knobs.beta
    best, least = start, torch.full((len(rows),), torch.inf, dtype=torch.float64)
    for _ in range(knobs.steps + 1):
        rounded = encoding.nearest(rows, parameters)
        apart = (rows - rounded).abs().double()
        error = apart.pow(knobs.p).sum(1)
        better = (error < least) & (apart.square().sum(1) <= allowed)
        least = torch.where(better, error, least)
        best = {name: torch.where(better, part, best[name]) for name, part in parameters.items()}
        unit = parameters["scale"].float()[:, None]
        aside = shrunk((rows - rounded) / unit, knobs.p, beta) * unit
        parameters = least_squares(rows - aside, rounded, parameters, encoding)
        beta *= knobs.growth
    return best, least


def shrunk(x: Tensor, p: float, beta: float) -> Tensor:
    """About the least of ``|e|ᵖ + beta / 2 · (e - x)²``: x nearer to 0 by ``|x|**(p - 1) / beta``, as far as 0."""
    return x.sign() * (x.abs() - x.abs().clamp(min=1e-12).pow(p - 1) / beta).clamp(min=0)


def least_squares(wanted: Tensor, rounded: Tensor, parameters: Parameters, encoding: Int | Grid) -> Parameters:
    """Parameters by which the numbers chosen in `rounded` come nearest to `wanted`, block by block."""
    scale = parameters["scale"].float()[:, None]
    numbers = rounded / scale
    if "offset" not in parameters:
        return {"scale": _fitted(wanted, numbers, scale, encoding)}
    codes = numbers + parameters["offset"].float()[:, None]
    away, mean = codes - codes.mean(1, keepdim=True), wanted.mean(1, keepdim=True)
    slope = (away * wanted).sum(1, keepdim=True) / away.square().sum(1, keepdim=True).clamp(min=1e-30)
    slope = torch.where(slope > 0, slope, scale)
    offset = torch.round(codes.mean(1, keepdim=True) - mean / slope).clamp(*encoding.limits)  # type: ignore[union-attr]
    fitted = _fitted(wanted, codes - offset, scale, encoding)
    return {"scale": fitted, "offset": offset[:, 0].to(parameters["offset"].dtype)}


def _fitted(wanted: Tensor, numbers: Tensor, scale: Tensor, encoding: Int | Grid) -> Tensor:
    """Scales as they will be held, [blocks]; those of blocks that have none keep theirs."""
    squares = numbers.square().sum(1, keepdim=True)
    found = (numbers * wanted).sum(1, keepdim=True) / squares.clamp(min=1e-30)
    return held_scale(torch.where((squares > 0) & (found > 0), found, scale)[:, 0], encoding.scale)
