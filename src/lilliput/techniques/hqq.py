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
    and offsets of any value are fitted, which are the minima of ``Int(symmetric=False, minimum=Float16())``; without
    `minimum` offsets stay whole numbers. Here scales are fitted too, and `bound` keeps them from shrinking until many
    weights are clipped. Never worse in its sum than `MSE`, its first start. For integers and fixed grids of numbers.

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
        halved = {**own, "scale": _scales(own["scale"] / 2, encoding)}
        if "minimum" in own:  # the middle stays where it is
            halved["minimum"] = _minima(own["minimum"] + halved["scale"] * encoding.limits[1] / 2, encoding)  # type: ignore[union-attr]
        least_squared = {name: part.reshape(-1) for name, part in MSE().fit(x, encoding).items()}
        allowed = self.bound * (rows - encoding.nearest(rows, least_squared)).double().square().sum(1)
        best, least = half_quadratic(rows, least_squared, encoding, self, allowed)
        for start in (own, halved):
            found, reached = half_quadratic(rows, start, encoding, self, allowed)
            best = {name: torch.where(reached < least, found[name], part) for name, part in best.items()}
            least = torch.minimum(reached, least)
        return self._held({name: part.reshape(shaped) for name, part in best.items()}, least_squared, rows, encoding)

    def _held(
        self, found: Parameters, least_squared: Parameters, rows: Tensor, encoding: Int | Grid
    ) -> Mapping[str, Tensor]:
        """What was found as it will be held; where many are held together, what that costs may be more than was won."""
        if not _together(encoding):
            return found
        assert isinstance(encoding, Int)
        shaped = found["scale"].shape
        held = {**found, "scale": held_scale(found["scale"], encoding.scale)}
        if encoding.minimum is not None:
            held["minimum"] = encoding.minimum.hold(found["minimum"]).decode()
        others = {name: part.reshape(shaped) for name, part in least_squared.items()}

        def error(given: Parameters) -> float:
            flat = {name: part.reshape(-1) for name, part in given.items()}
            return float((rows - encoding.nearest(rows, flat)).abs().double().pow(self.p).sum())

        return min(held, others, key=error)


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
    if "minimum" in parameters:
        codes = (rounded - parameters["minimum"].float()[:, None]) / scale
        found = _scales(_slope(wanted, codes, scale)[:, 0], encoding)
        return {"scale": found, "minimum": _minima(wanted.mean(1) - found * codes.mean(1), encoding)}
    if "offset" not in parameters:
        return {"scale": _fitted(wanted, numbers, scale, encoding)}
    codes, mean = numbers + parameters["offset"].float()[:, None], wanted.mean(1, keepdim=True)
    slope = _slope(wanted, codes, scale)
    offset = torch.round(codes.mean(1, keepdim=True) - mean / slope).clamp(*encoding.limits)  # type: ignore[union-attr]
    fitted = _fitted(wanted, codes - offset, scale, encoding)
    return {"scale": fitted, "offset": offset[:, 0].to(parameters["offset"].dtype)}


def _slope(wanted: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """The scale of least squares where what is added is free, [blocks, 1]; those of blocks without one stay."""
    away = codes - codes.mean(1, keepdim=True)
    found = (away * wanted).sum(1, keepdim=True) / away.square().sum(1, keepdim=True).clamp(min=1e-30)
    return torch.where(found > 0, found, scale)


def _fitted(wanted: Tensor, numbers: Tensor, scale: Tensor, encoding: Int | Grid) -> Tensor:
    """Scales as they will be held, [blocks]; those of blocks that have none keep theirs."""
    squares = numbers.square().sum(1, keepdim=True)
    found = (numbers * wanted).sum(1, keepdim=True) / squares.clamp(min=1e-30)
    return _scales(torch.where((squares > 0) & (found > 0), found, scale)[:, 0], encoding)


def _scales(scale: Tensor, encoding: Int | Grid) -> Tensor:
    """Scales of blocks as they will be held; where many are held together, as they are until all are known."""
    return scale if _together(encoding) else held_scale(scale, encoding.scale)


def _minima(minimum: Tensor, encoding: Int | Grid) -> Tensor:
    held = encoding.minimum if isinstance(encoding, Int) else None
    return minimum if held is None or _together(encoding) else held.hold(minimum).decode()


def _together(encoding: Int | Grid) -> bool:
    """Whether some parameters are held as integers that share parameters of their own."""
    return any(isinstance(held, Int) for held in encoding.nested().values())
