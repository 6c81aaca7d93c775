"""What a recipe would do, for a dry run: nothing is searched, rounded by what flows, trained, built or timed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from lilliput.encodings import Encoding
from lilliput.engine.begin import check_changed, check_followed
from lilliput.engine.run import Driver
from lilliput.errors import LilliputError
from lilliput.model.coupling import Coupling, Group
from lilliput.model.depth import Dispensable
from lilliput.model.view import Call, View
from lilliput.recipe import Recipe
from lilliput.techniques.blocks import Block, Entry
from lilliput.techniques.choice import NEAREST, Choice, Fit, JointChoice
from lilliput.techniques.finetune import Finetune
from lilliput.techniques.inputs import Stop
from lilliput.techniques.statistics import Observe, Statistics
from lilliput.techniques.technique import Going, Placed

_SAMPLE = 1 << 16  # elements of a tensor by which it is told what fitting all of it takes


class Undecided(Exception):
    """What only doing it tells."""


@dataclass
class Plan:
    """What was planned, besides what the driver holds: what it takes, and what only doing it tells."""

    encoding_s: float = 0.0
    training_s: float = 0.0
    undecided: dict[str, str] = field(default_factory=dict)  # by step, what is not among the layers, and why
    apart: list[str] = field(default_factory=list)  # steps of which some time is not known


def planned(recipe: Recipe, driver: Driver) -> Plan:
    """Let `driver` stand as the recipe would leave it, as far as that is known without doing it."""
    check_followed(recipe, driver)
    plan = Plan()
    for i, step in enumerate(recipe.steps):
        run = _Planned(driver, plan, f"step {i + 1}, {type(step).__name__}")
        try:
            step.apply(run)
        except Undecided as why:
            plan.undecided[run.step] = str(why)
            run.takes_more()
    if not plan.undecided and not any(isinstance(step, Finetune) for step in recipe.steps):
        check_changed(driver)
    return plan


@dataclass
class _Planned:
    """A `Run` that does what is quick, puts the nearest for what is chosen, and leaves out the rest."""

    driver: Driver
    plan: Plan
    step: str
    _per_element_s: dict[Any, float] = field(default_factory=dict)

    def takes_more(self) -> None:
        if self.step not in self.plan.apart:
            self.plan.apart.append(self.step)

    # as the driver does

    @property
    def calibrated(self) -> bool:
        return self.driver.calibrated

    @property
    def multiple(self) -> int:
        return self.driver.multiple

    def view(self) -> View:
        return self.driver.view()

    def prepare(self) -> None:
        self.driver.prepare()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.driver.shapes()

    def tensor(self, path: str) -> Tensor:
        return self.driver.tensor(path)

    def encoding(self, path: str) -> Encoding | None:
        return self.driver.encoding(path)

    def encode_value(self, value: str, encoding: Encoding, parameters: Mapping[str, Tensor]) -> None:
        self.driver.encode_value(value, encoding, parameters)

    def set_tensor(self, path: str, x: Tensor) -> None:
        self.driver.set_tensor(path, x)

    def statistics(self, wanted: Mapping[str, Observe]) -> Mapping[str, Statistics]:
        return self.driver.statistics(wanted)

    def repeated(self) -> Sequence[str]:
        return self.driver.repeated()

    def coupling(self) -> Coupling:
        return self.driver.coupling()

    def place(self, encoding: Encoding, weights: Mapping[str, Encoding]) -> Placed:
        return self.driver.place(encoding, weights)

    def encoded_value(self, name: str) -> bool:
        return self.driver.encoded_value(name)

    def note(self, path: str, text: str, *, lasting: bool = False) -> None:
        self.driver.note(path, text, lasting=lasting)

    def skip(self, path: str, reason: str, *, lasting: bool = False) -> None:
        self.driver.skip(path, reason, lasting=lasting)

    # the nearest for what is chosen

    def encode(self, path: str, encoding: Encoding, choice: Choice = NEAREST) -> None:
        self._add_fit(path, encoding, choice.fit)
        self.driver.encode(path, encoding, Choice(choice.values))

    def encode_block(self, encodings: Mapping[str, Encoding], choice: JointChoice) -> None:
        for path, encoding in encodings.items():
            self.encode(path, encoding, Choice(fit=choice.fit))

    def walk(self, places: Sequence[Call | Block]) -> Generator[Stop | Entry, None, None]:
        """The places, where nothing flows."""
        self.takes_more()
        for place in places:
            if isinstance(place, Block):
                yield Entry(place, dict, dict, lambda inputs, given: (), lambda inputs: (), {})
            else:
                yield Stop(place, dict, dict)

    def remember(self, question: Any, compute: Callable[[], Tensor]) -> Tensor:
        return torch.zeros(())

    def rescale(self, factors: Mapping[str, Tensor], tolerance: float) -> float:
        return 0.0

    def _add_fit(self, path: str, encoding: Encoding, fit: Fit | None) -> None:
        """What fitting takes, told by some rows."""
        x = self.driver.tensor(path)
        kind = (encoding, fit)
        if fit is not None and x.dim() and kind not in self._per_element_s:
            some = x[: max(1, len(x) * _SAMPLE // max(1, x.numel()))]
            began = perf_counter()
            try:
                encoding.represent(some, fit.fit(some, encoding))
            except LilliputError:  # such rows alone cannot be; the driver tells if the whole cannot
                return
            self._per_element_s[kind] = (perf_counter() - began) / max(1, some.numel())
        self.plan.encoding_s += self._per_element_s.get(kind, 0.0) * x.numel()

    # what only doing it tells

    def dispensable(self, unit: str) -> Sequence[Dispensable]:
        if unit == "layers":
            return self.driver.dispensable(unit)
        raise Undecided("which blocks go is only found by running the network without each")

    def unremovable(self, going: Going) -> dict[Group, str]:
        raise Undecided("what goes is only found by shrinking copies and comparing them")

    def left(self, what: str, gone: Going | Sequence[Dispensable]) -> float:
        raise Undecided("how much goes is only found by trying")

    def shrink(self, going: Going) -> None:
        raise Undecided("what goes is only found by shrinking copies and comparing them")

    def undroppable(self, gone: Sequence[Dispensable]) -> dict[str, str]:
        raise Undecided("what goes is only found by running the network without it")

    def drop(self, gone: Sequence[Dispensable]) -> dict[str, str]:
        raise Undecided("what goes is only found by running the network without it")

    def train(self, step: Finetune) -> None:
        lessons = self.driver.lessons
        batches = operator.length_hint(lessons.train) if lessons is not None else 0
        self.plan.training_s += self.driver.batch_s.get(step, 0.0) * batches * step.epochs
        if not batches:
            self.takes_more()
