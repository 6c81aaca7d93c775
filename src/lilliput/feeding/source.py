"""One field of a task: the same inputs each time it is read, whatever the user gave."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.errors import InputError
from lilliput.feeding.chance import random_state_kept, seed_all
from lilliput.feeding.content import batch_size, fingerprint
from lilliput.feeding.read import read_batches
from lilliput.feeding.takes import ANY, LeftOut, Takes
from lilliput.model.views.inputs import Inputs

SAMPLES = 512  # that are kept of a source which cannot be read again
_IN_MEMORY = 256 << 20  # bytes of them; the rest lies on disk


@dataclass(frozen=True, eq=False)
class Source:
    """Batches that can be read again and again, and what of them the model takes.

    What shuffles, can be read once, or does not tell its length (and so may never end) is read once, as far as
    `samples` of it, and kept. What the reading draws by chance is seeded, so that another process keeps the same.
    """

    field: str
    takes: Takes
    batches: Iterable[Any]
    cut: str = ""  # why not all of it was read
    left_out: LeftOut = dataclasses.field(default_factory=dict)  # what lies in batches and is no input, once it was met

    @classmethod
    def of(cls, given: Any, name: str, takes: Takes = ANY, samples: int = SAMPLES) -> Source:
        """Whatever the user gave for the field of that name; raises InputError for what gives no batches."""
        if isinstance(given, Source):
            return given
        found = cls(name, takes, given, getattr(given, "cut", ""))
        why = _unsteady(found)
        return found._kept(why, samples) if why else found

    def __iter__(self) -> Iterator[Inputs]:
        for where, batch in read_batches(self.batches, self.field):
            inputs, left_out = self.takes.inputs(batch, where)
            self.left_out.update(left_out)
            yield checked(inputs, where)

    def _kept(self, why: str, samples: int) -> Source:
        """The first batches, as many as have so many samples, in place of all that come."""
        kept, cut = _Kept(), ""
        with random_state_kept():
            seed_all(0, 0)
            for inputs in self:
                if kept.samples >= samples:
                    cut = f"only its first {kept.samples} samples are used, for {why}; Task(samples=…) says how many"
                    break
                kept.add(inputs)
        return Source(self.field, self.takes, kept.batches, cut, self.left_out)


def _unsteady(source: Source) -> str:
    """Why a source cannot be relied on to give the same again; empty where it can, as far as its first batch shows."""
    if isinstance(source.batches, Iterator):
        return "it can be read only once"
    with random_state_kept():
        first, again = (next(iter(source), None) for _ in range(2))
    if first is not None and again is not None and fingerprint(first) != fingerprint(again):
        return "it gives other batches each time"
    try:
        len(source.batches)  # type: ignore[arg-type]
    except Exception:  # the user's own code
        return "it does not tell its length"
    return ""


class _Kept:
    """Batches that were read, in memory, and on disk from a certain size on."""

    def __init__(self) -> None:
        self.batches: list[Inputs] = []
        self.samples = self._bytes = 0

    def add(self, inputs: Inputs) -> None:
        self.samples += batch_size(inputs)
        self._bytes += sum(x.nbytes for x in inputs.tensors().values())
        self.batches.append(inputs.map(lambda _, x: x.clone()) if self._bytes <= _IN_MEMORY else inputs.map(_on_disk))


def _on_disk(key: str | int, x: Tensor) -> Tensor:
    """The same tensor, over a file that nobody else can name and that goes with it."""
    if not x.nbytes:
        return x
    with tempfile.NamedTemporaryFile(prefix="lilliput-") as file:
        file.write(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        return torch.from_file(file.name, shared=False, size=x.nbytes, dtype=torch.uint8).view(x.dtype).view(x.shape)


def checked(inputs: Inputs, where: str) -> Inputs:
    """Refuse inputs without tensors, and tensors that are empty or hold NaN."""
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


def example_of(given: Any, takes: Takes) -> Inputs:
    """The example of a task, as inputs."""
    return checked(takes.inputs(given, "example")[0], "example")
