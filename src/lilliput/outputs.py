"""Outputs of two models, number by number."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lilliput.errors import MeasureError
from lilliput.structures import comparable, leaves


def judged(places: Iterable[str]) -> str:
    """Of the places of tensors in an output the one that metrics judge and teachers teach: no loss, logits if any.

    >>> judged(["loss", "logits"]), judged(["loss", "0"]), judged([""])
    ('logits', '0', '')
    """
    known = list(places)
    return "logits" if "logits" in known else next((one for one in known if one != "loss"), next(iter(known), ""))


def flatten_outputs(output: object) -> list[Tensor]:
    """The tensors of a nested output, in order: of tuples, lists, dicts, dataclasses, and what has `to_tuple()`.

    Complex numbers are pairs of real ones. All else is passed over: None, numbers and strings, and objects such as
    caches (`left_out` names them).

    >>> [list(t.shape) for t in flatten_outputs({"logits": torch.ones(2, 3), "kept": (None, torch.ones(1))})]
    [[2, 3], [1]]
    """
    return [_real(value.detach()) for _, value in leaves(output) if isinstance(value, Tensor)]


def _real(x: Tensor) -> Tensor:
    """The same numbers, where they are complex, of eight bits or not laid out in order, in a tensor to compute with."""
    x = x.dequantize() if x.is_quantized else x if x.layout == torch.strided else x.to_dense()
    if x.is_complex():
        return torch.view_as_real(x.resolve_conj())
    return x.float() if x.is_floating_point() and x.element_size() == 1 else x


def left_out(output: object) -> dict[str, str]:
    """The types of those objects in a nested output that nobody can compare or export, by their places.

    >>> left_out({"logits": torch.ones(2), "sizes": (3, None), "cache": object()})
    {'cache': 'object'}
    """
    return {where: type(value).__name__ for where, value in leaves(output) if not comparable(value)}


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
