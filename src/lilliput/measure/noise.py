"""Signal, and the noise that a change added to it, summed over batches."""

from __future__ import annotations

import math

from torch import Tensor

from lilliput.outputs import difference, finite, flatten_outputs, paired


class Noise:
    """Sums of squares of a reference and of what differs from it.

    A NaN or infinity which the reference has not is infinite noise; where both have the same one, it counts as equal.

    >>> import torch
    >>> so_far = Noise()
    >>> so_far.add(torch.tensor([10.0, 0.0]), torch.tensor([10.0, 1.0]))
    >>> so_far.db, so_far.ratio
    (20.0, 0.01)
    """

    def __init__(self, signal: float = 0.0, noise: float = 0.0) -> None:
        self.signal, self.noise = signal, noise

    def add(self, reference: object, found: object) -> None:
        """Take in outputs, nested as they may be; where there are numbers that are none of integers, those alone."""
        for a, b in paired(_floating(reference), _floating(found)):
            self.take(a, difference(a, b))

    def take(self, reference: Tensor, error: Tensor) -> None:
        """Take in a tensor, and what differs from it."""
        self.signal += float(finite(reference).square().sum())
        self.noise += float(error.square().sum())

    @property
    def ratio(self) -> float:
        """Noise over signal."""
        return self.noise / self.signal if self.signal else math.inf if self.noise else 0.0

    @property
    def sqnr_db(self) -> float:
        """10 · log10(signal / noise); inf where nothing differs, -inf where everything does."""
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal and math.isfinite(self.noise) else -math.inf

    @property
    def db(self) -> float | None:
        """The same as a number that can be written down, as `decibels` gives it."""
        return decibels(self.ratio)


def decibels(ratio: float) -> float | None:
    """Of noise over signal; None of none, -99 of nothing but noise.

    >>> decibels(0.001), decibels(0.0), decibels(math.inf)
    (30.0, None, -99.0)
    """
    if not ratio:
        return None
    return -10 * math.log10(ratio) if math.isfinite(ratio) else -99.0


def _floating(output: object) -> list[Tensor]:
    found = flatten_outputs(output)
    return [x for x in found if x.is_floating_point()] or found
