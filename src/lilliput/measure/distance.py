"""How far a changed model's outputs are from the original's."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lilliput.errors import MeasureError
from lilliput.measure.noise import Noise
from lilliput.outputs import difference, finite, flatten_outputs, paired


@dataclass(frozen=True, eq=False)
class Distance:
    """How close outputs are to reference outputs, over all batches; the last two hold one entry a sample."""

    largest_error: float  # max |reference - output|
    cosine: float  # over all outputs
    sqnr_db: float  # 10 log10(sum reference² / sum (reference - output)²); inf when identical
    top1_agreement: float | None  # share of samples with the same largest class; None where not classes
    samples: int
    agreements: Tensor | None = field(repr=False)  # [samples] bool
    cosines: Tensor = field(repr=False)  # [samples], of the first output


class DistanceSoFar:
    """Gather the distance between outputs batch by batch; what is kept is some bytes a sample.

    Samples are the rows of the first output; per-sample figures, and top-1 where it is [samples, 2 or more
    classes], are of that first output, the others are over all. A NaN or infinity which the reference has
    not is an infinite error; where both have the same one it counts as equal.

    >>> so_far = DistanceSoFar()
    >>> so_far.add(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.5]]))
    >>> round(so_far.distance().sqnr_db, 6), so_far.distance().top1_agreement
    (20.0, 1.0)
    """

    def __init__(self) -> None:
        self.largest_error = 0.0
        self._noise = Noise()
        self._sums = torch.zeros(2, dtype=torch.float64)  # output², reference · output
        self._agreements: list[Tensor | None] = []
        self._cosines: list[Tensor] = []

    def add(self, reference: object, output: object) -> None:
        """Take in one batch of outputs; raises MeasureError where their number or shapes differ."""
        pairs = paired(flatten_outputs(reference), flatten_outputs(output))
        for ours, theirs in pairs:
            error = difference(ours, theirs)
            self.largest_error = max(self.largest_error, float(error.max()) if error.numel() else 0.0)
            a, b = finite(ours), finite(theirs)
            self._noise.take(a, error)
            self._sums += torch.stack([(b * b).sum(), (a * b).sum()])
        first = pairs[0]
        self._cosines.append(_row_cosines(*first))
        classes = first[0].ndim == 2 and first[0].shape[1] >= 2
        self._agreements.append(_agreement(*first) if classes else None)

    def distance(self) -> Distance:
        """The distance over all batches so far; raises MeasureError when there were none."""
        cosines = torch.cat(self._cosines) if self._cosines else torch.empty(0)
        if not cosines.numel():
            raise MeasureError("there is nothing to compare: no samples")
        agreed = [batch for batch in self._agreements if batch is not None]
        agreements = torch.cat(agreed) if len(agreed) == len(self._agreements) else None
        signal, (power, product) = torch.tensor(self._noise.signal, dtype=torch.float64), self._sums
        return Distance(
            largest_error=self.largest_error,
            cosine=float(_cosine(signal, power, product)),
            sqnr_db=self._noise.sqnr_db,
            top1_agreement=None if agreements is None else float(agreements.double().mean()),
            samples=cosines.numel(),
            agreements=agreements,
            cosines=cosines,
        )


def _row_cosines(reference: Tensor, output: Tensor) -> Tensor:  # [rows]
    rows = reference.shape[0] if reference.ndim else 1
    a, b = (finite(x).reshape(rows, -1) for x in (reference, output))
    return _cosine((a * a).sum(1), (b * b).sum(1), (a * b).sum(1)).float()


def _cosine(first: Tensor, second: Tensor, product: Tensor) -> Tensor:
    """Of squared lengths and a dot product; two vectors of zeros are alike, one alone is unlike anything."""
    both_zero = (first == 0) & (second == 0)
    scale = (first.sqrt() * second.sqrt()).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(both_zero, 1.0, (product / scale).clamp(-1, 1))


def _agreement(reference: Tensor, output: Tensor) -> Tensor:  # [rows] bool
    return (reference.argmax(1) == output.argmax(1)) & ~output.isnan().any(1)
