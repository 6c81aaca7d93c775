"""Without a recipe of the user's nothing gets slower: what does not pay stays in float, tried on the target."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import nn

from lilliput.engine.begin import follow
from lilliput.engine.costs import latency, operators
from lilliput.engine.evidence import Built, build
from lilliput.engine.run import Driver
from lilliput.engine.tried import Tried
from lilliput.errors import LilliputError
from lilliput.feeding import fingerprint
from lilliput.measure import Latencies, Measurement
from lilliput.model.views.view import MULTIPLIES, RECURRENT
from lilliput.recipe import Recipe
from lilliput.targets.operators import slower_layers, unpaying
from lilliput.techniques.run import Answer
from lilliput.techniques.where import but, chosen

_LEAST_ROUNDS = 6  # with fewer, order statistics give no interval, and a difference of a tenth is chance
_TIE = 0.97  # as fast as float: 1 is within the interval, and the median not below this
_NOTABLE = 0.01  # of the time of a call: what a layer must lose to be left as it was
_AS_IS = "the target's own recipe"


def paying(original: nn.Module, driver: Driver, recipe: Recipe, work: Path) -> tuple[Driver, Recipe]:
    """What to deliver in place of `driver`, which followed the target's own `recipe`: no slower than `original`.

    The recipe as it is; then with those parts in float that lose time on the target; then weights alone; then without
    the layers that lose time even so. The first that is not slower than `original` is taken, else the fastest. Each is
    built and timed once, in `work`, and the choice is remembered. Where timing tells nothing, it stays as it is.
    """
    tries = _Tries(original, driver, recipe, work)
    question = (
        "paying",
        driver.environment,
        driver.state.base,
        None if driver.calibrate is None else driver.calibrate.digest,
        fingerprint(driver.example),
        str(driver.dynamic),
        repr(driver.target),
        recipe.to_toml(),
    )
    found = driver.store.answer(question, lambda: Answer(tries.found().to_json()), lambda it: not it.data["why_not"])
    choice = Tried(**found.data)
    return tries.made(choice), Recipe.from_toml(choice.recipe)


@dataclass
class _Try:
    """A recipe that was followed, built and timed beside float."""

    what: str
    recipe: Recipe
    reasons: Mapping[str, str]
    built: Built
    taken: Latencies

    @property
    def faster(self) -> Measurement:
        return self.taken.ratio("before", "after")

    @property
    def row(self) -> dict[str, object]:
        return {"what": self.what, "faster": self.faster.to_json()}

    @property
    def untold(self) -> str:
        """Why its timing decides nothing; empty where it does."""
        if not self.taken.timed or self.taken.disturbance:
            return self.taken.untimed or f"{self.taken.disturbance} while it was timed"
        rounds = self.taken.rounds
        return "" if rounds >= _LEAST_ROUNDS else f"{rounds} rounds of timing are too few: give the target more seconds"

    @property
    def not_slower(self) -> bool:
        return self.faster.value >= 1 or (self.faster.value >= _TIE and self.faster.high >= 1)


@dataclass
class _Tries:
    original: nn.Module
    driver: Driver  # that followed the recipe as it is
    recipe: Recipe
    work: Path
    _followed: dict[str, Driver] = field(default_factory=dict)  # drivers by the recipes that they followed

    def made(self, choice: Tried) -> Driver:
        """The driver that followed the chosen recipe, now or when it was chosen."""
        driver = self._following(Recipe.from_toml(choice.recipe))
        driver.tried = choice
        for path, reason in choice.reasons.items():
            driver.skip(path, reason)
        return driver

    def found(self) -> Tried:
        as_it_is = self.recipe.to_toml()
        if self.driver.target.untimed:
            return Tried(as_it_is, why_not=self.driver.target.untimed)
        tries = [self._try(_AS_IS, self.recipe, {})]
        if not tries[0].untold and tries[0].faster.value < 1:
            for what, recipe, reasons in self._others(tries):
                self.driver.progress("trying what pays", len(tries), len(tries) + 1)
                try:
                    tries.append(self._try(what, recipe, reasons))
                except LilliputError:  # a recipe that changes nothing then, say; the one before stands
                    continue
                if tries[-1].untold or tries[-1].not_slower:
                    break
            self.driver.progress("trying what pays", len(tries), len(tries))
        if untold := tries[-1].untold:
            return Tried(as_it_is, why_not=untold)
        best = tries[-1] if tries[-1].not_slower else max(tries, key=lambda one: one.faster.value)
        return Tried(best.recipe.to_toml(), best.what, [one.row for one in tries], dict(best.reasons))

    def _try(self, what: str, recipe: Recipe, reasons: Mapping[str, str]) -> _Try:
        driver, before = self._following(recipe), self._float
        built = build(driver, driver.model, driver.state.digest, self.work / f"net.{driver.target.writes.format}")
        return _Try(what, recipe, reasons, built, latency(driver, before, built))

    @cached_property
    def _float(self) -> Built:
        driver = self.driver.afresh(self.original)
        path = self.work / f"original.{driver.target.writes.format}"
        return build(driver, driver.model, driver.state.digest, path)

    def _following(self, recipe: Recipe) -> Driver:
        """A driver that followed `recipe`."""
        if recipe == self.recipe:
            return self.driver
        if recipe.to_toml() not in self._followed:
            driver = self.driver.afresh(self.original)
            follow(recipe, driver)
            self._followed[recipe.to_toml()] = driver
        return self._followed[recipe.to_toml()]

    def _others(self, tries: Sequence[_Try]) -> Iterator[tuple[str, Recipe, dict[str, str]]]:
        """What to try next, by what the last try showed: what it is, the recipe, and why layers are left out."""
        exact, slower = operators(self.driver, self._float), 1 / tries[0].faster.value
        lost = unpaying(exact, operators(self.driver, tries[0].built))
        layers = self._multiplied()
        if lost and any(path not in lost for path in layers):
            told = {path: _stays(times, "int8") for path, times in lost.items()}
            yield "some layers read floats", _reading_floats(self.recipe, lost, layers), told
        alone = _reading_floats(self.recipe, layers, layers)
        told = {path: _stays(slower, "int8") for path in layers} if alone != self.recipe else {}
        if alone != self.recipe:
            yield "weights alone", alone, told
        total = sum(one.ms for one in exact)
        shares = slower_layers(exact, operators(self.driver, tries[-1].built))
        losing = {one.layer for one in shares if one.layer and one.after_ms - one.before_ms > _NOTABLE * total}
        if losing:
            left = {path: f"stays in float: {tries[-1].what} made it slower here" for path in losing}
            yield "weights alone, but of some layers", _without(alone, losing), {**told, **left}

    def _multiplied(self) -> list[str]:
        """The layers of the recipe that multiply."""
        calls = self.driver.view().weights.items()
        return [path for path, used in calls if used[0].op in MULTIPLIES | RECURRENT and _meant(path, self.recipe)]


def _stays(times: float, what: str) -> str:
    return f"what it reads stays in float: {what} was {times:.2f}× slower here"


def _meant(path: str, recipe: Recipe) -> bool:
    return any(chosen(path, step.where) for step in recipe.steps)


def _reading_floats(recipe: Recipe, paths: Collection[str], layers: Sequence[str]) -> Recipe:
    """The recipe with the weights of these alone, of all `layers` that it means, not what flows into them."""
    return Recipe(step.reading_floats(paths, layers) for step in recipe.steps)


def _without(recipe: Recipe, paths: Collection[str]) -> Recipe:
    """The recipe with these left as they are."""
    given = [(step, (step.where,) if isinstance(step.where, str) else step.where) for step in recipe.steps]
    return Recipe(replace(step, where=(*where, *but(paths))) for step, where in given)
