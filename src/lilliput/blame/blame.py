"""From a compressed network to a diagnosis: in full, on what the target runs, or in brief, on the module alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lilliput.blame import built, simulation
from lilliput.blame.causes import Cause, leave_out, of_runtime, of_value, of_weight, rounding
from lilliput.blame.diagnosis import Diagnosis, Row
from lilliput.blame.exact import before_encoding
from lilliput.blame.facts import value_facts, weight_facts
from lilliput.blame.places import Place, encoded_weights, places
from lilliput.blame.simulation import Case, pieces_of
from lilliput.engine.run import Driver
from lilliput.errors import raise_own, reason
from lilliput.feeding import Batches
from lilliput.measure import cpu, decibels
from lilliput.model.views.values import value_encodings
from lilliput.targets.target import BY_REFERENCE, NOT_HERE

_BRIEF_SAMPLES, _BRIEF_SUSPECTS, _BRIEF_WORST = 4, 8, 3
_GAIN_DB = 0.5  # of the output, by which leaving a place in float must help to be advised
_SHARE = 0.05  # of what the worst place loses; below it nothing is explained
_EVEN, _FEW = 0.25, 3  # share of the noise up to which the worst is none to blame; how many are told beside it
_MOST_CAUSES = 2  # told of one place
_TAPPING = 1e-3  # noise over signal by which giving values out may change what is built


@dataclass
class _Found:
    """What is known of one place so far, as noise over signal."""

    place: Place
    encoded: bool
    added: float  # at what it gives, beyond what reached it
    reached: float | None
    beyond_module_db: float = 0.0  # what the runtime adds to that
    own: float | None = None
    own_on: str = ""
    without: float | None = None
    causes: list[Cause] = field(default_factory=list)

    @property
    def badness(self) -> float:
        return self.added if self.own is None else self.own


def brief(driver: Driver, original: nn.Module, batches: Batches | None, name: str) -> dict[str, Any]:
    """What a run can tell at low cost: a few samples, the module, and the places where most noise enters.

    A run is not lost to what goes wrong here: then its reason is all that is told.
    """
    try:
        found = _brief(driver, original, batches, name)
    except Exception as error:  # whatever the user's own model raises
        raise_own(error)
        nothing = Diagnosis(
            name, driver.target.name, "module", "example", 0, None, (), (f"not found: {reason(error)}",)
        )
        return nothing.to_json()
    return found.to_json()


def _brief(driver: Driver, original: nn.Module, batches: Batches | None, name: str) -> Diagnosis:
    driver.progress("finding where it loses", 0, 1)
    case = _case(driver, original, batches, _BRIEF_SAMPLES, spread=False)
    noise, output = simulation.reached(case)
    found = _found(case, {tap: one.ratio for tap, one in noise.items()})
    notes = [_how_brief(len(found))] if found else []
    suspects = sorted((one for one in found if one.encoded), key=lambda one: -one.added)[:_BRIEF_SUSPECTS]
    why = simulation.divided(case)
    for one in () if why else suspects:
        one.own, one.own_on = simulation.alone(case, one.place), "module"
    _explain(case, sorted(suspects, key=lambda one: -one.badness)[:_BRIEF_WORST], divided=not why)
    driver.progress("finding where it loses", 1, 1)
    return _diagnosis(case, name, "module", output.ratio, found, [*notes, *_undivided(why)])


def full(
    driver: Driver, original: nn.Module, batches: Batches | None, name: str, *, samples: int, worst: int
) -> Diagnosis:
    """Every place alone in the module, and the worst ones alone, and left out, on what the target runs."""
    case = _case(driver, original, batches, samples, spread=True)
    if not any(_encoded(case, place) for place in case.places):
        return _diagnosis(case, name, "target", 0.0, [], ["nothing is encoded, so nothing is lost to an encoding"])
    inside = built.reached(case)
    modules = {tap: one.ratio for tap, one in simulation.reached(case)[0].items()}
    found = _found(case, inside.values, modules)
    encoded = [one for one in found if one.encoded]
    why = simulation.divided(case)
    for i, one in enumerate(() if why else encoded):
        driver.progress("encoding one layer at a time", i, len(encoded))
        one.own, one.own_on = simulation.alone(case, one.place), "module"
    driver.progress("encoding one layer at a time", len(encoded), len(encoded))
    chosen = sorted(encoded, key=lambda one: -one.badness)[:worst]
    for i, one in enumerate(() if why else chosen):
        driver.progress("building the worst alone and left out", i, len(chosen))
        one.own, one.own_on = built.alone(case, one.place), "target"
        one.without = built.without(case, one.place)
    driver.progress("building the worst alone and left out", len(chosen), len(chosen))
    _explain(case, chosen, divided=not why)
    for one in chosen:
        one.causes = [_as_measured(cause, one, inside.output) for cause in one.causes]
    notes = [*_undivided(why), *_even(found)]
    if driver.target.runs is None:
        notes.append(f"{NOT_HERE}: {BY_REFERENCE}")
    if inside.tapping > _TAPPING:
        notes.append(
            f"giving values out changed the output by {decibels(inside.tapping):.0f} dB: "
            "what reached them may differ from what flows unseen"
        )
    return _diagnosis(case, name, "target", inside.output, found, notes)


def _case(driver: Driver, original: nn.Module, batches: Batches | None, samples: int, *, spread: bool) -> Case:
    exact = before_encoding(driver, original)
    pieces = pieces_of(batches or [driver.example], driver, samples, spread=spread)
    field = batches.field if batches else "example"
    return Case(driver, exact, driver.model, places(driver.view(), driver.model), pieces, field)


def _encoded(case: Case, place: Place) -> bool:
    return bool(place.values) or place.weight in encoded_weights(case.small)


def _found(case: Case, reached: Mapping[str, float], modules: Mapping[str, float] | None = None) -> list[_Found]:
    """The places that are encoded, and those where the runtime loses more than the module: `modules`, what that has."""
    found = []
    for place in case.places:
        gives, reads = ([reached[value] for value in names if value in reached] for names in (place.gives, place.reads))
        added = max(0.0, max(gives, default=0.0) - max(reads, default=0.0))
        extra = 0.0 if modules is None else _extra_db(place, reached, modules)
        encoded = _encoded(case, place)
        causes = of_runtime(place, encoded, extra, cpu().may_saturate)
        if encoded or causes:
            found.append(_Found(place, encoded, added, max(gives, default=None), extra, causes=causes))
    return found


def _extra_db(place: Place, reached: Mapping[str, float], modules: Mapping[str, float]) -> float:
    """By how much more the runtime loses than the module at what a place gives, less what it does at what it reads."""

    def extra(names: Sequence[str]) -> float:
        pairs = [(reached[name], modules[name]) for name in names if name in reached and reached[name] > 1e-4]
        return max((10 * math.log10(ours / max(theirs, 1e-6)) for ours, theirs in pairs), default=0.0)

    return extra(place.gives) - max(0.0, extra(place.reads))


def _explain(case: Case, worst: Sequence[_Found], *, divided: bool) -> None:
    """Add the likely causes of the worst places."""
    values = value_facts(case.exact, case.small, [one.place for one in worst], case.pieces, case.judged_on)
    for one in worst:
        weight = weight_facts(case.exact, case.small, one.place)
        seen = [values[name] for name in one.place.values if name in values]
        in_weight = of_weight(one.place, weight) if weight else []
        in_values = sorted((cause for facts in seen for cause in of_value(one.place, facts)), key=lambda x: -x.strength)
        part = "weight" if weight else "values"
        if one is not worst[0] and divided and (one.own or 0.0) < _SHARE * (worst[0].own or 0.0):
            continue  # nothing to be gained there
        if weight and seen and divided:
            part = "weight" if simulation.alone(case, one.place, values=False) > 0.5 * (one.own or 0.0) else "values"
        first, second = (in_weight, in_values) if part == "weight" else (in_values, in_weight)
        if not divided:
            first, second = sorted([*first, *second], key=lambda cause: -cause.strength), []
        likely = [*one.causes, *(first or [*second, rounding(one.place, part)])][:_MOST_CAUSES]
        one.causes = _each_once(likely)


def _each_once(causes: Sequence[Cause]) -> list[Cause]:
    """The causes, each remedy with the first of them that names it."""
    told: set[str] = set()
    found = []
    for cause in causes:
        found.append(replace(cause, remedies=tuple(remedy for remedy in cause.remedies if remedy not in told)))
        told.update(cause.remedies)
    return found


def _as_measured(cause: Cause, one: _Found, output: float) -> Cause:
    """The cause with what leaving the place in float was measured to bring; not advised where it brings nothing."""
    before, after = decibels(output), None if one.without is None else decibels(one.without)
    advice = leave_out(one.place)
    if before is None or after is None or advice not in cause.remedies:
        return cause
    gained = f"{before:.1f} → {after:.1f} dB"
    if after - before >= _GAIN_DB:
        told = tuple(f"{remedy} ({gained})" if remedy == advice else remedy for remedy in cause.remedies)
    else:
        others = tuple(remedy for remedy in cause.remedies if remedy != advice)
        told = (*others, f"not worth it: to leave it alone in float ({gained})")
    return replace(cause, remedies=told)


def _diagnosis(
    case: Case, name: str, on: str, output: float, found: Sequence[_Found], notes: Sequence[str]
) -> Diagnosis:
    whole = sum(one.own for one in found if one.own is not None)
    every = all(one.own is not None for one in found if one.encoded)
    rows = [_row(case, one, whole if every else 0.0) for one in sorted(found, key=lambda one: -one.badness)]
    return Diagnosis(
        name=name,
        target=case.driver.target.name,
        on=on,
        judged_on=_judged_on(case.judged_on),
        samples=case.samples,
        output_db=decibels(output),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _row(case: Case, one: _Found, whole: float) -> Row:
    place, encoders = one.place, value_encodings(case.small)
    held = encoded_weights(case.small).get(place.weight or "")
    labels = dict.fromkeys(encoders[name].encoding.label() for name in place.values)
    return Row(
        name=place.name,
        pattern=place.pattern,
        op=place.op,
        weight="–" if place.weight is None else "float" if held is None else held.encoding.label(),
        values=", ".join(labels) or "float",
        own_db=None if one.own is None else decibels(one.own),
        own_on=one.own_on,
        share=one.own / whole if whole and one.own is not None else None,
        reached_db=None if one.reached is None else decibels(one.reached),
        without_db=None if one.without is None else decibels(one.without),
        causes=tuple(one.causes),
    )


def _undivided(why: str) -> list[str]:
    told = "no layer's own damage is known, and the order is that of the noise added at each layer's output"
    return [f"{told}: {why}"] if why else []


def _even(found: Sequence[_Found]) -> list[str]:
    """Whether there is no layer to blame, which is worth knowing before one is treated."""
    own = sorted((one.own for one in found if one.own is not None), reverse=True)
    if len(own) <= _FEW or not sum(own) or own[0] > _EVEN * sum(own):
        return []
    first, few = (100 * sum(own[:count]) / sum(own) for count in (1, _FEW))
    return [
        f"no single layer is to blame: the worst makes {first:.0f} % of the noise, the worst {_FEW} together "
        f"{few:.0f} %; more bits or a Finetune help all of them at once"
    ]


def _how_brief(count: int) -> str:
    all_of_them = f"all {count} places" if count > 1 else "the one place"
    some = f"of {count} places the {_BRIEF_SUSPECTS} where most noise enters"
    tried = some if count > _BRIEF_SUSPECTS else all_of_them
    return (
        f"Found in brief: {tried}, tried with the module. lilliput diagnose tries every place, the worst on the target"
    )


def _judged_on(field: str) -> str:
    return {"evaluate": "evaluation batches", "calibrate": "calibration batches"}.get(field, "example")
