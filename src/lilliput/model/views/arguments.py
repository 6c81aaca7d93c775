"""The arguments of a call, and what they hold; without importing torch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from lilliput.structures import is_tensor


@dataclass(frozen=True)
class Arguments:
    """What a network is called with: tensors or arrays, and plain values.

    What an argument holds is known by its position or keyword; of one that is a list, tuple or dict with tensors
    inside, each part by its own: `"features.0"`, or `"0.1"` in what is given by position.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def named(self) -> Iterator[tuple[str | int, Any]]:
        """All that the arguments hold: tensors, and what holds none, in the order of the arguments."""
        for key, value in self._arguments():
            yield from _named(key, value)

    def tensors(self) -> dict[str | int, Any]:
        """The tensors, by what they are known by."""
        return {key: x for key, x in self.named() if is_tensor(x)}

    def constants(self) -> dict[str | int, Any]:
        """What is no tensor and holds none."""
        return {key: value for key, value in self.named() if not is_tensor(value)}

    def map(self, change: Any) -> Self:
        """The same arguments, each tensor replaced by ``change(key, tensor)``."""
        return self.each(lambda key, x: change(key, x) if is_tensor(x) else x)

    def each(self, change: Any) -> Self:
        """The same arguments, all that `named` tells replaced by ``change(key, value)``."""
        args = tuple(_each(change, i, value) for i, value in enumerate(self.args))
        return type(self)(args, {key: _each(change, key, value) for key, value in self.kwargs.items()})

    def _arguments(self) -> Iterable[tuple[str | int, Any]]:
        return itertools.chain(enumerate(self.args), self.kwargs.items())


def is_structure(value: Any) -> bool:
    """Whether this is a list, tuple, named tuple or dict, and no object of another library's that is one as well."""
    named = type(value).__bases__ == (tuple,) and hasattr(value, "_fields")
    return type(value) in (tuple, list) or isinstance(value, dict) or named


def parts_of(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else list(enumerate(value))


def _inner(value: Any) -> list[tuple[Any, Any]]:
    """The parts of a structure that holds tensors; none of anything else."""
    return parts_of(value) if is_structure(value) and _holds(value) else []


def _holds(value: Any) -> bool:
    return is_tensor(value) or (is_structure(value) and any(_holds(x) for _, x in parts_of(value)))


def like(value: Any, parts: list[Any]) -> Any:
    """A structure of the same kind with other parts."""
    if isinstance(value, dict):
        made = copy.copy(value)
        for key, part in zip(value, parts, strict=True):
            made[key] = part
        return made
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _named(key: str | int, value: Any) -> Iterator[tuple[str | int, Any]]:
    inner = _inner(value)
    if not inner:
        yield key, value
    for name, part in inner:
        yield from _named(f"{key}.{name}", part)


def _each(change: Callable[[str | int, Any], Any], key: str | int, value: Any) -> Any:
    inner = _inner(value)
    if not inner:
        return change(key, value)
    return like(value, [_each(change, f"{key}.{name}", part) for name, part in inner])
