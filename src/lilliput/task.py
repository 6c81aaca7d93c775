"""What the user brings: a model, inputs to calibrate with, inputs and a metric to judge with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.encodings import tensor_digest
from lilliput.errors import InputError
from lilliput.model.capture import Dynamic, Inputs, dynamic_axes


@dataclass(frozen=True, eq=False)
class Task:
    """A model and what is needed to make it smaller without harm.

    Batches are tensors, tuples of tensors (positional) or dicts of tensors (keywords): exactly what the model takes.
    `calibrate` and `evaluate` must give the same batches each time they are iterated: a list, a `DataLoader` without
    shuffling, an object with `__iter__`; not a generator.
    """

    model: nn.Module
    example: Any = None  # one input, as latency is measured with; None: the first sample of `calibrate`
    calibrate: Iterable[Any] | None = None  # inputs that the model will meet, to find ranges with
    evaluate: Iterable[Any] | None = None  # other inputs, to judge by how far outputs agree with the original's
    clusters: Sequence[Any] | None = None  # for each sample of `evaluate`, its source (photograph, speaker, document)
    metric: Callable[[Any], Any] | None = None  # metric(model) -> one score a sample
    dynamic: Dynamic | None = None  # axes that vary, {input: {axis: name}}; None: axis 0 of every input is "batch"
    name: str = ""


@dataclass(frozen=True)
class Batches:
    """The batches of one field of a task, checked once and fingerprinted as they are read."""

    source: Iterable[Any]
    field: str
    digest: str
    samples: int

    @classmethod
    def checked(cls, source: Iterable[Any], field: str, like: Inputs, dynamic: Mapping[str | int, Mapping[int, str]]) -> Batches:
        """Read everything once: emptiness, NaN, wrong types and shapes are errors now and not in an hour."""
        whole, samples = hashlib.sha256(), 0
        for i, inputs in enumerate(_read(source, field)):
            where = f"{field}[{i}]"
            _check_like(inputs, like, dynamic, where)
            samples += batch_size(inputs)
            whole.update(fingerprint(inputs).encode())
        if samples == 0:
            raise InputError("holds no batches", where=field, next="give at least one batch; a generator can be read only once")
        return cls(source, field, whole.hexdigest(), samples)

    def __iter__(self) -> Iterator[Inputs]:
        """The batches again; other ones than the first time are an error, for results would not be repeatable."""
        whole = hashlib.sha256()
        for inputs in _read(self.source, self.field):
            whole.update(fingerprint(inputs).encode())
            yield inputs
        if whole.hexdigest() != self.digest:
            raise InputError(
                "gave other batches than the first time",
                where=self.field,
                why="a generator, or a loader that shuffles",
                next="give a list, or a loader with a fixed order",
            )


def first_sample(batches: Iterable[Any], field: str) -> Inputs:
    """The first sample of the first batch, as a batch of one."""
    for inputs in _read(batches, field):
        return inputs.map(lambda key, x: x[:1])
    raise InputError("holds no batches", where=field, next="give at least one batch")


def batch_size(inputs: Inputs) -> int:
    sizes = [len(x) for x in inputs.tensors().values() if x.dim()]
    return sizes[0] if sizes else 1


def fingerprint(inputs: Inputs) -> str:
    return "".join(f"{key}:{tensor_digest(x)};" for key, x in inputs.tensors().items())


def _read(source: Iterable[Any], field: str) -> Iterator[Inputs]:
    if isinstance(source, Tensor):
        raise InputError("is one tensor", where=field, next="give a list of batches: [tensor]")
    for i, batch in enumerate(source):
        try:
            yield Inputs.of(batch)
        except InputError as error:
            raise InputError(error.what, where=f"{field}[{i}]", next=error.next) from None


def _check_like(inputs: Inputs, like: Inputs, dynamic: Mapping[str | int, Mapping[int, str]], where: str) -> None:
    given, wanted = inputs.tensors(), like.tensors()
    if set(given) != set(wanted):
        raise InputError(
            f"holds inputs {sorted(map(str, given))} where the model takes {sorted(map(str, wanted))}",
            where=where,
            next="give the inputs alone, without labels",
        )
    for key, x in given.items():
        expected = wanted[key]
        open_axes = set(dynamic.get(key, {})) | {0}
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
            raise InputError(f"input {key!r} is {x.dtype}", where=where, why=f"the example is {expected.dtype}")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise InputError(f"input {key!r} holds NaN or infinity", where=where, next="repair the data")


def checked_example(task: Task) -> tuple[Inputs, dict[str | int, dict[int, str]]]:
    """The task's example and its open axes; the model must run on it and answer with finite numbers."""
    if task.example is None and task.calibrate is None:
        raise InputError("a task needs an example", next="give example= or calibrate=")
    if not isinstance(task.model, nn.Module):
        raise InputError(f"the model is a {type(task.model).__name__}", next="give a torch.nn.Module")
    example = first_sample(task.calibrate, "calibrate") if task.example is None else Inputs.of(task.example)  # type: ignore[arg-type]
    try:
        example.by_parameter(task.model.forward)
    except TypeError as error:
        raise InputError(
            "the model does not take this input",
            where="example",
            why=str(error),
            next="give the inputs alone, without labels: [x for x, _ in batches]",
        ) from None
    return example, dynamic_axes(example, task.dynamic)
