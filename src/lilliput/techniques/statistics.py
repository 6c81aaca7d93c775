"""What a value looks like over many batches, in memory that does not grow with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 4096  # over [-limit, limit]; a power of two, so that doubling the limit merges pairs of bins exactly
_ENOUGH = 1 << 18  # elements of a batch to count; of twice as many and more, some are passed over
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
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.sums: Tensor | None = None  # [channels], float64
        self.elements = 0  # a channel
        self.sizes: Tensor | None = None  # sums of magnitudes, [channels], float64
        self.largest: Tensor | None = None  # magnitude of each channel, [channels]

    def update(self, x: Tensor) -> None:
        x = x.detach()
        if self.observe.histogram:
            self._count(x.float())
        if self.observe.channel_axis is not None:
            sums = _along(x, self.observe.channel_axis)
            self.sums = sums if self.sums is None else self.sums + sums
            self.elements += x.numel() // len(sums)
            if self.observe.magnitudes:
                size = x.abs()
                sizes, largest = _along(size, self.observe.channel_axis), _largest(size, self.observe.channel_axis)
                self.sizes = sizes if self.sizes is None else self.sizes + sizes
                self.largest = largest if self.largest is None else torch.maximum(largest, self.largest)

    def _count(self, x: Tensor) -> None:
        flat = _as_it_lies(x)
        low, high = (end.item() for end in flat.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if self.limit == 0.0 and largest > 0:
            self.limit = largest
        while largest > self.limit:
            self._double()
        if self.limit == 0.0:  # nothing but zeros so far
            self.counts[BINS // 2] += flat.numel()
            return
        step = _step(x)
        if step > 1:
            flat = torch.cat([flat[::step], flat.new_tensor([low, high])])  # the ends are there whatever is passed over
        for part in flat.split(_CHUNK):
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
        """Where the values lie, [1, points], and how many lie there: the ends are the true minimum and maximum."""
        width = 2 * self.limit / BINS
        centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * width - self.limit
        held = self.counts > 0
        points, counts = centres[held].float(), self.counts[held].double()
        points[0], points[-1] = self.low, self.high
        return points[None], counts[None]

    def pack(self) -> dict[str, Tensor]:
        """Everything as tensors, for a store."""
        numbers = torch.tensor([self.low, self.high, self.limit, self.elements], dtype=torch.float64)
        along = {"sums": self.sums, "sizes": self.sizes, "largest": self.largest}
        held = {name: x for name, x in along.items() if x is not None}
        return {"numbers": numbers, "counts": self.counts, **held}

    @classmethod
    def unpack(cls, observe: Observe, packed: Mapping[str, Tensor]) -> Statistics:
        made = cls(observe)
        made.low, made.high, made.limit = packed["numbers"][:3].tolist()
        made.elements = int(packed["numbers"][3])
        made.counts, made.sums = packed["counts"], packed.get("sums")
        made.sizes, made.largest = packed.get("sizes"), packed.get("largest")
        return made


def _step(x: Tensor) -> int:
    """Every how many elements are counted: a number that shares no factor with any axis, so as to meet all places."""
    step = max(1, x.numel() // _ENOUGH)
    while any(math.gcd(step, n) > 1 for n in x.shape):
        step += 1
    return step


def _as_it_lies(x: Tensor) -> Tensor:
    """All elements in the order of memory, without a copy where they lie next to each other."""
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).reshape(-1)


def _along(x: Tensor, axis: int) -> Tensor:
    """Sums of each channel, [channels] float64: runs of neighbours in float32, in pairs, the rest exactly."""
    if axis in (-1, x.dim() - 1):  # channels are neighbours themselves
        return x.float().movedim(axis, 0).flatten(1).sum(1).double()
    runs = x.float().movedim(axis, 1).unsqueeze(-1).flatten(2)  # [others, channels, neighbours]
    return runs.sum(2).double().sum(0)


def _largest(x: Tensor, axis: int) -> Tensor:
    return x.float().movedim(axis, 0).flatten(1).amax(1)
