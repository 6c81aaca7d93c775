"""Training data as it is read: in the same order whenever an epoch is read again, and known by its content."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.encodings.encoding import tensor_bytes
from lilliput.errors import InputError
from lilliput.feeding import batch_size, fingerprint, read_batches
from lilliput.feeding.chance import seed_all
from lilliput.model.views.inputs import Inputs
from lilliput.nested import leaves
from lilliput.progress import Progress, silent

LONGEST = 100_000  # batches of an epoch, of a source that does not tell how many it holds


@dataclass(frozen=True)
class Feed:
    """Batches of one field of a task, read once to know them."""

    source: Iterable[Any]
    field: str
    seed: int
    batches: int
    samples: int
    digest: str  # of the batches of the first epoch
    first: str  # fingerprint of its first batch
    classes: frozenset[int] | None  # labels that occur, where the batches end in labels

    @classmethod
    def known(cls, source: Iterable[Any], field: str, seed: int, progress: Progress = silent) -> Feed:
        """Read one epoch: emptiness and NaN are errors now, and not in an hour."""
        whole, batches, samples, first = hashlib.sha256(), 0, 0, ""
        classes: set[int] | None = set()
        seed_all(seed, 0)
        for where, batch in _told(source, field, progress):
            _check(batch, where)
            if batches >= LONGEST and _length(source) == 1:
                raise InputError(
                    f"does not end within {LONGEST} batches", where=field, next="give a source that tells its length"
                )
            read, size, labels = fingerprint(batch), batch_size(batch), labels_of(batch)
            first = first or read
            whole.update(read.encode())
            batches, samples = batches + 1, samples + size
            if labels is None or len(labels) != size:
                classes = None
            elif classes is not None:
                classes.update(labels[labels >= 0].tolist())  # negative ones mark what no loss looks at
        if batches == 0:
            raise InputError("holds no batches", where=field, next="give at least one batch")
        met = None if classes is None else frozenset(classes)
        return cls(source, field, seed, batches, samples, whole.hexdigest(), first, met)

    def epoch(self, number: int) -> Iterator[Any]:
        """The batches of an epoch, whose order and random changes its number alone decides.

        Random numbers are seeded when the epoch begins; what draws them afterwards shares them with the training.
        """
        count = 0
        seed_all(self.seed, number)
        for _, batch in read_batches(self.source, self.field):
            if number == count == 0 and fingerprint(batch) != self.first:
                raise InputError(
                    "gave another first batch when it was read again",
                    where=self.field,
                    next="shuffle by torch's own random numbers: DataLoader(…, shuffle=True) without a generator",
                )
            count += 1
            if count > self.batches:  # before it is trained with
                break
            yield batch
        if count != self.batches:
            raise InputError(
                f"gave {count} batches in epoch {number + 1} and {self.batches} when it was first read",
                where=self.field,
                next="give a source that is as long each time: a list or a DataLoader, not a generator",
            )


def check_classes(train: Feed, validate: Feed) -> None:
    """Refuse validation data in which a class that is trained does not occur."""
    if train.classes is None or validate.classes is None:
        return
    missing = sorted(train.classes - validate.classes)
    if missing:
        raise InputError(
            f"has no sample of class {', '.join(map(str, missing[:8]))}",
            where=validate.field,
            why="a validation split without a class cannot tell when training harms it",
            next="split so that every class is in both, or leave patience= out",
        )


def check_apart(validate: Feed, judged: Iterable[Any]) -> None:
    """Refuse batches to stop training by that are those which judge it: what comes out would be flattered."""
    judges = {one for batch in judged for one in samples(*_inputs(batch))}
    met = {one for batch in validate.epoch(0) for one in samples(*_inputs(batch))}
    if 2 * len(judges & met) > len(judges):
        raise InputError(
            f"holds {len(judges & met)} of the {len(judges)} samples of evaluate",
            where=validate.field,
            why="training stops where these fit best, so they cannot judge it",
            next="validate with other samples, taken from the training data",
        )


def samples(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[bytes]:
    """For each sample of a call what identifies it: 16 bytes of the SHA-256 of its part of every tensor."""
    tensors = [x for x in leaves((args, dict(kwargs))) if isinstance(x, Tensor) and x.dim()]
    size = len(tensors[0]) if tensors else 0
    found = [hashlib.sha256() for _ in range(size)]
    for x in tensors:
        whole = tensor_bytes(x)
        each = len(whole) // size
        for i, one in enumerate(found):
            one.update(whole[i * each : (i + 1) * each])
    return [one.digest()[:16] for one in found]


def _inputs(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first tensor of a batch as the arguments of a call: labels may follow it."""
    held = list(batch.tensors().values()) if isinstance(batch, Inputs) else leaves(batch)
    return tuple(x for x in held if isinstance(x, Tensor) and x.dim())[:1], {}


def labels_of(batch: Any) -> Tensor | None:
    """The labels of a batch that is a tuple and ends in them, or a dict that holds them: integers on one axis."""
    last = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    found = batch.get("labels") if isinstance(batch, Mapping) else last
    fits = isinstance(found, Tensor) and found.dtype == torch.int64 and found.dim() == 1
    return found if fits else None


def _check(batch: Any, where: str) -> None:
    tensors = [x for x in leaves(batch) if isinstance(x, Tensor)]
    if not tensors:
        raise InputError("holds no tensor", where=where, next="give tensors, in tuples or dicts as the loss takes them")
    if any(x.is_floating_point() and not bool(torch.isfinite(x).all()) for x in tensors):
        raise InputError("holds NaN or infinity", where=where, next="repair the data")


def _told(source: Iterable[Any], field: str, progress: Progress) -> Iterator[tuple[str, Any]]:
    """Each batch with its place, told once it is checked; of a source without a length only beginning and end are."""
    stage, total = f"reading {field}", _length(source)
    progress(stage, 0, total)
    for done, read in enumerate(read_batches(source, field), 1):
        yield read
        progress(stage, min(done, total - 1), total)
    progress(stage, total, total)


def _length(source: Iterable[Any]) -> int:
    """How many batches a source says it holds, at least 1."""
    try:
        return max(1, operator.length_hint(source))
    except Exception:  # the user's own code
        return 1
