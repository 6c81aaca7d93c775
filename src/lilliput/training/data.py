"""Training data as it is read: in the same order whenever an epoch is read again, and known by its content."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lilliput.encodings import tensor_digest
from lilliput.encodings.encoding import tensor_bytes
from lilliput.errors import InputError, reason


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
    def known(cls, source: Iterable[Any], field: str, seed: int) -> Feed:
        """Read one epoch: emptiness and NaN are errors now, and not in an hour."""
        whole, batches, samples, first = hashlib.sha256(), 0, 0, ""
        classes: set[int] | None = set()
        for i, batch in enumerate(_read(source, field, seed, 0)):
            _check(batch, f"{field}[{i}]")
            read = fingerprint(batch)
            first = first or read
            whole.update(read.encode())
            batches, samples = batches + 1, samples + batch_size(batch)
            found = _labels(batch)
            classes = None if classes is None or found is None else classes | found
        if batches == 0:
            raise InputError("holds no batches", where=field, next="give at least one batch")
        labels = None if classes is None else frozenset(classes)
        return cls(source, field, seed, batches, samples, whole.hexdigest(), first, labels)

    def epoch(self, number: int) -> Iterator[Any]:
        """The batches of an epoch, whose order and random changes its number alone decides.

        Random numbers are seeded when the epoch begins; what draws them afterwards shares them with the training.
        """
        count = 0
        for batch in _read(self.source, self.field, self.seed, number):
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
    tensors = [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor) and x.dim()]
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
    return tuple(x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.dim())[:1], {}


def seed_all(seed: int, epoch: int) -> None:
    """Seed torch's, NumPy's and Python's own random numbers."""
    mixed = int.from_bytes(hashlib.sha256(f"{seed},{epoch}".encode()).digest()[:4], "little")
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


def fingerprint(batch: Any) -> str:
    """The content of one batch."""
    return "".join(tensor_digest(x) if isinstance(x, Tensor) else repr(x) for x in tree_leaves(batch))


def batch_size(batch: Any) -> int:
    return next((len(x) for x in tree_leaves(batch) if isinstance(x, Tensor) and x.dim()), 1)


def share(batch: Any, part: int, parts: int, where: str) -> Any:
    """The samples of a batch that fall to process `part` of so many: every `parts`-th, so that sizes are equal."""
    if parts == 1:
        return batch
    size = batch_size(batch)
    if size % parts:
        raise InputError(
            f"{size} samples for {parts} processes", where=where, next="give batches that divide, as by drop_last=True"
        )
    return tree_map(lambda x: x[part::parts] if isinstance(x, Tensor) and x.dim() and len(x) == size else x, batch)


def _read(source: Iterable[Any], field: str, seed: int, epoch: int) -> Iterator[Any]:
    seed_all(seed, epoch)
    try:
        yield from source
    except InputError:
        raise
    except Exception as error:  # the user's own code
        raise InputError("cannot be read", where=field, why=reason(error)) from error


def _check(batch: Any, where: str) -> None:
    leaves = [x for x in tree_leaves(batch) if isinstance(x, Tensor)]
    if not leaves:
        raise InputError("holds no tensor", where=where, next="give tensors, in tuples or dicts as the loss takes them")
    if any(x.is_floating_point() and not bool(torch.isfinite(x).all()) for x in leaves):
        raise InputError("holds NaN or infinity", where=where, next="repair the data")


def _labels(batch: Any) -> set[int] | None:
    """The labels of a batch that is a tuple of inputs and one integer a sample."""
    last = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if not isinstance(last, Tensor) or last.dtype != torch.int64 or last.dim() != 1 or len(last) != batch_size(batch):
        return None
    return set(last.unique().tolist())
