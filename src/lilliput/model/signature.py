"""What a module takes and gives, as plain data: enough to call what was built of it as one calls the module."""

from __future__ import annotations

import functools
import keyword
from collections import namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lilliput.errors import ExportError, InputError
from lilliput.model.capture import Inputs
from lilliput.model.passed import given_back, in_graph, is_leaf, passes_as
from lilliput.outputs import DEEPEST, comparable, parts


class Outputs(dict[Any, Any]):
    """Named outputs, by key and as attributes.

    >>> Outputs(logits=1).logits
    1
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Signature:
    """Which argument each input is (position or keyword), and how the outputs are put together."""

    inputs: tuple[str | int, ...]
    outputs: Any  # a leaf (`passes_as`), {"tuple": […]}, {"list": […]}, {"dict": [[key, …], …]} or named fields

    @classmethod
    def of(cls, inputs: Inputs, outputs: Any) -> Signature:
        """That of a call with `inputs` that was answered with `outputs`.

        >>> import torch
        >>> Signature.of(Inputs.of(torch.ones(1)), (torch.ones(1), {"a": torch.ones(2)}))
        Signature(inputs=(0,), outputs={'tuple': ['tensor', {'dict': [['a', 'tensor']]}]})
        """
        return cls(tuple(inputs.tensors()), _described(outputs))

    def arguments(self, given: Inputs) -> list[Tensor]:
        """The tensors of a call in the order of the inputs."""
        tensors = given.tensors()
        if set(tensors) != set(self.inputs):
            raise InputError(
                f"called with {', '.join(map(repr, tensors)) or 'nothing'}",
                next=f"give {', '.join(map(repr, self.inputs))}, as in the example it was built with",
            )
        return [tensors[key] for key in self.inputs]

    def assemble(self, tensors: Sequence[Any]) -> Any:
        """Outputs of the graph, from left to right, put together as the module does."""
        left = iter(tensors)
        return _assembled(self.outputs, left)

    @property
    def count(self) -> int:
        """How many outputs the graph has."""
        return sum(map(in_graph, _leaves(self.outputs)))


def _described(out: Any) -> Any:
    held = parts(out)
    if held is None:
        return passes_as(out)
    name, keys = type(out).__name__, [key for key, _ in held.items]
    if held.kind == "named" and _names_fields(name, keys):
        return {"named": [[key, _described(value)] for key, value in held.items], "type": name}
    if held.kind != "dict":
        return {"list" if held.kind == "list" else "tuple": [_described(value) for _, value in held.items]}
    for key in keys:
        if type(key) not in (str, int):
            raise ExportError(
                f"the model answers with a dict that has the key {key!r}",
                why="a file names outputs by texts and whole numbers",
                next="give it such keys, or return a tuple",
            )
    return {"dict": [[key, _described(value)] for key, value in held.items if parts(value) or comparable(value)]}


def _inner(structure: Any) -> list[Any] | None:
    """The structures within one; None for a leaf."""
    if is_leaf(structure):
        return None
    return [
        item[1] if kind in ("dict", "named") else item
        for kind, items in structure.items()
        if kind != "type"
        for item in items
    ]


def _leaves(structure: Any) -> Iterator[Any]:
    inner = _inner(structure)
    if inner is None:
        yield structure
    for item in inner or ():
        yield from _leaves(item)


def _assembled(structure: Any, left: Iterator[Any]) -> Any:
    inner = _inner(structure)
    if inner is None:
        return given_back(structure, next(left)) if in_graph(structure) else structure["constant"]
    values = [_assembled(item, left) for item in inner]
    if "dict" in structure:
        return Outputs(zip((key for key, _ in structure["dict"]), values, strict=True))
    if "named" in structure:
        return _named_tuple(structure["type"], tuple(key for key, _ in structure["named"]))(*values)
    return values if "list" in structure else tuple(values)


@functools.cache
def _named_tuple(name: str, names: tuple[str, ...]) -> Any:
    return namedtuple(name, names)  # the one that the module has is in its source


def sound(structure: Any, depth: int = 0) -> bool:
    """Whether this is the structure of outputs, as a file may hold it."""
    if is_leaf(structure):
        return True
    if depth > DEEPEST or not isinstance(structure, dict):
        return False
    if structure.keys() not in ({"tuple"}, {"list"}, {"dict"}, {"named", "type"}):
        return False
    items = next(items for kind, items in structure.items() if kind != "type")
    if not isinstance(items, list):
        return False
    if structure.keys() & {"tuple", "list"}:
        return all(sound(item, depth + 1) for item in items)
    if not all(isinstance(item, list) and len(item) == 2 and type(item[0]) in (str, int) for item in items):
        return False
    if "type" in structure and not _names_fields(structure["type"], [key for key, _ in items]):
        return False
    return all(sound(value, depth + 1) for _, value in items)


def _names_fields(name: Any, keys: list[Any]) -> bool:
    """Whether a named tuple can be called so, and have such fields: Python makes its class of them."""
    names = [name, *keys]
    proper = all(type(key) is str and key.isidentifier() and not keyword.iskeyword(key) for key in names)
    return proper and len(set(keys)) == len(keys) and not any(key.startswith("_") for key in keys)
