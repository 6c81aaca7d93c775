"""The same figures from what the target runs: integer kernels round, and may saturate, otherwise than modules do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lilliput.blame.exact import with_encodings
from lilliput.blame.places import Place, encoded_weights
from lilliput.blame.simulation import Case
from lilliput.encodings import Encoding, Int
from lilliput.feeding import ask
from lilliput.measure import Noise
from lilliput.model.views.signature import Signature
from lilliput.model.views.values import tapped, value_encodings
from lilliput.outputs import flatten_outputs
from lilliput.techniques.run import Answer, Wanted

Runner = Callable[..., Any]


@dataclass(frozen=True)
class Reached:
    """Noise over signal of the compressed network against the original, both as built."""

    values: Mapping[str, float]  # by the name of a value
    output: float
    tapping: float  # what giving the values out changed in the compressed network's output


def reached(case: Case) -> Reached:
    """Both networks built with what their places give as outputs beside their own, and compared value by value.

    A value is given out as it is encoded, which leaves the integer kernels in place; what it changes all the same is
    measured against the network built without.
    """

    def compute() -> Answer:
        values, output, tapping = {tap: Noise() for tap in case.taps}, Noise(), Noise()
        models: tuple[tuple[nn.Module, Sequence[str]], ...] = (
            (case.exact, case.taps),
            (case.small, case.taps),
            (case.small, []),
        )
        with ExitStack() as stack:
            was, now, plain = (stack.enter_context(_opened(case, model, taps)) for model, taps in models)
            for i, inputs in enumerate(case.pieces):
                case.driver.progress("looking inside", i, len(case.pieces))
                before, after, untapped = (ask(run, inputs, case.judged_on) for run in (was, now, plain))
                output.add(before[0], untapped)
                tapping.add(untapped, after[0])
                for tap, x, y in zip(case.taps, before[1], after[1], strict=True):
                    values[tap].add(x, y)
        case.driver.progress("looking inside", len(case.pieces), len(case.pieces))
        return Answer([{tap: noise.ratio for tap, noise in values.items()}, output.ratio, tapping.ratio])

    return Reached(*case.driver.store.answer(_question(case, "reached"), compute).data)


def alone(case: Case, place: Place) -> float:
    """Noise over signal of the output of what is built with this place encoded and no other."""
    return _output(case, [place], "alone", place)


def without(case: Case, place: Place) -> float:
    """Noise over signal of the output of what is built with all encoded but this place's weight, and those values that
    the target wants encoded only because of it: what `where="!…"` would give.
    """
    left = [_left_out(case, place) if other is place else other for other in case.places]
    return _output(case, left, "without", place)


def _left_out(case: Case, place: Place) -> Place:
    if place.weight is None:
        return replace(place, values=())
    encoders = value_encodings(case.small)
    weights: dict[str, Encoding] = {
        path: held.encoding for path, held in encoded_weights(case.small).items() if path != place.weight
    }
    wanted = {
        placed.value
        for encoding in {encoder.encoding for encoder in encoders.values() if isinstance(encoder.encoding, Int)}
        for placed in case.driver.target.prefers.place(
            case.driver.view(), Wanted(dict.fromkeys(weights, encoding), weights)
        ).values
    }
    return replace(place, weight=None, bias=None, values=tuple(name for name in place.values if name in wanted))


def _output(case: Case, chosen: Sequence[Place], what: str, place: Place) -> float:
    def compute() -> Answer:
        noise = Noise()
        with _opened(case, with_encodings(case.exact, case.small, chosen)) as run:
            for inputs, before in zip(case.pieces, _before(case), strict=True):
                noise.add(before, ask(run, inputs, case.judged_on))
        return Answer(noise.ratio)

    return float(case.driver.store.answer(_question(case, what, place.name), compute).data)


def _before(case: Case) -> list[Any]:
    """The original's outputs from the runtime, asked once."""
    if not case.on_target:
        with _opened(case, case.exact) as run:
            case.on_target = [flatten_outputs(ask(run, inputs, case.judged_on)) for inputs in case.pieces]
    return case.on_target


def _question(case: Case, *about: Any) -> tuple[Any, ...]:
    return case.question("built", repr(case.driver.target), str(case.driver.dynamic), *about)


@contextmanager
def _opened(case: Case, model: nn.Module, taps: Sequence[str] = ()) -> Iterator[Runner]:
    """`model` built for the target, its `taps` given out, and opened; its file is gone in the end."""
    driver = case.driver
    with tempfile.TemporaryDirectory(prefix="lilliput-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / f"net.{driver.target.writes.format}"
        with tapped(model, taps) if taps else nullcontext(), torch.no_grad():
            driver.target.writes.build(path, model, driver.example, driver.dynamic)
            signature = Signature.of(driver.example, driver.example.call(model), model.forward)
            run = driver.target.opened(path, signature, model)
        yield run
