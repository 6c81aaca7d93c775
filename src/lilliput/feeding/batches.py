"""The batches of one field of a task, checked once and known by their content."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lilliput.errors import InputError
from lilliput.feeding.content import batch_size, fingerprint
from lilliput.feeding.source import Source
from lilliput.model.views.inputs import Dynamic, Inputs


@dataclass(frozen=True)
class Batches:
    """The batches of one field of a task, checked once and fingerprinted as they are read."""

    source: Iterable[Inputs]
    field: str
    digest: str
    samples: int
    told: Mapping[str, str] = dataclasses.field(default_factory=dict)  # what is not used of it, and why

    @classmethod
    def checked(cls, given: Any, name: str, like: Inputs, dynamic: Mapping[str | int, Mapping[int, str]]) -> Batches:
        """Read everything once: emptiness, NaN, wrong types and shapes are errors now and not in an hour."""
        source, whole, samples = Source.of(given, name), hashlib.sha256(), 0
        for i, inputs in enumerate(source):
            check_like(inputs, like, dynamic, f"{name}[{i}]")
            samples += batch_size(inputs)
            whole.update(fingerprint(inputs).encode())
        if samples == 0:
            raise empty(name)
        return cls(source, name, whole.hexdigest(), samples, _told(source))

    @property
    def original(self) -> Batches:
        """The same batches, for the network as it was before anything was encoded."""
        return self

    def __iter__(self) -> Iterator[Inputs]:
        """The batches again; other ones than the first time are an error, for results would not be repeatable."""
        whole = hashlib.sha256()
        for inputs in self.source:
            whole.update(fingerprint(inputs).encode())
            yield inputs
        if whole.hexdigest() != self.digest:
            raise InputError(
                "gave other batches when it was read again",
                where=self.field,
                why="results could not be repeated, and its first batch was the same",
                next="give a list, or a loader that shuffles from the first batch on, of which a sample is kept",
            )


def _told(source: Source) -> dict[str, str]:
    """What is not used of a source, by names that a report can show."""
    told = {f"{source.field}, {name}": why for name, why in source.left_out.items()}
    return {**told, source.field: source.cut} if source.cut else told


def first_sample(batches: Iterable[Inputs], name: str, dynamic: Dynamic | None = None) -> Inputs:
    """The first sample of the first batch, as a batch of one.

    Where the first axis is not open, where inputs are of several lengths along it, and where another input has its
    samples along another, the batch as it is.
    """
    for inputs in batches:
        cut = {key for key, x in inputs.tensors().items() if x.dim() and (dynamic is None or 0 in dynamic.get(key, {}))}
        lengths = {len(x) for key, x in inputs.tensors().items() if key in cut}
        if len(lengths) > 1 or _has_samples_elsewhere(dynamic or {}):
            return inputs
        return inputs.map(lambda key, x, cut=cut: x[:1] if key in cut else x)
    raise empty(name)


def _has_samples_elsewhere(dynamic: Dynamic) -> bool:
    """Whether an axis that is the first of one input is a later one of another."""
    first = {axes[0] for axes in dynamic.values() if 0 in axes}
    return any(axis and name in first for axes in dynamic.values() for axis, name in axes.items())


def empty(name: str) -> InputError:
    return InputError("holds no batches", where=name, next="give at least one batch")


def check_like(
    inputs: Inputs, like: Inputs, dynamic: Mapping[str | int, Mapping[int, str]], where: str, *, first: bool = True
) -> None:
    """Refuse inputs that do not go with the example; `first`: whether the first axis may differ even where closed."""
    given, wanted = inputs.tensors(), like.tensors()
    if set(given) != set(wanted):
        raise InputError(
            f"holds inputs {sorted(map(str, given))} where the example has {sorted(map(str, wanted))}",
            where=where,
            next="give the same inputs in every batch, and in example=",
        )
    _check_constants(inputs, like, where)
    for key, x in given.items():
        expected = wanted[key]
        open_axes = set(dynamic.get(key, {})) | ({0} if first else set())
        fits = x.dim() == expected.dim() and all(
            axis in open_axes or a == b for axis, (a, b) in enumerate(zip(x.shape, expected.shape, strict=True))
        )
        if not fits:
            raise InputError(
                f"input {key!r} has shape {tuple(x.shape)}",
                where=where,
                why=f"the example has {tuple(expected.shape)}",
                next="resize it, or name the axes that vary in dynamic=",
            )
        if x.dtype != expected.dtype:
            raise InputError(
                f"input {key!r} is {x.dtype}",
                where=where,
                why=f"the example is {expected.dtype}",
                next=f"convert it: x.to({expected.dtype})",
            )


def _check_constants(inputs: Inputs, like: Inputs, where: str) -> None:
    """Refuse other plain values than the example's."""
    ours, theirs = ({key: repr(x) for key, x in one.constants().items()} for one in (inputs, like))
    for name in {**theirs, **ours}:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"input {name!r} is {ours.get(name, 'missing')}, and {theirs.get(name, 'missing')} in the example",
                where=where,
                why="what is no tensor becomes a constant of what is built",
                next="give the same value everywhere, or let the model take it as a tensor",
            )
