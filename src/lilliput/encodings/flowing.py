"""Values that flow at the nearest number of a table, times a scale: simulated in float, for no runtime computes so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


@cache
def ascending(table: tuple[float, ...]) -> tuple[float, ...]:
    """The numbers of a table in ascending order; NaN, where a code means none, is left out.

    >>> ascending((0.0, 1.0, math.nan, -1.0, -0.0))
    (-1.0, 0.0, 1.0)
    """
    return tuple(sorted({value for value in table if not math.isnan(value)}))


@torch.library.custom_op("lilliput::project_grid", mutates_args=())
def project_grid(x: Tensor, scale: Tensor, levels: Sequence[float]) -> Tensor:
    """A value that flows at the nearest of `levels`, which ascend, times `scale`, []."""
    numbers = torch.tensor(levels, dtype=torch.float32, device=x.device) * scale
    return numbers[_places(x.float().contiguous(), numbers)].to(x.dtype)


@project_grid.register_fake
def _(x: Tensor, scale: Tensor, levels: Sequence[float]) -> Tensor:
    return torch.empty_like(x)


def _remember_inside(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, scale, levels = inputs
    ctx.save_for_backward((x >= levels[0] * scale) & (x <= levels[-1] * scale))


def _straight_through(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    (inside,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return grad * inside, None, None


torch.library.register_autograd("lilliput::project_grid", _straight_through, setup_context=_remember_inside)


@torch.library.custom_op("lilliput::project_grid_dynamic", mutates_args=())
def project_grid_dynamic(x: Tensor, tables: Sequence[float], choices: int, axis: int, group: int) -> Tensor:
    """A value that flows at the nearest of some numbers times a scale found at run time.

    Each `group` of neighbours along `axis` has a scale of its own (0: one for all), and takes that one of `choices`
    ascending tables of equal length, given one after the other, which has the least squared error.
    """
    rows = grouped(x.float(), axis, group)
    each = torch.tensor(tables, dtype=torch.float32, device=x.device).reshape(choices, -1)
    best, least = rows, torch.full_like(rows[..., :1], torch.inf)
    for levels in each:
        near = _at_own_scale(rows, levels)
        error = (near - rows).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, near, best), torch.minimum(error, least)
    return ungrouped(best, tuple(x.shape), axis, group).to(x.dtype)


@project_grid_dynamic.register_fake
def _(x: Tensor, tables: Sequence[float], choices: int, axis: int, group: int) -> Tensor:
    return torch.empty_like(x)


def _nothing(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:
    pass


def _pass_on(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad, None, None, None, None


torch.library.register_autograd("lilliput::project_grid_dynamic", _pass_on, setup_context=_nothing)


def grouped(x: Tensor, axis: int, group: int) -> Tensor:
    """`x` as [..., elements] of which the last share a scale: groups along `axis`, or all where `group` is 0."""
    return x.movedim(axis, -1).unflatten(-1, (-1, group)).contiguous() if group else x.reshape(1, -1)


def ungrouped(rows: Tensor, shape: tuple[int, ...], axis: int, group: int) -> Tensor:
    """What `grouped` made of a tensor of `shape`, laid out as that tensor again."""
    return (rows.flatten(-2).movedim(-1, axis) if group else rows.reshape(shape)).contiguous()


def _at_own_scale(rows: Tensor, levels: Tensor) -> Tensor:
    """Each row at the nearest of `levels` times the scale at which they reach its ends, moved once to least error."""
    scale = rows.amax(-1, keepdim=True) / levels[-1]
    if levels[0] < 0:
        scale = torch.maximum(scale, rows.amin(-1, keepdim=True) / levels[0])
    scale = torch.where(scale > 0, scale, 1.0)
    near = levels[_places(rows / scale, levels)]
    squares, products = near.square().sum(-1, keepdim=True), (rows * near).sum(-1, keepdim=True)
    moved = products / squares
    scale = torch.where((squares > 0) & (products > 0), moved, scale)
    return levels[_places(rows / scale, levels)] * scale


def _places(x: Tensor, levels: Tensor) -> Tensor:
    """Which of the ascending `levels` is nearest to each element; of two the lower."""
    return torch.searchsorted((levels[1:] + levels[:-1]) / 2, x)
