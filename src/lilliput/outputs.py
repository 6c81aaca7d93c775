"""Outputs of two models, number by number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lilliput.errors import MeasureError


@runtime_checkable
class _Tupled(Protocol):
    def to_tuple(self) -> tuple[object, ...]: ...


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
    pairs = [pair for pair in paired(flatten_outputs(reference), flatten_outputs(output)) if pair[0].numel()]
    largest = ((difference(a, b).max(), finite(a).abs().max()) for a, b in pairs)
    return max((float(error / size.clamp(min=1e-30)) for error, size in largest), default=0.0)


def paired(reference: list[Tensor], output: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each tensor beside that which is compared to it, in float64; raises MeasureError where they do not fit."""
    if not reference:
        raise MeasureError("the reference returned no tensor to compare")
    if len(reference) != len(output):
        raise MeasureError(f"{len(reference)} outputs in the reference, {len(output)} in what is compared to it")
    for index, (ours, theirs) in enumerate(zip(reference, output, strict=True)):
        if ours.shape != theirs.shape:
            shapes = f"{list(ours.shape)} in the reference, {list(theirs.shape)} in what is compared to it"
            raise MeasureError(f"the shapes differ: {shapes}", where=f"output {index}")
    return [(a.cpu().double(), b.cpu().double()) for a, b in zip(reference, output, strict=True)]


def difference(reference: Tensor, output: Tensor) -> Tensor:
    """How far each number is off: infinitely where one of them alone is NaN or infinite."""
    same = (reference == output) | (reference.isnan() & output.isnan())
    error = (reference - output).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return torch.where(same, 0.0, error)


def finite(values: Tensor) -> Tensor:
    """0 where a number is NaN or infinite."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
