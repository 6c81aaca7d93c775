"""Outputs of two models, number by number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lilliput.errors import MeasureError

DEEPEST = 32  # structures within structures


@runtime_checkable
class _Tupled(Protocol):
    def to_tuple(self) -> tuple[object, ...]: ...


@dataclass(frozen=True)
class Parts:
    """What an output is put together from: a *tuple*, *list* or *dict*, or *named* fields that are a tuple as well."""

    kind: Literal["tuple", "list", "dict", "named"]
    items: tuple[tuple[Any, Any], ...]  # by index, key or field


def parts(output: object) -> Parts | None:
    """The parts of a nested output; None where it is none.

    >>> parts((1, None))
    Parts(kind='tuple', items=((0, 1), (1, None)))
    """
    if isinstance(output, Mapping):
        return Parts("dict", tuple(output.items()))
    if is_dataclass(output) and not isinstance(output, type):
        return Parts("dict", tuple((field.name, getattr(output, field.name)) for field in fields(output)))
    names = _field_names(output)
    if names:
        return Parts("named", tuple(zip(names, output, strict=True)))  # type: ignore[call-overload]
    if isinstance(output, list):
        return Parts("list", tuple(enumerate(output)))
    if isinstance(output, _Tupled) and not isinstance(output, type):
        output = output.to_tuple()
    return Parts("tuple", tuple(enumerate(output))) if isinstance(output, tuple) else None


def _field_names(output: object) -> tuple[str, ...]:
    """Those of a named tuple, or of what `torch.max` and its like answer with."""
    if not isinstance(output, tuple):
        return ()
    attribute = "__match_args__" if hasattr(output, "n_sequence_fields") else "_fields"
    names: tuple[str, ...] = tuple(getattr(output, attribute, ()))
    return names if len(names) == len(output) else ()


def leaves(output: object, where: str = "") -> Iterator[tuple[str, Any]]:
    """What a nested output holds, from left to right, each with its place: ``past_key_values`` or ``1.0``."""
    held = parts(output)
    if held is None:
        yield where, output
        return
    if where.count(".") > DEEPEST:
        raise MeasureError(
            "outputs within outputs without an end", where=where[:20], next="return fewer within another"
        )
    for key, value in held.items:
        yield from leaves(value, f"{where}.{key}" if where else str(key))


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


def comparable(leaf: object) -> bool:
    """Whether what an output holds is a tensor, or plain data that can be told."""
    return leaf is None or isinstance(leaf, Tensor | int | float | str | torch.SymInt | torch.SymFloat | torch.SymBool)


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
