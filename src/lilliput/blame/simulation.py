"""Where noise enters, found by running the modules themselves: quick, and near to what a runtime computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lilliput.blame.exact import differs, simulated
from lilliput.blame.places import Place
from lilliput.engine.run import Driver
from lilliput.feeding import Batches, ask, batch_size, fingerprint
from lilliput.measure import Noise
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.values import tapped
from lilliput.plain import digest
from lilliput.techniques.run import Answer

_PIECE = 4  # samples that run at a time: what all layers give is held at once
_SAME = 1e-4  # noise over signal by which all places together may miss the compressed network


@dataclass
class Case:
    """A network before and after, its places, and the samples that it is looked at with."""

    driver: Driver
    exact: nn.Module
    small: nn.Module
    places: Sequence[Place]
    pieces: Sequence[Inputs]
    judged_on: str
    on_target: list[Any] = field(default_factory=list)  # what the original gives there, once asked
    _answers: list[Any] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return sum(map(batch_size, self.pieces))

    @property
    def taps(self) -> list[str]:
        """The values that places give, in order."""
        return list(dict.fromkeys(value for place in self.places for value in place.gives))

    def answers(self) -> list[Any]:
        """What the network gave before anything was encoded, piece by piece."""
        if not self._answers:
            self._answers = [_ask(self.exact, inputs, self.judged_on) for inputs in self.pieces]
        return self._answers

    def question(self, *about: Any) -> tuple[Any, ...]:
        """What identifies an answer about this case."""
        data = digest([fingerprint(inputs) for inputs in self.pieces])
        return ("blame", self.driver.environment, self.driver.state.digest, data, *about)


def pieces_of(batches: Batches | Sequence[Inputs], driver: Driver, count: int, *, spread: bool) -> list[Inputs]:
    """`count` samples in small batches, the first or `spread` over all; whole batches where rows are no samples."""
    whole = batches.samples if isinstance(batches, Batches) else sum(map(batch_size, batches))
    stride = max(1, whole // count) if spread else 1
    found: list[Inputs] = []
    taken = at = 0
    for inputs in batches:
        size = batch_size(inputs)
        rows = [i for i in range(size) if (at + i) % stride == 0][: count - taken]
        at += size
        if not rows:
            continue
        if not _divisible(inputs, driver):
            found.append(inputs)
            taken += size
        else:
            chosen = torch.tensor(rows)
            for part in chosen.split(_PIECE):
                found.append(inputs.map(lambda key, x, part=part: x[part]))
            taken += len(rows)
        if taken >= count:
            break
    return found


def _divisible(inputs: Inputs, driver: Driver) -> bool:
    """Whether the first axis of every input is one of samples, of which any number may be given."""
    given = inputs.tensors()
    same = len({len(x) for x in given.values() if x.dim()}) == 1
    return same and all(x.dim() and 0 in driver.dynamic.get(key, {}) for key, x in given.items())


def reached(case: Case) -> tuple[dict[str, Noise], Noise]:
    """The noise on every value that a place gives, and on the output, in the compressed network."""
    taps, found, output = case.taps, {tap: Noise() for tap in case.taps}, Noise()
    with tapped(case.exact, taps), tapped(case.small, taps):
        for inputs in case.pieces:
            before, after = (_ask(model, inputs, case.judged_on) for model in (case.exact, case.small))
            output.add(before[0], after[0])
            for tap, x, y in zip(taps, before[1], after[1], strict=True):
                found[tap].add(x, y)
    return found, output


def alone(case: Case, place: Place, *, weights: bool = True, values: bool = True) -> float:
    """Noise over signal of the output with this place encoded and no other."""

    def compute() -> Answer:
        return Answer(with_places(case, [place], weights=weights, values=values))

    question = case.question("alone", place.name, weights, values)
    return float(case.driver.store.answer(question, compute).data)


def divided(case: Case) -> str:
    """Why the damage cannot be divided among places; empty where it can.

    All places put into the network as it was before must give the compressed one: not so after training, say.
    """
    why = differs(case.exact, case.small, case.places)
    if why:
        return why
    together = Noise()
    with simulated(case.exact, case.small, case.places):
        found = [_ask(case.exact, inputs, case.judged_on) for inputs in case.pieces[:1]]
    for inputs, out in zip(case.pieces, found, strict=False):
        together.add(_ask(case.small, inputs, case.judged_on), out)
    if together.ratio > _SAME:
        return "more than encodings sets the network apart from what it was before: it was trained or changed after"
    return ""


def with_places(case: Case, chosen: Sequence[Place], *, weights: bool = True, values: bool = True) -> float:
    """Noise over signal of the output with the `chosen` places encoded and no others."""
    noise, answers = Noise(), case.answers()
    for inputs, before in zip(case.pieces, answers, strict=True):
        with simulated(case.exact, case.small, chosen, weights=weights, values=values):
            noise.add(before, _ask(case.exact, inputs, case.judged_on))
    return noise.ratio


def _ask(model: nn.Module, inputs: Inputs, where: str) -> Any:
    with torch.no_grad():
        return ask(model, inputs, where)
