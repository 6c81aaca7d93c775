"""How the parameters of an encoding are fitted: the range or scale of steps and grids, or shared levels.

Each fit takes points, [blocks, points], and how often each occurs, [blocks or 1, points] or None for once. Weights come
as they are, activations as histograms. What a fit `takes` is the table of what combines with what.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lilliput.encodings import BFloat16, Blockwise, Codebook, Encoding, Fixed, Float16, Int, LowRank, Sparse
from lilliput.encodings.blocks import Blocked
from lilliput.encodings.codebook import interval_levels, quantile_levels
from lilliput.encodings.grids import Grid
from lilliput.errors import RecipeError
from lilliput.plain import short_repr
from lilliput.techniques.statistics import Statistics

Use = Literal["weights", "values"]
_AT_ONCE = 1 << 16  # points, times the ranges that are tried on them: what a processor holds near


@dataclass(frozen=True, repr=False)
class Range(ABC):
    """A way to find the parameters of an encoding."""

    takes: ClassVar[Mapping[Use, tuple[type[Encoding], ...]]]  # the formats that it fits, by what is represented

    @abstractmethod
    def parameters(
        self, points: Tensor, counts: Tensor | None, encoding: Encoding, shape: tuple[int, ...]
    ) -> Mapping[str, Tensor]:
        """Scale, offset, levels … of a tensor of `shape` whose blocks have these points."""

    def fit(self, x: Tensor, encoding: Encoding) -> Mapping[str, Tensor]:
        """The parameters of a tensor's blocks; an encoding that has none is given none."""
        if isinstance(encoding, Sparse) and encoding.values is not None:
            return self.fit(x, encoding.values)
        if not isinstance(encoding, Blocked) or not x.numel():
            return encoding.fit(x)
        return self.parameters(encoding.rows(x), None, encoding, tuple(x.shape))

    def of_value(self, seen: Statistics, encoding: Encoding) -> Mapping[str, Tensor]:
        """The parameters of a value that flows, from its histogram."""
        return self.parameters(*seen.points(), encoding, ())

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True, repr=False)
class Ends(Range):
    """A range alone: of a grid, the scale at which the outermost numbers reach it."""

    takes: ClassVar[Mapping[Use, tuple[type[Encoding], ...]]] = {
        "weights": (Int, Grid, Blockwise),
        "values": (Int, Grid),
    }

    @abstractmethod
    def find(self, points: Tensor, counts: Tensor | None, encoding: Blocked) -> tuple[Tensor, Tensor]:
        """Low and high ends, each [blocks], for points [blocks, points]."""

    def parameters(
        self, points: Tensor, counts: Tensor | None, encoding: Encoding, shape: tuple[int, ...]
    ) -> Mapping[str, Tensor]:
        assert isinstance(encoding, Int | Grid | Blockwise)
        ends = self.find(points, counts, encoding)
        if isinstance(encoding, Blockwise):
            return encoding.from_range(*ends, points, shape)
        return encoding.from_range(*ends, shape)


@dataclass(frozen=True, repr=False)
class MinMax(Ends):
    """Everything is inside; one far point makes all steps coarse.

    >>> MinMax().find(torch.tensor([[-1.0, 0.0, 3.0]]), None, Int(8))
    (tensor([-1.]), tensor([3.]))
    """

    def find(self, points: Tensor, counts: Tensor | None, encoding: Blocked) -> tuple[Tensor, Tensor]:
        return points.amin(1), points.amax(1)


@dataclass(frozen=True, repr=False)
class Percentile(Ends):
    """All but the outermost ``100 - percent`` percent, split evenly over both ends, is inside."""

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percent <= 100:
            raise RecipeError(f"Percentile of {self.percent}", next="use more than 50 and at most 100")

    def find(self, points: Tensor, counts: Tensor | None, encoding: Blocked) -> tuple[Tensor, Tensor]:
        ordered, order = points.sort(1)
        weights = torch.ones_like(points, dtype=torch.float64) if counts is None else counts.expand(points.shape)
        reached = weights.gather(1, order).double().cumsum(1)
        outside = reached[:, -1:] * (100 - self.percent) / 200
        low = (reached <= outside).sum(1, keepdim=True).clamp(max=points.shape[1] - 1)
        high = (reached < reached[:, -1:] - outside).sum(1, keepdim=True).clamp(max=points.shape[1] - 1)
        return ordered.gather(1, low)[:, 0], ordered.gather(1, high)[:, 0]


