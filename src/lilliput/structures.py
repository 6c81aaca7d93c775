"""What is put together from tensors and plain data, as models take it and answer with it; without importing torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

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


def is_tensor(leaf: object) -> bool:
    """Whether this is a tensor of torch, or an array.

    >>> is_tensor(np.ones(2)), is_tensor([1.0, 1.0])
    (True, False)
    """
    torch = sys.modules.get("torch")  # where nobody has imported it, nobody has a tensor of it
    return isinstance(leaf, np.ndarray) or (torch is not None and isinstance(leaf, torch.Tensor))


def comparable(leaf: object) -> bool:
    """Whether what an output holds is a tensor, or plain data that can be told."""
    if leaf is None or isinstance(leaf, int | float | str) or is_tensor(leaf):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool)


def is_plain(value: Any) -> bool:
    """Whether a value may be written into a graph and a file: None, a boolean, number or text, or made up of such."""
    if isinstance(value, float):
        return math.isfinite(value)
    if type(value) in (tuple, list):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and is_plain(held) for key, held in value.items())
    return value is None or type(value) in (bool, int, str)
