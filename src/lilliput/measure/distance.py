"""How far a changed model's outputs are from the original's, each output by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lilliput.errors import MeasureError
from lilliput.measure.kinds import FIGURES, Kind
from lilliput.measure.noise import Noise
from lilliput.outputs import difference, finite, flatten_outputs, paired
from lilliput.structures import leaves


@dataclass(frozen=True, eq=False)
class Distance:
    """How close one output is to the reference's, over all batches. The tensors hold one entry a sample."""

    place: str  # of the output, such as "logits" or "1.0"; "" where the output is a tensor
    kind: Kind
    largest_error: float  # max |reference - output|
    constant: bool  # whether the reference is the same for all samples, so that it tells nothing
    signal: Tensor = field(repr=False)  # [samples] sums of squares of the reference
    noise: Tensor = field(repr=False)  # [samples] sums of squares of the error
    scores: Mapping[str, Tensor] = field(repr=False)  # the kind's own figures, each [samples]

    @property
    def samples(self) -> int:
        return self.signal.numel()

    @property
    def sqnr_db(self) -> float:
        """10 log10(sum reference² / sum (reference - output)²); inf when identical."""
        return Noise(float(self.signal.sum()), float(self.noise.sum())).sqnr_db

    @property
    def relative_errors(self) -> Tensor:
        """The length of each sample's error, over the root mean square of the lengths of the reference's samples."""
        length = self.signal.mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(self.noise == 0, 0.0, self.noise.sqrt() / length)


class DistanceSoFar:
    """Gather the distances between outputs batch by batch; what is kept is some bytes a sample.

    `kinds` says what an output is, by its place; the others are values. Samples are the rows of an output, or all of
    it where it has not as many rows as the batch has samples. A NaN or infinity which the reference has not is an
    infinite error; where both have the same one it counts as equal.

    >>> so_far = DistanceSoFar({"": "classes"})
    >>> so_far.add(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.5]]))
    >>> [found] = so_far.distances()
    >>> round(found.sqnr_db, 6), found.scores["same_answer"].tolist(), round(found.relative_errors.item(), 6)
    (20.0, [1.0], 0.1)
    """

    def __init__(self, kinds: Mapping[str, Kind] | None = None) -> None:
        self._kinds = kinds or {}
        self._outputs: list[_Output] = []

    def add(self, reference: object, output: object, samples: int | None = None) -> None:
        """Take in one batch of outputs, of so many samples (None: of as many as each output has rows).

        Raises MeasureError where their number or shapes differ.
        """
        pairs = paired(flatten_outputs(reference), flatten_outputs(output))
        if not self._outputs:
            self._outputs = [_Output(place, self._kinds.get(place, "values")) for place in places(reference)]
        if len(pairs) != len(self._outputs):
            raise MeasureError(f"{len(pairs)} outputs after batches of {len(self._outputs)}")
        for one, pair in zip(self._outputs, pairs, strict=True):
            one.add(*(as_rows(x, samples) for x in pair))

    @property
    def infinite(self) -> str | None:
        """The place of the first output that is infinitely far from its reference; None where all are near."""
        return next((one.place for one in self._outputs if math.isinf(one.largest_error)), None)

    def distances(self) -> list[Distance]:
        """Those over all batches so far, output by output; raises MeasureError when there were no samples."""
        if not self._outputs or not any(one.signal for one in self._outputs):
            raise MeasureError("there is nothing to compare: no samples")
        return [one.distance() for one in self._outputs]


def places(output: Any) -> list[str]:
    """Where the tensors of a nested output are; "" of one that is in nothing.

    >>> places({"logits": torch.ones(2), "rest": (None, torch.ones(1))}), places(torch.ones(1))
    (['logits', 'rest.1'], [''])
    """
    return [place for place, leaf in leaves(output) if isinstance(leaf, Tensor)]


def as_rows(x: Tensor, samples: int | None) -> Tensor:
    """[samples, …]; one sample of it all where rows are not the batch's samples."""
    return x if x.ndim and samples in (None, len(x)) else x.unsqueeze(0)


class _Output:
    """One output so far."""

    def __init__(self, place: str, kind: Kind) -> None:
        self.place, self.kind, self.largest_error = place, kind, 0.0
        self.signal: list[Tensor] = []
        self.noise: list[Tensor] = []
        self.scores: dict[str, list[Tensor]] = {name: [] for name in FIGURES[kind]}
        self._first: Tensor | None = None
        self._alike = True

    def add(self, reference: Tensor, output: Tensor) -> None:
        if not len(reference):
            return
        error, ours = difference(reference, output), finite(reference)
        self.largest_error = max(self.largest_error, float(error.max()) if error.numel() else 0.0)
        self.signal.append(ours.square().reshape(len(ours), -1).sum(1))
        self.noise.append(error.square().reshape(len(ours), -1).sum(1))
        for name, score in FIGURES[self.kind].items():
            self.scores[name].append(score(reference, output))
        if self._first is None:
            self._first = ours[0].clone()
        self._alike = self._alike and self._first.shape == ours.shape[1:] and bool((ours == self._first).all())

    def distance(self) -> Distance:
        signal, noise = (torch.cat(held) if held else torch.empty(0) for held in (self.signal, self.noise))
        return Distance(
            self.place,
            self.kind,
            self.largest_error,
            self._constant(signal.numel()),
            signal,
            noise,
            {name: torch.cat(held) for name, held in self.scores.items() if held},
        )

    def _constant(self, samples: int) -> bool:
        """All samples are alike; of one sample, all numbers."""
        first = self._first
        if first is None or not self._alike or not first.numel():
            return False
        return samples > 1 or (first.numel() > 1 and bool((first == first.flatten()[0]).all()))


def furthest(distances: Sequence[Distance]) -> Distance:
    """The output that is furthest from its reference, by SQNR."""
    return min(distances, key=lambda one: one.sqnr_db)