@dataclass(frozen=True, repr=False)
class MSE(Range):
    """The least squared error: of steps by a search over shrunken ends, of grids by codes and scale in turn, of levels
    by Lloyd's algorithm. The default; formats that leave nothing to fit take no other.
    """

    takes: ClassVar[Mapping[Use, tuple[type[Encoding], ...]]] = {
        "weights": (Int, Fixed, Codebook, Grid, Blockwise, Float16, BFloat16, LowRank),
        "values": (Int, Fixed, Grid, Blockwise),
    }

    steps: int = 24  # ends tried between the smallest share and the whole
    smallest: float = 0.2  # share of the full range

    def parameters(
        self, points: Tensor, counts: Tensor | None, encoding: Encoding, shape: tuple[int, ...]
    ) -> Mapping[str, Tensor]:
        if isinstance(encoding, Int):
            return encoding.from_range(*self.find(points, counts, encoding), shape)
        if isinstance(encoding, Grid):
            return encoding.least_squares(points, shape, counts)
        assert isinstance(encoding, Codebook | Blockwise | Fixed) and counts is None
        return encoding.least_squares(points, shape)

    def find(self, points: Tensor, counts: Tensor | None, encoding: Int) -> tuple[Tensor, Tensor]:
        """Low and high ends, each [blocks], for points [blocks, points]."""
        blocks = max(1, _AT_ONCE // points.shape[1])
        parts = points.split(blocks)
        weights = [None] * len(parts) if counts is None else counts.expand(points.shape).split(blocks)
        if encoding.minimum is not None:  # whose range need not hold zero: its ends shrink towards what lies between
            middles = [x.mean(1, keepdim=True) for x in parts]
            ends = [self._ends(x - at, None, encoding) for x, at in zip(parts, middles, strict=True)]
            low, high = (torch.cat([pair[i] for pair in ends]) for i in (0, 1))
            return low + torch.cat(middles)[:, 0], high + torch.cat(middles)[:, 0]
        found = [self._ends(x, n, encoding) for x, n in zip(parts, weights, strict=True)]
        return torch.cat([low for low, _ in found]), torch.cat([high for _, high in found])

    def _ends(self, points: Tensor, counts: Tensor | None, encoding: Int) -> tuple[Tensor, Tensor]:
        """The two ends, of as many blocks as are computed at once."""
        best = ends = torch.stack([points.amin(1).clamp(max=0), points.amax(1).clamp(min=0)])  # [2, blocks]
        least = torch.full_like(ends[0], torch.inf, dtype=torch.float64)
        shares = self._shares(encoding.symmetric is False and bool((ends[0] < 0).any()))
        for some in shares.split(max(1, _AT_ONCE // points.numel())):
            tried = some.to(ends)[:, :, None] * ends  # [tries, 2, blocks]
            errors, at = _squared_error(points, counts, encoding, tried[:, 0], tried[:, 1]).min(0)
            better = errors < least
            least = torch.where(better, errors, least)
            best = torch.where(better, tried.gather(0, at.expand(1, 2, -1))[0], best)
        return best[0], best[1]

    def _shares(self, two_ends: bool) -> Tensor:
        """What is tried of the low and of the high end, [tries, 2]."""
        shares = torch.linspace(1.0, self.smallest, self.steps)
        return torch.cartesian_prod(shares, shares) if two_ends else shares[:, None].expand(-1, 2)


def _squared_error(points: Tensor, counts: Tensor | None, encoding: Int, low: Tensor, high: Tensor) -> Tensor:
    """Σ counts · (x - grid(x))² of each block, [tries, blocks], for ends [tries, blocks]."""
    first, last = encoding.limits
    if encoding.symmetric is False:
        scale = ((high - low) / (last - first)).clamp(min=1e-30)[..., None]
        if encoding.minimum is None:
            offset: Tensor | float = torch.round(first - low[..., None] / scale).clamp(first, last)
        else:
            points, offset = points - low[..., None], 0.0
        grid = (points / scale).round_().add_(offset).clamp_(first, last).sub_(offset).mul_(scale)
    else:
        scale = (torch.maximum(-low, high) / last).clamp(min=1e-30)[..., None]
        grid = (points / scale).round_().clamp_(first, last).mul_(scale)
    squares = grid.sub_(points).square_()
    return squares.sum(-1, dtype=torch.float64) if counts is None else torch.linalg.vecdot(squares.double(), counts)


@dataclass(frozen=True, repr=False)
class Entropy(Ends):
    """The range whose codes tell most about a value: least Kullback-Leibler divergence of what they leave of its
    histogram. It cuts far outliers that `MinMax` keeps.

    Source: Migacz, "8-bit Inference with TensorRT", 2017. What is exactly 0, of which every code book has a code, does
    not count: behind a ReLU it would outweigh all else. Of fewer numbers than there are codes a histogram tells
    nothing, and none is cut.
    """

    takes: ClassVar[Mapping[Use, tuple[type[Encoding], ...]]] = {"weights": (), "values": (Int,)}
    steps: int = 64  # ends tried between the smallest share and the whole
    smallest: float = 0.05  # share of the full range

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.smallest < 1:
            raise RecipeError(f"{self!r}", next="use 2 steps and more, down to a share between 0 and 1")

    def find(self, points: Tensor, counts: Tensor | None, encoding: Blocked) -> tuple[Tensor, Tensor]:
        assert isinstance(encoding, Int)
        weights = torch.ones_like(points, dtype=torch.float64) if counts is None else counts.expand(points.shape)
        found = [self._ends(x, n.double(), encoding) for x, n in zip(points, weights, strict=True)]
        return torch.stack([low for low, _ in found]), torch.stack([high for _, high in found])

    def _ends(self, x: Tensor, counts: Tensor, encoding: Int) -> tuple[Tensor, Tensor]:
        """The two ends for points [points]."""
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
        still = x.abs() <= 1.01 * (high - low) / 2**11  # the bins around 0
        counts = torch.where(still, 0.0, counts)
        best, least = (low, high), float("inf")
        if float(counts.sum()) < 2**encoding.bits:
            return best
        for share in torch.linspace(1.0, self.smallest, self.steps).tolist():
            # one side's outliers say nothing of the other: both are cut at the same distance from 0
            reach = torch.maximum(-low, high) * share
            ends = torch.maximum(low, -reach), torch.minimum(high, reach)
            lost = _divergence(x, counts, encoding, *ends)
            if lost < least:
                best, least = ends, lost
        return best


def _divergence(x: Tensor, counts: Tensor, encoding: Int, low: Tensor, high: Tensor) -> float:
    """KL(what is there, clipped to low … high, ‖ each code's share spread evenly over what is there of it), in nats."""
    inside = (x >= low) & (x <= high) & (counts > 0)
    if not bool(inside.any()):
        return float("inf")
    parameters = encoding.from_range(low[None], high[None], ())
    codes = encoding.codes(x[inside], parameters).long()
    codes = codes - codes.min()
    held = counts[inside]
    coded = torch.bincount(codes, held) / torch.bincount(codes).clamp(min=1)
    spread = coded[codes] / held.sum()
    there = held.clone()
    places, kept = x[inside], x.clamp(low, high)
    for end in (low, high):  # what is cut off falls on the outermost that is kept
        cut = ~inside & (kept == end)
        there[(places - end).abs().argmin()] += counts[cut].sum()
    there = there / there.sum()
    return float((there * (there / spread).log()).sum())


@dataclass(frozen=True, repr=False)
class Quantiles(Range):
    """Levels that equally many weights share: fine where weights are many, coarse for the few large ones."""

    takes: ClassVar[Mapping[Use, tuple[type[Encoding], ...]]] = {"weights": (Codebook,), "values": ()}

    def parameters(
        self, points: Tensor, counts: Tensor | None, encoding: Encoding, shape: tuple[int, ...]
    ) -> Mapping[str, Tensor]:
        assert isinstance(encoding, Codebook)
        return encoding.from_levels(quantile_levels(points, encoding.n, encoding.zero), shape)


@dataclass(frozen=True, repr=False)
class Intervals(Range):
    """Levels that are the means of intervals of equal width, over a range that is clipped for the least squared error.

    Lloyd's algorithm (`MSE`) starts from some of these, so its levels err less.
    """

    takes: ClassVar[Mapping[Use, tuple[type[Encoding], ...]]] = {"weights": (Codebook,), "values": ()}
    steps: int = 24  # ranges tried between the smallest share and the whole
    smallest: float = 0.2  # share of the full range

    def parameters(
        self, points: Tensor, counts: Tensor | None, encoding: Encoding, shape: tuple[int, ...]
    ) -> Mapping[str, Tensor]:
        assert isinstance(encoding, Codebook)
        clips = torch.linspace(1.0, self.smallest, self.steps).tolist()
        return encoding.from_levels(interval_levels(points, encoding.n, encoding.zero, clips), shape)


RANGES: dict[str, type[Range]] = {
    "MinMax": MinMax,
    "Percentile": Percentile,
    "MSE": MSE,
    "Entropy": Entropy,
    "Quantiles": Quantiles,
    "Intervals": Intervals,
}
