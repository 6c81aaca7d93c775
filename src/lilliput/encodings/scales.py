"""Scales at which a few fixed numbers represent rows of elements: tensors to tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lilliput.encodings.codebook import places_of

_STARTS, _CUTS, _TURNS = 4, (0.8, 0.6, 0.4, 0.2), 4  # of the search for a scale


def scale_of(
    rows: Tensor,
    levels: Tensor,
    held: Callable[[Tensor], Tensor] = lambda scale: scale,
    counts: Tensor | None = None,
) -> Tensor:
    """Scales of least squared error for each row of a grid, [rows]: from several starts, codes and scale by turns.

    The largest element starts at each of the largest levels, and outside of all; `held` says what becomes of a scale
    when it is stored, `counts` how often each element occurs, [rows or 1, elements].
    """
    weights: Tensor | float = 1.0 if counts is None else counts.to(rows.dtype)
    largest, top = rows.abs().amax(1, keepdim=True), levels.abs().max()
    starts = [*(largest / level for level in levels[levels > 0][-_STARTS:]), *(largest / top * cut for cut in _CUTS)]
    best = torch.where(largest > 0, starts[-1], 1.0)
    least = torch.full_like(best, torch.inf, dtype=torch.float64)
    for start in starts:
        scale = torch.where(largest > 0, start, 1.0)
        for _ in range(_TURNS):
            tried = held(scale)
            numbers = levels[places_of(rows / tried, levels[None])]
            error = ((rows - numbers * tried).double().square() * weights).sum(1, keepdim=True)
            better = (error < least) & (tried > 0)
            best, least = torch.where(better, tried, best), torch.where(better, error, least)
            squares = (numbers.square() * weights).sum(1, keepdim=True)
            fitted = (rows * numbers * weights).sum(1, keepdim=True) / squares.clamp(min=1e-30)
            scale = torch.where((squares > 0) & (fitted > 0), fitted, scale)
    return best[:, 0]


def scale_to_reach(low: Tensor, high: Tensor, levels: Tensor) -> Tensor:
    """The least scales at which ascending `levels` reach from `low` to `high`, each [blocks]; 1 where both are 0."""
    scale = high.clamp(min=0) / levels[-1]
    if levels[0] < 0:
        scale = torch.maximum(scale, low.clamp(max=0) / levels[0])
    return torch.where(scale > 0, scale, torch.ones_like(scale))
