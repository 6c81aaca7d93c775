"""What a value looks like over many batches, in memory that does not grow with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 4096  # over [-limit, limit]; a power of two, so that doubling the limit merges pairs of bins exactly
_ENOUGH = 1 << 20  # elements of all batches to count
_PLACES = 1 << 17  # of all batches whose channels are summed, where those of a place are neighbours in memory
_RUN = 16  # neighbours in memory that are counted together, or none of them: what a processor fetches at once
_CHUNK = 1 << 22  # elements counted at a time: float32 counts stay exact, and memory flat


@dataclass(frozen=True)
class Observe:
    """What to gather about a value."""

    histogram: bool = True
    channel_axis: int | None = None  # also the mean along this axis: 1 for images, -1 for tokens
    magnitudes: bool = False  # along it, also the mean and the largest magnitude


class Statistics:
    """Range, histogram and channel means of a value, updated batch by batch."""

    def __init__(self, observe: Observe) -> None:
        self.observe = observe
        self.low, self.high = float("inf"), float("-inf")
        self.limit = 0.0  # the histogram covers [-limit, limit]
        self.finite = True  # whether all that came by was
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.passed = 0  # elements, counted or not
        self.sums: Tensor | None = None  # [channels], float64
        self.elements = 0  # of a channel that were summed
        self.sizes: Tensor | None = None  # sums of magnitudes, [channels], float64
        self.largest: Tensor | None = None  # magnitude of each channel, [channels]

    def update(self, x: Tensor, share: float = 1.0) -> None:
        """Take in a value, being that share of all there is to see of it."""
        x = x.detach()
        if self.observe.histogram:
            self._count(x.float(), max(_RUN, int(_ENOUGH * share)))
        if self.observe.channel_axis is not None:
            sums, places = _sums(x, self.observe.channel_axis, int(_PLACES * share))
            self.sums = sums if self.sums is None else self.sums + sums
            self.elements += places
            self.finite &= bool(sums.isfinite().all())
            if self.observe.magnitudes:
                size = x.abs()
                sizes, _ = _sums(size, self.observe.channel_axis, int(_PLACES * share))
                largest = _largest(size, self.observe.channel_axis)
                self.sizes = sizes if self.sizes is None else self.sizes + sizes
                self.largest = largest if self.largest is None else torch.maximum(largest, self.largest)

    def _count(self, x: Tensor, enough: int) -> None:
        flat = _as_it_lies(x)
        self.passed += flat.numel()
        low, high = (end.item() for end in flat.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):  # a NaN is both
            self.finite = False
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if self.limit == 0.0 and largest > 0:
            self.limit = largest
        while largest > self.limit:
            self._double()
        step = _step(x.numel(), enough, x.shape)
        counted = flat if step == 1 else flat[: flat.numel() // _RUN * _RUN].view(-1, _RUN)[::step].flatten()
        if self.limit == 0.0:  # nothing but zeros so far
            self.counts[BINS // 2] += counted.numel()
            return
        for part in counted.split(_CHUNK):
            self.counts += torch.histc(part, BINS, -self.limit, self.limit).long()

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[BINS // 4 : BINS // 4 * 3] = pairs
        self.limit *= 2

    @property
    def reached(self) -> bool:
        """Whether the value came by at all."""
        return self.elements > 0 or bool(self.counts.any())

    @property
    def mean(self) -> Tensor:
        """Mean of each channel, [channels]."""
        assert self.sums is not None, "channel means were not asked for"
        return (self.sums / self.elements).float()

    @property
    def mean_magnitude(self) -> Tensor:
        """Mean magnitude of each channel, [channels]."""
        assert self.sizes is not None, "magnitudes were not asked for"
        return (self.sizes / self.elements).float()

    @property
    def largest_magnitude(self) -> Tensor:
        """Largest magnitude of each channel, [channels]."""
        assert self.largest is not None, "magnitudes were not asked for"
        return self.largest

    def points(self) -> tuple[Tensor, Tensor]:
        """Where the values lie, [1, points], and how many lie there: the ends are the true minimum and maximum.

        An end that was passed over, with all that lies near it, counts as one element of all.
        """
        width = 2 * self.limit / BINS
        centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * width - self.limit
        counts, one = self.counts.double(), float(self.counts.sum()) / max(1, self.passed)
        for end in (self.low, self.high):
            place = min(BINS - 1, max(0, int((end + self.limit) // width))) if width else BINS // 2
            centres[place], counts[place] = end, max(one, float(counts[place]))
        held = counts > 0
        return centres[held].float()[None], counts[held][None]

    def pack(self) -> dict[str, Tensor]:
        """Everything as tensors, for a store."""
        numbers = torch.tensor([self.low, self.high, self.limit, self.elements, self.passed], dtype=torch.float64)
        along = {"sums": self.sums, "sizes": self.sizes, "largest": self.largest}
        held = {name: x for name, x in along.items() if x is not None}
        return {"numbers": numbers, "counts": self.counts, **held}

    @classmethod
    def unpack(cls, observe: Observe, packed: Mapping[str, Tensor]) -> Statistics:
        made = cls(observe)
        made.low, made.high, made.limit = packed["numbers"][:3].tolist()
        made.elements, made.passed = (int(n) for n in packed["numbers"][3:])
        made.counts, made.sums = packed["counts"], packed.get("sums")
        made.sizes, made.largest = packed.get("sizes"), packed.get("largest")
        return made


def _step(count: int, enough: int, shape: Sequence[int]) -> int:
    """Every how many of `count` one is taken: sharing no factor with any axis, so as to meet all places."""
    step = max(1, count // max(1, enough))
    while any(math.gcd(step, n) > 1 for n in shape):
        step += 1
    return step


def _as_it_lies(x: Tensor) -> Tensor:
    """All elements in the order of memory, without a copy where they lie next to each other."""
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).reshape(-1)


def _sums(x: Tensor, axis: int, enough: int) -> tuple[Tensor, int]:
    """Sums of each channel, [channels] float64, and of how many places: float32 in pairs, the rest exactly."""
    x = x.float().movedim(axis, -1)
    if x.is_contiguous():
        rows = x.reshape(-1, x.shape[-1])
        rows = rows[:: _step(len(rows), enough, x.shape[:-1])]
        return rows.sum(0).double(), len(rows)
    runs = x.movedim(-1, 1).unsqueeze(-1).flatten(2)  # [others, channels, neighbours]
    return runs.sum(2).double().sum(0), x.numel() // x.shape[-1]


def _largest(x: Tensor, axis: int) -> Tensor:
    return x.float().movedim(axis, 0).flatten(1).amax(1)
