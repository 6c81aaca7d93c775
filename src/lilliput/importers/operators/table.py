"""The table of operators: which function computes which, since which opset.

A function takes what the operator takes, under the names that ONNX gives inputs and attributes. So an attribute that a
later opset made an input, or the reverse, is the same argument. What is annotated as `Numbers` is given Python's own;
as `Tensor`, a tensor; as `Value`, either; as `Still`, a tensor that training leaves alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

Function = Callable[..., Any]
Still = Tensor


@dataclass(frozen=True)
class Operator:
    """One operator: what computes it, and what that takes."""

    function: Function
    kinds: tuple[str, ...] | None = None  # of the inputs in order, where the function does not tell: torch's own
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # attributes of which not all values are known

    @cached_property
    def parameters(self) -> tuple[inspect.Parameter, ...]:
        return () if self.kinds is not None else tuple(inspect.signature(self.function).parameters.values())

    def kind(self, place: int) -> str:
        """What the input at a place is given as: ``Tensor``, ``Still``, ``Numbers`` or ``Value``."""
        known = self.kinds or [
            str(one.annotation)
            for one in self.parameters
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.VAR_POSITIONAL)
        ]
        return known[min(place, len(known) - 1)].partition(" ")[0]

    def takes(self, name: str) -> bool:
        return any(one.name == name for one in self.parameters)

    @cached_property
    def gives(self) -> str:
        """What it gives: ``Tensor``, ``Numbers``, or ``Value``: numbers where it is given nothing else."""
        return "Tensor" if self.kinds is not None else str(inspect.signature(self.function).return_annotation)

    @property
    def several(self) -> bool:
        """Whether it gives a tuple."""
        return self.gives.startswith("tuple")


OPERATORS: dict[str, dict[int, Operator]] = {}  # operator -> opset since which it is so -> what computes it


def operator(
    *names: str, since: int = 1, only: Mapping[str, tuple[Any, ...]] | None = None
) -> Callable[[Function], Function]:
    """Put a function into the table; other values of an attribute than `only` some are refused."""

    def put(function: Function) -> Function:
        for name in names:
            OPERATORS.setdefault(name, {})[since] = Operator(function, only=only or {})
        return function

    return put


def elementwise(functions: Mapping[str, Function]) -> None:
    """Put torch's own functions of one tensor into the table."""
    for name, function in functions.items():
        OPERATORS.setdefault(name, {})[1] = Operator(function, ("Tensor",))


def found(name: str, opset: int) -> Operator | None:
    """What computes an operator in a file of that opset."""
    since = [version for version in OPERATORS.get(name, {}) if version <= opset]
    return OPERATORS[name][max(since)] if since else None
