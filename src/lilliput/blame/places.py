"""The places of a network that encodings can harm: its layers, each with the values that are its own to answer for."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.views.values import Value, ValueEncoder, value_encodings
from lilliput.model.views.view import Call, View


@dataclass(frozen=True)
class Place:
    """A layer, or a value that no layer gives (a sum, a mean), with what is encoded there.

    Every encoded tensor and value belongs to one place: a layer's weight, what it alone reads encoded, and what it
    gives, an activation function right after it included.
    """

    name: str  # path of the weight; name of the value where there is none
    op: str
    weight: str | None  # path of a weight, whether it is encoded or not
    bias: str | None
    values: tuple[str, ...]  # encoded values that belong here
    gives: tuple[str, ...]  # the values by which its output is seen, one a call
    reads: tuple[str, ...]  # what other places give and this one reads

    @property
    def pattern(self) -> str:
        """What `where` calls it."""
        return (self.weight or "").rpartition(".")[0] or self.weight or self.name.rpartition(":")[0]


def places(view: View, model: nn.Module) -> list[Place]:
    """The places of `model` in the order in which they run; those where nothing is encoded among them."""
    encoders = value_encodings(model)
    found = _Places(view, encoders)
    for path, calls in view.weights.items():
        named = [call for call in calls if call.value]
        if named:
            found.layer(path, named)
    for name in encoders:
        found.rest(name)
    return found.finished()


def encoded_weights(model: nn.Module) -> dict[str, EncodedTensor]:
    """The encoded tensors of a model by their first path."""
    return {paths[0]: held for paths, held in tensors(model).items() if isinstance(held, EncodedTensor)}


class _Places:
    def __init__(self, view: View, encoders: Mapping[str, ValueEncoder]) -> None:
        self.view, self.encoders = view, encoders
        self.by_value = {call.value: call for call in view.calls if call.value}
        self.order = {call.id: i for i, call in enumerate(view.calls)}
        self.calls: dict[str, list[Call]] = {}  # of each place
        self.gives: dict[str, list[str]] = {}
        self.values: dict[str, list[str]] = {}
        self.owner: dict[str, str] = {}  # of each encoded value

    def layer(self, path: str, calls: Sequence[Call]) -> None:
        self.calls[path], self.values[path] = list(calls), []
        self.gives[path] = [self._given(call) for call in calls]
        for call in calls:
            self._own(path, [self._given(call), *(f"{call.value}@{i}" for i in range(len(call.reads)))])

    def rest(self, name: str) -> None:
        """Give an encoded value that no layer claimed to the layer it belongs with, or a place of its own."""
        if name in self.owner:
            return
        operand = Value.parse(name).operand is not None
        call = self.by_value.get(name.partition("@")[0])
        owner = None if call is None else self._reader(call) if operand else self._same(call, name)
        if owner is None:
            owner = name
            self.calls[owner] = [] if call is None else [call]
            self.gives[owner], self.values[owner] = [] if operand else [name], []
        self._own(owner, [name])

    def finished(self) -> list[Place]:
        given = {value for values in self.gives.values() for value in values}
        made = []
        for name, calls in self.calls.items():
            first = calls[0] if calls else None
            weight = name if name in self.view.weights else None
            made.append(
                Place(
                    name,
                    first.op if first else "value",
                    weight,
                    first.bias if first and weight else None,
                    tuple(self.values[name]),
                    tuple(self.gives[name]),
                    tuple(dict.fromkeys(value for call in calls for value in self._upstream(call, given))),
                )
            )
        return sorted(made, key=lambda place: min((self.order[call.id] for call in self.calls[place.name]), default=0))

    def _own(self, owner: str, names: Iterable[str]) -> None:
        for name in names:
            if name in self.encoders and name not in self.owner:
                self.owner[name] = owner
                self.values[owner].append(name)

    def _given(self, call: Call) -> str:
        """What a layer's call gives: its value, or that of the one function right after, where that is encoded."""
        after = self.view.only_reader(call)
        fused = (
            call.value not in self.encoders
            and after is not None
            and after.value in self.encoders
            and sum(read is not None for read in after.reads) == 1
        )
        return str(after.value if fused and after is not None else call.value)

    def _reader(self, call: Call) -> str | None:
        """The layer that a call leads to, over calls that nothing else reads."""
        after = self.view.only_reader(call)
        while after is not None and not after.weights:
            after = self.view.only_reader(after)
        return None if after is None else after.weights[0]

    def _same(self, call: Call, name: str) -> str | None:
        """Whose encoding this value only repeats, as max pooling and reshaping do: nothing is lost there."""
        source = self.view.by_id.get(call.reads[0] or "") if call.reads else None
        while source is not None and source.value not in self.encoders:
            source = self.view.by_id.get(source.reads[0] or "") if source.reads else None
        if source is None or source.value is None or not _alike(self.encoders[source.value], self.encoders[name]):
            return None
        return self.owner.get(source.value)

    def _upstream(self, call: Call, given: Container[str]) -> list[str]:
        """The nearest values, going back from a call, that some place gives."""
        found, left, seen = [], [read for read in call.reads if read], set()
        while left:
            source = self.view.by_id.get(left.pop())
            if source is None or source.id in seen:
                continue
            seen.add(source.id)
            if source.value is not None and source.value in given:
                found.append(source.value)
            else:
                left += [read for read in source.reads if read]
        return found


def _alike(first: ValueEncoder, second: ValueEncoder) -> bool:
    one, other = first.parameters_of_value(), second.parameters_of_value()
    fixed = bool(one) and one.keys() == other.keys()
    return fixed and all(torch.equal(one[key], other[key]) for key in one)
