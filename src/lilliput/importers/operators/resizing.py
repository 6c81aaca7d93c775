"""Operators that make images larger or smaller."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lilliput.importers.operators.numbers import Numbers, ints
from lilliput.importers.operators.table import operator

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_HALF = ("half_pixel", "pytorch_half_pixel")


@operator("Upsample")
def upsample(X: Tensor, scales: Numbers, *, mode: str = "nearest") -> Tensor:
    return _resized(X, ints(scales), None, mode, "asymmetric", "floor", -0.75)


@operator("Resize")
def resize_by_scales(X: Tensor, scales: Numbers, *, mode: str = "nearest") -> Tensor:
    """As it was in opset 10."""
    return _resized(X, ints(scales), None, mode, "asymmetric", "floor", -0.75)


@operator(
    "Resize",
    since=11,
    only={
        "coordinate_transformation_mode": (*_HALF, "align_corners", "asymmetric", "half_pixel_symmetric"),
        "antialias": (0,),
        "exclude_outside": (0,),
        "keep_aspect_ratio_policy": ("stretch",),
    },
)
def resize(
    X: Tensor,
    roi: Numbers = None,
    scales: Numbers = None,
    sizes: Numbers = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: list[int] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    where = coordinate_transformation_mode
    on = [axis % X.dim() for axis in axes] if axes is not None else list(range(X.dim()))
    by = None if scales is None or not ints(scales) else _each(ints(scales), on, [1.0] * X.dim())
    to = None if sizes is None or not ints(sizes) else _each(ints(sizes), on, list(X.shape))
    return _resized(X, by, to, mode, where, nearest_mode, cubic_coeff_a)


def _each(given: Sequence[Any], on: Sequence[int], otherwise: list[Any]) -> list[Any]:
    for axis, one in zip(on, given, strict=True):
        otherwise[axis] = one
    return otherwise


def _resized(
    x: Tensor, by: Sequence[float] | None, to: list[int] | None, mode: str, where: str, rounding: str, cubic: float
) -> Tensor:
    """By factors or to lengths, of all axes; by torch's own function where that does the same."""
    lengths = to or [_length(n, scale) for n, scale in zip(x.shape, by or [], strict=True)]
    factors = by or [new / old for new, old in zip(lengths, x.shape, strict=True)]
    alone = where == "pytorch_half_pixel" and any(type(n) is int and n == 1 for n in lengths[2:])
    known = None if alone else _of_torch(mode, where, rounding, cubic, x.dim() - 2, factors)
    if known is not None and all(type(n) is float and n == 1 for n in map(float, _fixed(factors[:2]))):
        align = where == "align_corners" if known != "nearest" else None
        if by is not None:
            return F.interpolate(x, scale_factor=by[2:], mode=known, align_corners=align)
        return F.interpolate(x, size=lengths[2:], mode=known, align_corners=align)
    ways: dict[str, Callable[..., Tensor]] = {
        "nearest": partial(_nearest, rounding=rounding),
        "linear": _linear,
        "cubic": partial(_cubic, a=cubic),
    }
    for axis, (length, factor) in enumerate(zip(lengths, factors, strict=True)):
        if not (type(factor) in (int, float) and factor == 1):
            x = ways[mode](x, axis, _places(x.shape[axis], length, factor, where))
    return x


def _fixed(factors: Sequence[Any]) -> list[float]:
    """Factors of axes that are no space; one that varies is the same on either side."""
    return [1.0 if isinstance(factor, torch.SymFloat) else float(factor) for factor in factors]


def _length(n: int, scale: float) -> int:
    return n * int(scale) if float(scale).is_integer() else math.floor(n * scale)


def _of_torch(mode: str, where: str, rounding: str, cubic: float, axes: int, factors: Sequence[Any]) -> str | None:
    """The mode of torch that computes the same, if one does."""
    if mode == "nearest":
        whole = all(isinstance(f, float | int) and float(f).is_integer() for f in factors)
        same = where == "asymmetric" and rounding == "floor"
        return "nearest" if same or (where in _HALF and rounding.startswith("round") and whole) else None
    if where not in (*_HALF, "align_corners"):
        return None
    if mode == "linear":
        return _LINEAR.get(axes)
    return "bicubic" if axes == 2 and abs(cubic + 0.75) < 1e-6 else None


def _places(old: int, new: int, factor: float, where: str) -> Tensor:
    """Where each element of the new axis lies on the old one."""
    at = torch.arange(new, dtype=torch.float32)
    if where == "asymmetric":
        return at / factor
    if where == "align_corners":
        return at * ((old - 1) / (new - 1) if new > 1 else 0.0)
    if where == "half_pixel_symmetric":
        centre = old / 2
        return (at + 0.5) / factor - 0.5 + centre * (1 - new / (factor * old))
    return torch.zeros(1) if where == "pytorch_half_pixel" and new == 1 else (at + 0.5) / factor - 0.5


def _nearest(x: Tensor, axis: int, places: Tensor, rounding: str) -> Tensor:
    of: dict[str, Callable[[Tensor], Tensor]] = {
        "floor": torch.floor,
        "ceil": torch.ceil,
        "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
        "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    }
    return x.index_select(axis, of[rounding](places).to(torch.int64).clamp(0, x.shape[axis] - 1))


def _linear(x: Tensor, axis: int, places: Tensor) -> Tensor:
    last = x.shape[axis] - 1
    at = places.clamp(0, last)
    below = at.floor().to(torch.int64)
    share = (at - below).reshape([-1] + [1] * (x.dim() - 1 - axis)).to(x.dtype)
    upper = x.index_select(axis, (below + 1).clamp(max=last))
    return x.index_select(axis, below) * (1 - share) + upper * share


def _cubic(x: Tensor, axis: int, places: Tensor, a: float) -> Tensor:
    """By the cubic curve through four neighbours; those beyond an end are the end."""
    below = places.floor()
    made = torch.zeros(())
    for step in (-1, 0, 1, 2):
        away = (places - below - step).abs()
        near = ((a + 2) * away - (a + 3)) * away.square() + 1
        far = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
        share = torch.where(away <= 1, near, far).reshape([-1] + [1] * (x.dim() - 1 - axis)).to(x.dtype)
        at = (below + step).to(torch.int64).clamp(0, x.shape[axis] - 1)
        made = made + x.index_select(axis, at) * share
    return made
