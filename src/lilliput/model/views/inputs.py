"""What a model is called with: tensors, and plain values that become constants of whatever is built of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.errors import InputError
from lilliput.model.carrier.arrays import from_user
from lilliput.model.views.arguments import Arguments, is_structure, like, parts_of
from lilliput.structures import is_plain

Dynamic = Mapping[str | int, Mapping[int, str]]


@dataclass(frozen=True)
class Inputs(Arguments):
    """One set of arguments for a model: what a user gives as a tensor, a tuple or a dict."""

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

    @classmethod
    def given(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Inputs:
        """What a runner was called with, arrays as tensors."""
        return cls(tuple(map(from_user, args)), {key: from_user(x) for key, x in kwargs.items()})

    def call(self, model: Any) -> Any:
        """What `model` answers. A module gets tensors of its own: its forward may write over what it is given."""
        given = self.copied() if isinstance(model, nn.Module) else self
        return model(*given.args, **given.kwargs)

    def copied(self) -> Inputs:
        """The same arguments, the tensors in memory of their own."""
        return self.map(lambda key, x: x.copy() if isinstance(x, np.ndarray) else x.clone())

    def by_parameter(self, forward: Any) -> dict[str, Any]:
        """The arguments by the name of the parameter of `forward` that takes them."""
        return dict(inspect.signature(forward).bind(*self.args, **self.kwargs).arguments)


def _from_user(value: Any) -> Any:
    """An argument as a module is given it: arrays as tensors, other libraries' numbers and mappings as Python's own."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping) and not isinstance(value, dict):
        return {key: _from_user(x) for key, x in value.items()}
    if is_structure(value):
        return like(value, [_from_user(x) for _, x in parts_of(value)])
    return from_user(value)


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
