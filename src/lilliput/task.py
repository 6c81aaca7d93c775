"""What the user brings: a model, inputs to calibrate with, inputs and a metric to judge with."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from lilliput.encodings import tensor_digest
from lilliput.errors import InputError, LilliputError, reason
from lilliput.model.edits.copies import check_plain
from lilliput.model.views.inputs import Dynamic, Inputs, dynamic_axes
from lilliput.nested import leaves


@dataclass(frozen=True, eq=False)
class Task:
    """A model and what is needed to make it smaller without harm.

    Batches are tensors, tuples of tensors (positional) or dicts of tensors (keywords): exactly what the model takes.
    `calibrate` and `evaluate` must give the same batches each time they are iterated: a list, a `DataLoader` without
    shuffling, an object with `__iter__`; not a generator.

    `output` says what an answer is, and so what is compared of it: "classes" [samples, classes, …] (the same largest
    one), "values" (their error), "embedding" [samples, …, width] (cosine and ratio of norms) or "tokens", logits
    [samples, tokens, vocabulary] (the same word, and KL divergence). One word is for the output that metrics look at:
    "logits", or else the first; {"boxes": "values", "scores": "classes"} names each. What nobody says is values.
    """

    model: nn.Module
    example: Any = None  # one input, as latency is measured with; None: the first sample of `calibrate`
    calibrate: Iterable[Any] | None = None  # inputs that the model will meet, to find ranges with
    evaluate: Iterable[Any] | None = None  # other inputs, to judge by how far outputs agree with the original's
    clusters: Sequence[Any] | None = None  # for each sample of `evaluate`, its source (photograph, speaker, document)
    metric: Callable[[Any], Any] | None = None  # metric(model) -> one score a sample; tried before any work
    dynamic: Dynamic | None = None  # axes that vary, {input: {axis: name}}; None: axis 0 of every input is "batch"
    train: Iterable[Any] | None = None  # batches, whatever `loss` takes; shuffled by torch's random numbers if at all
    loss: Callable[[Any, Any], Tensor] | None = None  # loss(model, batch) -> the mean over the batch
    validate: Iterable[Any] | None = None  # batches as `train`, to stop training by; never those to judge by
    teacher: nn.Module | Sequence[nn.Module] | None = None  # for distillation; None: the model as it is given
    name: str = ""
    assets: Mapping[str, str | Path | bytes] | None = None  # files to travel in the .lil: name there -> path, or bytes
    baseline: nn.Module | None = None  # what the result is compared with; None: the model as it is given
    output: str | Mapping[str, str] | None = None  # what an answer is, or {place: what}; None: as the metric says


def read_assets(assets: Mapping[str, str | Path | bytes] | None) -> dict[str, bytes]:
    """The files that are to travel with the model, read."""
    read: dict[str, bytes] = {}
    for name, given in (assets or {}).items():
        try:
            read[name] = given if isinstance(given, bytes) else Path(given).read_bytes()
        except (OSError, TypeError) as error:
            raise InputError("cannot be read", where=f"assets[{name!r}]", why=reason(error)) from error
    return read


@dataclass(frozen=True)
class Batches:
    """The batches of one field of a task, checked once and fingerprinted as they are read."""

    source: Iterable[Any]
    field: str
    digest: str
    samples: int

    @classmethod
    def checked(
        cls, source: Iterable[Any], field: str, like: Inputs, dynamic: Mapping[str | int, Mapping[int, str]]
    ) -> Batches:
        """Read everything once: emptiness, NaN, wrong types and shapes are errors now and not in an hour.

        The first batch is read again, so that a loader that shuffles is found out at once.
        """
        whole, samples, first = hashlib.sha256(), 0, ""
        for i, inputs in enumerate(_read(source, field)):
            check_like(inputs, like, dynamic, f"{field}[{i}]")
            samples += batch_size(inputs)
            read = fingerprint(inputs)
            first = first or read
            whole.update(read.encode())
        if samples == 0:
            raise _empty(field)
        if fingerprint(next(_read(source, field))) != first:
            raise _unsteady(field)
        return cls(source, field, whole.hexdigest(), samples)

    @property
    def original(self) -> Batches:
        """The same batches, for the network as it was before anything was encoded."""
        return self

    def __iter__(self) -> Iterator[Inputs]:
        """The batches again; other ones than the first time are an error, for results would not be repeatable."""
        whole = hashlib.sha256()
        for inputs in _read(self.source, self.field):
            whole.update(fingerprint(inputs).encode())
            yield inputs
        if whole.hexdigest() != self.digest:
            raise _unsteady(self.field)


def first_sample(batches: Iterable[Any], field: str, dynamic: Dynamic | None = None) -> Inputs:
    """The first sample of the first batch, as a batch of one; where the first axis is not open, the batch as it is."""
    for inputs in _read(batches, field):
        return inputs.map(lambda key, x: x[:1] if x.dim() and (dynamic is None or 0 in dynamic.get(key, {})) else x)
    raise _empty(field)


def read_batches(source: Iterable[Any], field: str) -> Iterator[tuple[str, Any]]:
    """What the source of one field gives, each batch with its place, such as ``train[3]``.

    Raises InputError for what is no source of batches, and where the source fails.
    """
    batches = _opened(source, field)
    for i in itertools.count():
        where = f"{field}[{i}]"
        try:
            batch = next(batches)
        except StopIteration:
            return
        except LilliputError:
            raise
        except Exception as error:  # the user's own loader
            raise _unreadable(where, error) from error
        yield where, batch


def batch_size(batch: Any) -> int:
    """The samples of a batch, however it is nested: the length of its first tensor that has an axis."""
    return next((len(x) for x in _leaves(batch) if isinstance(x, Tensor) and x.dim()), 1)


def fingerprint(batch: Any) -> str:
    """The content of one batch, however it is nested; equal for equal batches."""
    return "".join(f"{_told(leaf)};" for leaf in _leaves(batch))


def _told(leaf: Any) -> str:
    if isinstance(leaf, np.ndarray):  # which prints itself shortened
        content = repr(leaf.tolist()).encode() if leaf.dtype.hasobject else leaf.tobytes()
        return hashlib.sha256(f"{leaf.dtype}{leaf.shape}".encode() + content).hexdigest()
    return tensor_digest(leaf) if isinstance(leaf, Tensor) else repr(leaf)


def _leaves(batch: Any) -> list[Any]:
    """What a batch holds; of inputs all arguments, each after its name."""
    return leaves(list(batch.named()) if isinstance(batch, Inputs) else batch)


def ask(model: Callable[..., Any], inputs: Inputs, where: str) -> Any:
    """What `model` answers to `inputs`; an error of its own comes out as one that says where the inputs are from."""
    try:
        return inputs.call(model)
    except LilliputError:
        raise
    except Exception as error:  # the user's own code raises whatever it likes
        raise InputError(
            "the model fails on this input", where=where, why=reason(error), next="give inputs that it accepts"
        ) from error


def _empty(field: str) -> InputError:
    return InputError("holds no batches", where=field, next="give at least one batch")


def _unsteady(field: str) -> InputError:
    return InputError(
        "gave other batches when it was read again",
        where=field,
        why="results could not be repeated; a loader that shuffles does this",
        next="give a list, or a loader with a fixed order",
    )


def _read(source: Iterable[Any], field: str) -> Iterator[Inputs]:
    if isinstance(source, Iterator):
        raise InputError(
            "can be read only once", where=field, why=f"a {type(source).__name__}", next="give a list, or a DataLoader"
        )
    for where, batch in read_batches(source, field):
        yield _inputs(batch, where)


def _opened(source: Iterable[Any], field: str) -> Iterator[Any]:
    if isinstance(source, Tensor | Mapping):
        kind = "tensor" if isinstance(source, Tensor) else "dict"
        raise InputError(f"is one {kind}", where=field, next=f"give a list of batches: [{kind}]")
    try:
        return iter(source)
    except TypeError:
        raise InputError(f"is of type {type(source).__name__}", where=field, next="give a list of batches") from None
    except Exception as error:
        raise _unreadable(field, error) from error


def _unreadable(where: str, error: Exception) -> InputError:
    return InputError("cannot be read", where=where, why=reason(error), next="repair the data or what loads it")


def _inputs(batch: Any, where: str) -> Inputs:
    try:
        inputs = Inputs.of(batch)
    except InputError as error:
        raise InputError(error.what, where=where, why=error.why, next=error.next) from None
    given = inputs.tensors()
    if not given:
        raise InputError("holds no tensor", where=where, next="give what the model takes")
    for key, x in given.items():
        if not x.numel():
            raise InputError(
                f"input {key!r} is empty, of shape {tuple(x.shape)}", where=where, next="leave the batch out"
            )
        if x.is_floating_point() and not all(bool(end.isfinite()) for end in x.aminmax()):  # a NaN is both ends
            raise InputError(f"input {key!r} holds NaN or infinity", where=where, next="repair the data")
    return inputs


def check_like(
    inputs: Inputs, like: Inputs, dynamic: Mapping[str | int, Mapping[int, str]], where: str, *, first: bool = True
) -> None:
    """Refuse inputs that do not go with the example; `first`: whether the first axis may differ even where closed."""
    given, wanted = inputs.tensors(), like.tensors()
    if set(given) != set(wanted):
        raise InputError(
            f"holds inputs {sorted(map(str, given))} where the model takes {sorted(map(str, wanted))}",
            where=where,
            next="give the inputs alone, without labels",
        )
    ours, theirs = ({key: repr(x) for key, x in one.constants().items()} for one in (inputs, like))
    for name in {**theirs, **ours}:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"input {name!r} is {ours.get(name, 'missing')}, and {theirs.get(name, 'missing')} in the example",
                where=where,
                why="what is no tensor becomes a constant of what is built",
                next="give the same value everywhere, or let the model take it as a tensor",
            )
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


def checked_example(task: Task) -> tuple[Inputs, dict[str | int, dict[int, str]]]:
    """The task's example and its open axes, as far as they can be judged without running the model."""
    if not isinstance(task.model, nn.Module):
        raise InputError(f"the model is a {type(task.model).__name__}", next="give a torch.nn.Module")
    check_plain(task.model)
    _check_dynamic(task.dynamic)
    if task.example is not None:
        example, where = _inputs(task.example, "example"), "example"
    elif task.calibrate is not None:
        example, where = first_sample(task.calibrate, "calibrate", task.dynamic), "calibrate[0]"
    else:
        raise InputError("a task needs an example", next="give example= or calibrate=")
    try:
        example.by_parameter(task.model.forward)
    except TypeError as error:
        raise InputError(
            "the model does not take this input",
            where=where,
            why=str(error),
            next="give the inputs alone, without labels: [x for x, _ in batches]",
        ) from None
    return example, dynamic_axes(example, task.dynamic)


def _check_dynamic(dynamic: Any) -> None:
    sound = dynamic is None or (
        isinstance(dynamic, Mapping)
        and all(isinstance(axes, Mapping) for axes in dynamic.values())
        and all(type(axis) is int and axis >= 0 for axes in dynamic.values() for axis in axes)
    )
    if not sound:
        raise InputError(f"is {dynamic!r}", where="dynamic", next='write {input: {axis: name}}, as {0: {0: "batch"}}')


def check_clusters(clusters: Sequence[Any] | None, evaluate: Batches | None) -> None:
    """There is one cluster label for each sample of `evaluate`, if there are any."""
    if clusters is None:
        return
    if not isinstance(clusters, Sized):
        raise InputError(
            f"is a {type(clusters).__name__}", where="clusters", next="give a list of labels, one a sample"
        )
    if evaluate is None:
        raise InputError("labels for no samples", where="clusters", next="give the samples as evaluate=")
    if len(clusters) != evaluate.samples:
        raise InputError(
            f"{len(clusters)} labels for {evaluate.samples} samples",
            where="clusters",
            next="give one a sample of evaluate=",
        )
