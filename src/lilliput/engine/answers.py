"""What the outputs of a network are, as its task says, and how far those of two networks agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lilliput.engine.evidence import Built
from lilliput.engine.run import Driver
from lilliput.errors import InputError, nearest
from lilliput.feeding import Batches, ask, batch_size, fingerprint
from lilliput.measure import KINDS, Distance, DistanceSoFar, Kind, Measurement, as_rows, mean, misfit, places
from lilliput.model.views.inputs import Inputs
from lilliput.outputs import flatten_outputs, judged
from lilliput.task import Task
from lilliput.techniques.run import Answer


def kinds(task: Task, driver: Driver) -> dict[str, Kind]:
    """What each output is, by its place, where the task or its metric says so.

    Raises InputError for a kind or a place that there is none of, and for an output that cannot be of its kind.
    """
    with torch.no_grad():
        answered = ask(driver.model, driver.example, "example" if task.example is not None else "calibrate[0][:1]")
    rows = (as_rows(x, batch_size(driver.example)) for x in flatten_outputs(answered))
    shapes = {place: tuple(x.shape) for place, x in zip(places(answered), rows, strict=True)}
    told, place = task.output, judged(shapes)
    if told is None:
        said = getattr(task.metric, "output", None)
        return {place: said} if shapes and said in KINDS and not misfit(said, shapes[place]) else {}
    if not isinstance(told, str | Mapping):
        raise InputError(f"is {told!r}", where="output", next=f"give one of {', '.join(KINDS)}, or {{output: one}}")
    named = {place: told} if isinstance(told, str) else {str(place): kind for place, kind in told.items()}
    return {place: _checked(place, kind, shapes) for place, kind in named.items()}


def _checked(place: str, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    known = next((one for one in KINDS if one == kind), None)
    if known is None:
        raise InputError(f"is {kind!r}", where="output", next=nearest(str(kind), KINDS))
    if place not in shapes:
        raise InputError(f"the model has no output {place!r}", where="output", next=nearest(place, shapes))
    if why := misfit(known, shapes[place]):
        raise InputError(f"{kind} of shape {list(shapes[place])}", where=_where(place), why=why, next='say "values"')
    return known


def _where(place: str) -> str:
    return f"output {place}".strip()


@dataclass(frozen=True)
class Likeness:
    """How far one output agrees with the original's, over all samples."""

    place: str  # of the output; "" where the answer is one tensor
    kind: Kind
    samples: int
    largest_error: float
    sqnr_db: float
    constant: bool  # whether the original's is the same for all samples, so that it tells nothing
    relative_error: Measurement  # of a sample: length of its error over that of an output
    worst: int  # the sample whose error is the largest
    worst_error: float  # and that error, as `relative_error`
    figures: Mapping[str, Measurement]  # the kind's own

    @classmethod
    def of(cls, distance: Distance, clusters: Sequence[Any] | None) -> Likeness:
        errors = distance.relative_errors
        labels = clusters if clusters is not None and len(clusters) == distance.samples else None
        return cls(
            distance.place,
            distance.kind,
            distance.samples,
            distance.largest_error,
            distance.sqnr_db,
            distance.constant,
            mean(errors.numpy(), labels),
            int(errors.argmax()),
            float(errors.max()),
            {name: mean(scores.numpy(), labels) for name, scores in distance.scores.items()},
        )


@dataclass(frozen=True)
class Closeness:
    """How far the outputs of two built models agree, each output by itself."""

    judged_on: str
    samples: int
    outputs: tuple[Likeness, ...]

    def to_json(self) -> dict[str, Any]:
        return {"judged_on": self.judged_on, "samples": self.samples, "outputs": [_plain(one) for one in self.outputs]}


def _plain(one: Likeness) -> dict[str, Any]:
    figures = {name: figure.to_json() for name, figure in one.figures.items()}
    db = None if one.sqnr_db == math.inf else max(one.sqnr_db, -99.0)
    return {**asdict(one), "sqnr_db": db, "relative_error": one.relative_error.to_json(), "figures": figures}


def closeness(driver: Driver, task: Task, before: Built, after: Built, evaluate: Batches | None) -> Closeness:
    """Compare what was built before and after, sample by sample; the intervals are clustered by source."""
    batches: Batches | Sequence[Inputs] = evaluate or driver.calibrate or [driver.example]
    judged_on = "evaluation batches" if evaluate else "calibration batches" if driver.calibrate else "the example"
    data = batches.digest if isinstance(batches, Batches) else [fingerprint(inputs) for inputs in batches]
    are = kinds(task, driver)
    question = ("closeness", driver.environment, before.digest, after.digest, data, sorted(are.items()))

    def compute() -> Answer:
        found = _distances(driver, before, after, batches, are)
        told = [[one.place, one.kind, one.largest_error, one.constant, sorted(one.scores)] for one in found]
        held = {f"{i}.{name}": x for i, one in enumerate(found) for name, x in _held(one).items()}
        return Answer(told, held)

    answer = driver.store.answer(question, compute)
    found = []
    for i, (place, kind, largest, constant, scores) in enumerate(answer.data):
        signal, noise, *of_kind = (answer.tensors[f"{i}.{name}"] for name in ("signal", "noise", *scores))
        found.append(Distance(place, kind, largest, constant, signal, noise, dict(zip(scores, of_kind, strict=True))))
    clusters = task.clusters if evaluate else None
    for one in found:
        if not one.samples:
            driver.skip(_where(one.place), "it is empty for every sample, so nothing of it was compared")
    likenesses = tuple(Likeness.of(one, clusters) for one in found if one.samples)
    return Closeness(judged_on, _samples(batches), likenesses)


def _samples(batches: Batches | Sequence[Inputs]) -> int:
    return batches.samples if isinstance(batches, Batches) else sum(map(batch_size, batches))


def _held(one: Distance) -> dict[str, torch.Tensor]:
    return {"signal": one.signal, "noise": one.noise, **one.scores}


def _distances(
    driver: Driver, before: Built, after: Built, batches: Batches | Sequence[Inputs], are: Mapping[str, Kind]
) -> list[Distance]:
    field = batches.field if isinstance(batches, Batches) else "example"
    so_far, done = DistanceSoFar(are), 0
    for i, inputs in enumerate(batches):
        where, count = f"{field}[{i}]", batch_size(inputs)
        so_far.add(ask(before.run, inputs, where), ask(after.run, inputs, where), count)
        if (bad := so_far.infinite) is not None:
            raise InputError(
                "the compressed network and the one it was made of answer with NaN or infinity in different places",
                where=", ".join(filter(None, (where, bad and _where(bad)))),
                why=f"as computed for {driver.target.name}",
                next="leave the batch out, or mend where the network divides by zero or overflows",
            )
        done += count
        driver.progress("comparing outputs", done, _samples(batches))
    return so_far.distances()
