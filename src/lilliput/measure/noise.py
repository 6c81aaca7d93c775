"""Signal, and the noise that encoding added to it, summed over batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lilliput.measure import flatten_outputs


class Noise:
    """Sums of squares of a reference and of what differs from it.

    >>> so_far = Noise()
    >>> so_far.add(torch.tensor([10.0, 0.0]), torch.tensor([10.0, 1.0]))
    >>> so_far.db, so_far.ratio
    (20.0, 0.01)
    """

    def __init__(self, signal: float = 0.0, noise: float = 0.0) -> None:
        self.signal, self.noise = signal, noise

    def add(self, reference: object, found: object) -> None:
        """Take in outputs, nested as they may be, but for tensors of integers and places that are finite in neither."""
        for a, b in zip(_floating(reference), _floating(found), strict=True):
            both = torch.isfinite(a) | torch.isfinite(b)
            a, b = (torch.where(both, x, 0.0).nan_to_num() for x in (a, b))
            self.signal += float(a.square().sum())
            self.noise += float((a - b).square().sum())

    @property
    def ratio(self) -> float:
        """Noise over signal."""
        return self.noise / self.signal if self.signal else math.inf if self.noise else 0.0

    @property
    def db(self) -> float | None:
        """10 · log10(signal / noise); None where nothing differs."""
        return decibels(self.ratio)


def decibels(ratio: float) -> float | None:
    """Of noise over signal; None of none.

    >>> decibels(0.001), decibels(0.0)
    (30.0, None)
    """
    if not ratio:
        return None
    return -10 * math.log10(ratio) if math.isfinite(ratio) else -99.0


def _floating(output: object) -> list[Tensor]:
    found = flatten_outputs(output)
    return [x.double() for x in found if x.is_floating_point()] or [x.double() for x in found]
