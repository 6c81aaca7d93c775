"""What a model is called with: tensors, and plain values that become constants of whatever is built of it."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.errors import InputError
from lilliput.model.carrier.arrays import from_user

Dynamic = Mapping[str | int, Mapping[int, str]]


@dataclass(frozen=True)
class Inputs:
    """One set of arguments for a model: what a user gives as a tensor, a tuple or a dict."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: Any) -> Inputs:
        """From a tensor, a tuple or list of tensors (by position), or a dict (by keyword) of tensors and plain values.

        Plain are None, booleans, numbers, texts, and tuples, lists and dicts of those.

        >>> import torch
        >>> Inputs.of({"x": torch.ones(1), "scale": 0.5}).constants()
        {'scale': 0.5}
        """
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Tensor | np.ndarray):
            return cls((from_user(example),), {})
        if isinstance(example, Mapping):
            inputs = cls((), {key: from_user(x) for key, x in example.items()})
        elif isinstance(example, tuple | list) and all(isinstance(x, Tensor | np.ndarray) for x in example):
            inputs = cls(tuple(map(from_user, example)), {})
        else:
            raise InputError(
                f"inputs of type {type(example).__name__}",
                next="give a tensor, a tuple of tensors, or a dict of tensors and plain values by keyword",
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

    def named(self) -> Iterable[tuple[str | int, Any]]:
        """All arguments, each with its position or keyword."""
        return itertools.chain(enumerate(self.args), self.kwargs.items())

    def tensors(self) -> dict[str | int, Tensor]:
        """The tensors by position or keyword."""
        return {key: x for key, x in self.named() if isinstance(x, Tensor)}

    def constants(self) -> dict[str | int, Any]:
        """The arguments that are no tensors, by position or keyword."""
        return {key: value for key, value in self.named() if not isinstance(value, Tensor)}

    def by_parameter(self, forward: Any) -> dict[str, Any]:
        """The arguments by the name of the parameter of `forward` that takes them."""
        return dict(inspect.signature(forward).bind(*self.args, **self.kwargs).arguments)

    def map(self, change: Any) -> Inputs:
        """The same arguments, each tensor replaced by ``change(key, tensor)``."""
        return Inputs(
            tuple(change(i, x) if isinstance(x, Tensor) else x for i, x in enumerate(self.args)),
            {key: change(key, x) if isinstance(x, Tensor) else x for key, x in self.kwargs.items()},
        )


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
    if isinstance(value, float):
        return f"is {value}"
    held = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    tensors = " with tensors inside, and only tensors that are arguments by themselves are inputs"
    return f"is a {type(value).__name__}{tensors if any(isinstance(x, Tensor) for x in held) else ''}"


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
