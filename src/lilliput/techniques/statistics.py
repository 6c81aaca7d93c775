"""What a value looks like over many batches, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 4096  # over [-limit, limit]; a power of two, so that doubling the limit merges pairs of bins exactly
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
            self._count(x.float().reshape(-1))
        if self.observe.channel_axis is not None:
            rows = x.movedim(self.observe.channel_axis, 0).flatten(1)
            sums = rows.sum(1, dtype=torch.float64)
            self.sums = sums if self.sums is None else self.sums + sums
            self.elements += rows.shape[1]
            if self.observe.magnitudes:
                sizes, largest = rows.abs().sum(1, dtype=torch.float64), rows.abs().amax(1).float()
                self.sizes = sizes if self.sizes is None else self.sizes + sizes
                self.largest = largest if self.largest is None else torch.maximum(largest, self.largest)

    def _count(self, flat: Tensor) -> None:
        low, high = flat.min().item(), flat.max().item()
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if self.limit == 0.0 and largest > 0:
            self.limit = largest
        while largest > self.limit:
            self._double()
        if self.limit == 0.0:  # nothing but zeros so far
            self.counts[BINS // 2] += flat.numel()
            return
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
