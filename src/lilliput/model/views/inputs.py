"""What a model is called with: tensors, and plain values that become constants of whatever is built of it."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lilliput.errors import InputError
from lilliput.model.carrier.arrays import from_user

Dynamic = Mapping[str | int, Mapping[int, str]]


@dataclass(frozen=True)
class Inputs:
    """One set of arguments for a model: what a user gives as a tensor, a tuple or a dict.

    What an argument holds is known by its position or keyword; of one that is a list, tuple or dict with tensors
    inside, each part by its own: `"features.0"`, or `"0.1"` in what is given by position.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: Any) -> Inputs:
        """From a tensor, a tuple or list of arguments (by position), or a dict of them (by keyword).

        An argument is a tensor or array, a plain value, or a tuple, list or dict of those. Plain are None, booleans,
        numbers, and texts. Raises InputError for anything else.

        >>> import torch
        >>> Inputs.of({"x": torch.ones(1), "scale": 0.5}).constants()
        {'scale': 0.5}
        >>> list(Inputs.of(([torch.ones(1), torch.ones(2)], None)).tensors())
        ['0.0', '0.1']
        """
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Tensor | np.ndarray):
            return cls((from_user(example),), {})
        if isinstance(example, Mapping):
            inputs = cls((), {key: _from_user(x) for key, x in example.items()})
        elif isinstance(example, tuple | list):
            inputs = cls(tuple(map(_from_user, example)), {})
        else:
            raise InputError(
                f"inputs of type {type(example).__name__}",
                next="give a tensor, a tuple of arguments, or a dict of arguments by keyword",
            )
        for key, value in inputs.named():
            if not isinstance(value, Tensor) and not is_plain(value):
                raise InputError(f"input {key!r} {_described(value)}", next="give tensors, numbers, texts or None")
        return inputs

    def call(self, model: Any) -> Any:
        """What `model` answers. A module gets tensors of its own: its forward may write over what it is given."""
        given = self.copied() if isinstance(model, nn.Module) else self
        return model(*given.args, **given.kwargs)

    def copied(self) -> Inputs:
        """The same arguments, the tensors in memory of their own."""
        return self.map(lambda key, x: x.clone())

    def named(self) -> Iterator[tuple[str | int, Any]]:
        """All that the arguments hold: tensors, and what holds none, in the order of the arguments."""
        for key, value in self._arguments():
            yield from _named(key, value)

    def tensors(self) -> dict[str | int, Tensor]:
        """The tensors, by what they are known by."""
        return {key: x for key, x in self.named() if isinstance(x, Tensor)}

    def constants(self) -> dict[str | int, Any]:
        """What is no tensor and holds none."""
        return {key: value for key, value in self.named() if not isinstance(value, Tensor)}

    def by_parameter(self, forward: Any) -> dict[str, Any]:
        """The arguments by the name of the parameter of `forward` that takes them."""
        return dict(inspect.signature(forward).bind(*self.args, **self.kwargs).arguments)

    def map(self, change: Any) -> Inputs:
        """The same arguments, each tensor replaced by ``change(key, tensor)``."""
        return self.each(lambda key, x: change(key, x) if isinstance(x, Tensor) else x)

    def each(self, change: Any) -> Inputs:
        """The same arguments, all that `named` tells replaced by ``change(key, value)``."""
        args = tuple(_each(change, i, value) for i, value in enumerate(self.args))
        return Inputs(args, {key: _each(change, key, value) for key, value in self.kwargs.items()})

    def _arguments(self) -> Iterable[tuple[str | int, Any]]:
        return itertools.chain(enumerate(self.args), self.kwargs.items())


def _from_user(value: Any) -> Any:
    """An argument as a module is given it: arrays as tensors, other libraries' numbers and mappings as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping) and not isinstance(value, dict):
        return {key: _from_user(x) for key, x in value.items()}
    if _is_structure(value):
        return _like(value, [_from_user(x) for _, x in _parts(value)])
    return from_user(value)


def _is_structure(value: Any) -> bool:
    """Whether this is a list, tuple, named tuple or dict, and no object of another library's that is one as well."""
    named = type(value).__bases__ == (tuple,) and hasattr(value, "_fields")
    return type(value) in (tuple, list) or isinstance(value, dict) or named


def _parts(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else list(enumerate(value))


def _inner(value: Any) -> list[tuple[Any, Any]]:
    """The parts of a structure that holds tensors; none of anything else."""
    holds = _is_structure(value) and any(isinstance(x, Tensor) for x in tree_leaves(value))
    return _parts(value) if holds else []


def _like(value: Any, parts: list[Any]) -> Any:
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
    return _like(value, [_each(change, f"{key}.{name}", part) for name, part in inner])


def is_plain(value: Any) -> bool:
    """Whether a value may be written into a graph and a file: None, a boolean, number or text, or made up of such."""
    if isinstance(value, float):
        return math.isfinite(value)
    if type(value) in (tuple, list):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(type(key) is str and is_plain(held) for key, held in value.items())
    return value is None or type(value) in (bool, int, str)


def _described(value: Any) -> str:
    return f"is {value}" if isinstance(value, float) else f"is a {type(value).__name__}"


def changed_one_by_one(inputs: Inputs) -> Iterator[tuple[str | int, Inputs]]:
    """The same inputs with one tensor changed at a time, by the order of its elements or else by half, or not.

    Whole numbers that are all the same are left out.

    >>> import torch
    >>> [(key, one.args[0].tolist()) for key, one in changed_one_by_one(Inputs.of(torch.tensor([1, 2])))]
    [(0, [2, 1])]
    """
    for key, x in inputs.tensors().items():
        other = _changed(x)
        if not torch.equal(other, x):
            yield key, inputs.map(lambda name, held, key=key, other=other: other if name == key else held)


def changed_together(inputs: Inputs) -> Inputs:
    """The same inputs with all tensors changed, as `changed_one_by_one` changes each."""
    return inputs.map(lambda _, x: _changed(x))


def _changed(x: Tensor) -> Tensor:
    other = x.flip(tuple(range(x.dim())))
    if not torch.equal(other, x):
        return other
    return x * 0.5 if x.is_floating_point() else ~x if x.dtype == torch.bool else x


def dynamic_axes(inputs: Inputs, dynamic: Dynamic | None) -> dict[str | int, dict[int, str]]:
    """The named axes that vary, checked against the inputs; by default the first axis of each input is the batch."""
    known = inputs.tensors()
    if dynamic is None:
        return {key: {0: "batch"} for key, x in known.items() if x.dim() > 0}
    for key, axes in dynamic.items():
        if key not in known:
            raise InputError(f"dynamic= names an input {key!r}", next=f"the example has {', '.join(map(repr, known))}")
        for axis in axes:
            if not 0 <= axis < known[key].dim():
                raise InputError(f"dynamic= names axis {axis} of {key!r}", why=f"it has {known[key].dim()} axes")
    return {key: dict(axes) for key, axes in dynamic.items()}
