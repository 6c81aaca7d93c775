"""How far a changed model's outputs are from the original's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lilliput.errors import MeasureError


@runtime_checkable
class _Tupled(Protocol):
    def to_tuple(self) -> tuple[object, ...]: ...


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


def flatten_outputs(output: object) -> list[Tensor]:
    """The tensors of a nested output, in order: tensors, tuples, lists, dicts, and what has `to_tuple()`.

    None, numbers and strings are passed over; anything else raises MeasureError.

    >>> [list(t.shape) for t in flatten_outputs({"logits": torch.ones(2, 3), "kept": (None, torch.ones(1))})]
    [[2, 3], [1]]
    """
    if isinstance(output, Tensor):
        return [output.detach()]
    if output is None or isinstance(output, int | float | str):
        return []
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in flatten_outputs(value)]
    if isinstance(output, _Tupled):
        output = output.to_tuple()
    if isinstance(output, tuple | list):
        return [tensor for value in output for tensor in flatten_outputs(value)]
    raise MeasureError(
        f"an output of type {type(output).__name__} cannot be compared",
        next="return tensors, tuples, lists or dicts",
    )


def departure(reference: object, output: object) -> float:
    """The largest difference between two outputs, relative to the largest number of each tensor of the reference.

    A NaN or infinity in one of them alone is infinitely far. Raises MeasureError where their number or shapes differ.

    >>> departure(torch.tensor([4.0, 1.0]), torch.tensor([4.0, 2.0]))
    0.25
    """
    pairs = [pair for pair in _paired(flatten_outputs(reference), flatten_outputs(output)) if pair[0].numel()]
    largest = ((_error(a, b).max(), _zero_where_not_finite(a).abs().max()) for a, b in pairs)
    return max((float(error / size.clamp(min=1e-30)) for error, size in largest), default=0.0)


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
        self._largest = 0.0
        self._sums = torch.zeros(4, dtype=torch.float64)  # reference², output², reference · output, error²
        self._agreements: list[Tensor | None] = []
        self._cosines: list[Tensor] = []

    def add(self, reference: object, output: object) -> None:
        """Take in one batch of outputs; raises MeasureError where their number or shapes differ."""
        pairs = _paired(flatten_outputs(reference), flatten_outputs(output))
        for ours, theirs in pairs:
            error = _error(ours, theirs)
            self._largest = max(self._largest, float(error.max()) if error.numel() else 0.0)
            a, b = _zero_where_not_finite(ours), _zero_where_not_finite(theirs)
            self._sums += torch.stack([(x * y).sum() for x, y in ((a, a), (b, b), (a, b), (error, error))])
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
        signal, power, product, noise = (float(total) for total in self._sums)
        return Distance(
            largest_error=self._largest,
            cosine=float(_cosine(*(torch.tensor(x, dtype=torch.float64) for x in (signal, power, product)))),
            sqnr_db=_decibels(signal, noise),
            top1_agreement=None if agreements is None else float(agreements.double().mean()),
            samples=cosines.numel(),
            agreements=agreements,
            cosines=cosines,
        )


def _paired(reference: list[Tensor], output: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if not reference:
        raise MeasureError("the reference returned no tensor to compare")
    if len(reference) != len(output):
        raise MeasureError(f"{len(reference)} outputs in the reference, {len(output)} in what is compared to it")
    for index, (ours, theirs) in enumerate(zip(reference, output, strict=True)):
        if ours.shape != theirs.shape:
            shapes = f"{list(ours.shape)} in the reference, {list(theirs.shape)} in what is compared to it"
            raise MeasureError(f"the shapes differ: {shapes}", where=f"output {index}")
    return [(a.cpu().double(), b.cpu().double()) for a, b in zip(reference, output, strict=True)]


def _error(reference: Tensor, output: Tensor) -> Tensor:
    same = (reference == output) | (reference.isnan() & output.isnan())
    error = (reference - output).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return torch.where(same, 0.0, error)


def _zero_where_not_finite(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _row_cosines(reference: Tensor, output: Tensor) -> Tensor:  # [rows]
    rows = reference.shape[0] if reference.ndim else 1
    a, b = (_zero_where_not_finite(x).reshape(rows, -1) for x in (reference, output))
    return _cosine((a * a).sum(1), (b * b).sum(1), (a * b).sum(1)).float()


def _cosine(first: Tensor, second: Tensor, product: Tensor) -> Tensor:
    """Of squared lengths and a dot product; two vectors of zeros are alike, one alone is unlike anything."""
    both_zero = (first == 0) & (second == 0)
    scale = (first.sqrt() * second.sqrt()).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(both_zero, 1.0, (product / scale).clamp(-1, 1))


def _agreement(reference: Tensor, output: Tensor) -> Tensor:  # [rows] bool
    return (reference.argmax(1) == output.argmax(1)) & ~output.isnan().any(1)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf
