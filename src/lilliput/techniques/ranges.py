"""How a range is fitted to the values that it must hold.

Each is one function from points, [blocks, points], and how often each occurs, [blocks or 1, points] or None for once,
to the low and the high end of each block, [blocks]. Weights come as they are, activations as histograms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.encodings import Encoding, Int, Sparse
from lilliput.errors import RecipeError
from lilliput.plain import short_repr
from lilliput.techniques.statistics import Statistics


@dataclass(frozen=True, repr=False)
class Fitting(ABC):
    """A way to find the parameters of an encoding (scale, offset, …) for a tensor, from its values alone."""

    @abstractmethod
    def fit(self, x: Tensor, encoding: Encoding) -> Mapping[str, Tensor]:
        """The parameters; those of encodings that this way knows nothing of are what they find themselves."""

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True, repr=False)
class Range(Fitting):
    """A way to choose the range of a uniform grid."""

    @abstractmethod
    def find(self, points: Tensor, counts: Tensor | None, encoding: Int) -> tuple[Tensor, Tensor]:
        """Low and high ends, each [blocks], for points [blocks, points]."""

    def fit(self, x: Tensor, encoding: Encoding) -> Mapping[str, Tensor]:
        """Scale and offset of a tensor's blocks, for encodings that have a range; the others fit themselves."""
        if isinstance(encoding, Sparse) and encoding.values is not None:
            return self.fit(x, encoding.values)
        if not isinstance(encoding, Int) or not x.numel():
            return encoding.fit(x)
        low, high = self.find(encoding.blocks(x.detach().float()), None, encoding)
        return encoding.from_range(low, high, tuple(x.shape))

    def of_value(self, seen: Statistics, encoding: Int) -> Mapping[str, Tensor]:
        """Scale and offset of a value that flows, from its histogram."""
        points, counts = seen.points()
        low, high = self.find(points, counts, encoding)
        return encoding.from_range(low, high, ())


@dataclass(frozen=True, repr=False)
class MinMax(Range):
    """Everything is inside; one far point makes all steps coarse.

    >>> MinMax().find(torch.tensor([[-1.0, 0.0, 3.0]]), None, Int(8))
    (tensor([-1.]), tensor([3.]))
    """

    def find(self, points: Tensor, counts: Tensor | None, encoding: Int) -> tuple[Tensor, Tensor]:
        return points.amin(1), points.amax(1)


@dataclass(frozen=True, repr=False)
class Percentile(Range):
    """All but the outermost ``100 - percent`` percent, split evenly over both ends, is inside."""

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percent <= 100:
            raise RecipeError(f"Percentile of {self.percent}", next="use more than 50 and at most 100")

    def find(self, points: Tensor, counts: Tensor | None, encoding: Int) -> tuple[Tensor, Tensor]:
        ordered, order = points.sort(1)
        weights = torch.ones_like(points, dtype=torch.float64) if counts is None else counts.expand(points.shape)
        reached = weights.gather(1, order).double().cumsum(1)
        outside = reached[:, -1:] * (100 - self.percent) / 200
        low = (reached <= outside).sum(1, keepdim=True).clamp(max=points.shape[1] - 1)
        high = (reached < reached[:, -1:] - outside).sum(1, keepdim=True).clamp(max=points.shape[1] - 1)
        return ordered.gather(1, low)[:, 0], ordered.gather(1, high)[:, 0]


@dataclass(frozen=True, repr=False)
class MSE(Range):
    """The range whose grid has the least squared error, searched over shrunken ends."""

    steps: int = 24  # ends tried between the smallest share and the whole
    smallest: float = 0.2  # share of the full range

    def find(self, points: Tensor, counts: Tensor | None, encoding: Int) -> tuple[Tensor, Tensor]:
        low, high = points.amin(1).clamp(max=0), points.amax(1).clamp(min=0)
        best_low, best_high = low.clone(), high.clone()
        least = torch.full_like(low, torch.inf, dtype=torch.float64)
        for low_share, high_share in self._shares(encoding.symmetric is False, bool((low < 0).any())):
            try_low, try_high = low * low_share, high * high_share
            error = _squared_error(points, counts, encoding, try_low, try_high)
            better = error < least
            least = torch.where(better, error, least)
            best_low, best_high = torch.where(better, try_low, best_low), torch.where(better, try_high, best_high)
        return best_low, best_high

    def _shares(self, two_ends: bool, below_zero: bool) -> Iterator[tuple[float, float]]:
        shares = torch.linspace(1.0, self.smallest, self.steps).tolist()
        if not two_ends or not below_zero:
            yield from ((share, share) for share in shares)
        else:
            yield from ((a, b) for a in shares for b in shares)


def _squared_error(points: Tensor, counts: Tensor | None, encoding: Int, low: Tensor, high: Tensor) -> Tensor:
    """Σ counts · (x - grid(x))², [blocks]."""
    first, last = encoding.limits
    if encoding.symmetric is False:
        scale = ((high - low) / (last - first)).clamp(min=1e-30)[:, None]
        offset = torch.round(first - low[:, None] / scale).clamp(first, last)
        grid = (torch.clamp(torch.round(points / scale) + offset, first, last) - offset) * scale
    else:
        scale = (torch.maximum(-low, high) / last).clamp(min=1e-30)[:, None]
        grid = torch.clamp(torch.round(points / scale), first, last) * scale
    squares = (grid - points).double().square()
    return (squares if counts is None else squares * counts).sum(1)


RANGES: dict[str, type[Range]] = {"MinMax": MinMax, "Percentile": Percentile, "MSE": MSE}
