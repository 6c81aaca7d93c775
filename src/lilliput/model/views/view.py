"""What is known of a model: its calls, the tensors they read, the ties."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Rung = Literal["whole", "submodule", "module-local"]

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
MULTIPLIES = CONVOLUTIONS | {"linear"}  # ops that multiply an activation by a weight: operand 0 by operand 1
_PASSING = frozenset({"dropout", "contiguous", "identity", "pad"})
BAG = "embedding_bag"
LOOKS_UP = frozenset({"embedding", BAG})  # ops that take rows of a weight
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})  # by several: one or two a layer and direction, or three


@dataclass(frozen=True)
class Window:
    """How a convolution goes over its input: one number for each axis of space."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # before and after
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Call:
    """One call in the captured graph."""

    id: str
    op: str  # the operator, without overload: conv2d, linear, add; pad is with a constant, else reflect_pad and so on
    value: str | None  # the name of what it returns; None inside a function that cannot be looked into
    reads: tuple[str | None, ...]  # per tensor argument: a call's id, "tensor <path>", "input <name>", or None
    shape: tuple[int | str, ...]  # of the first output; a string for an axis that varies
    constants: tuple[int | float, ...] = ()  # numbers among its arguments
    weight_shape: tuple[int, ...] = ()  # of the tensor it multiplies by
    window: Window | None = None  # of a convolution that is not transposed
    weights: tuple[str, ...] = ()  # paths of the tensors it multiplies by or looks rows up in, in order
    numbers: tuple[int, ...] = ()  # the first list of integers among its arguments: axes of a mean, of a permutation

    @property
    def bias(self) -> str | None:
        source = self.reads[2] if self.op in MULTIPLIES and len(self.reads) > 2 else None
        return source.removeprefix("tensor ") if source and source.startswith("tensor ") else None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values that it makes: what it returns, and each of what it reads as it alone does."""
        return (self.value, *(f"{self.value}@{i}" for i in range(len(self.reads)))) if self.value else ()

    @property
    def passes(self) -> bool:
        """Whether it gives what it reads: zeros around an image are a convolution's."""
        return self.op in _PASSING and not (self.op == "pad" and any(self.constants))

    @property
    def module(self) -> str:
        """The path of the module whose forward makes the call."""
        return self.value.rpartition(":")[0] if self.value else ""


@dataclass(frozen=True)
class View:
    """A model as its calls in order, with the rung of capture that was reached."""

    rung: Rung
    calls: tuple[Call, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)  # path of what could not be captured -> reason

    @cached_property
    def by_id(self) -> dict[str, Call]:
        return {call.id: call for call in self.calls}

    @cached_property
    def readers(self) -> dict[str, list[Call]]:
        """Calls by what they read: a call's id, ``tensor <path>`` or ``input <name>``."""
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            for source in set(call.reads):
                if source:
                    found[source].append(call)
        return found

    @cached_property
    def weights(self) -> dict[str, list[Call]]:
        """Paths of multiplied and looked-up tensors, with the calls that use them, in order."""
        found: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            for path in call.weights:
                found[path].append(call)
        return found

    def reads_one_of(self, call: Call, values: Container[str]) -> bool:
        """Whether what a call multiplies is one of these named values: where it reads it, or where it arises."""
        here: Call | None = call
        while here is not None and f"{here.value}@0" not in values:
            here = self.by_id.get(here.reads[0] or "")
            if here is None or not here.passes:
                return here is not None and here.value in values
        return here is not None

    def only_reader(self, call: Call) -> Call | None:
        """The one call that reads what `call` returns, if there is just one."""
        readers = self.readers.get(call.id, [])
        return readers[0] if len(readers) == 1 else None
