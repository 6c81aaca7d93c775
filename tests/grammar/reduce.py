"""A failure made smaller: what can be left out, or made plain, and it still fails likewise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from oracle import Outcome, judge
from source import NESTED, Step
from spec import Spec

_PLAIN = Spec()


def smaller(spec: Spec) -> Iterator[Spec]:
    """Specs with one thing less each."""
    for steps in _fewer(spec.steps):
        yield replace(spec, steps=steps)
    for name in ("arguments", "oddities", "recipe", "batches"):
        held = getattr(spec, name)
        for i in range(len(held)):
            if len(held) > (name == "batches"):
                yield replace(spec, **{name: held[:i] + held[i + 1 :]})
    for f in fields(Spec):
        if f.name not in ("steps", "layout", "batches") and getattr(spec, f.name) != getattr(_PLAIN, f.name):
            yield replace(spec, **{f.name: getattr(_PLAIN, f.name)})
    if spec.batches != [2] * len(spec.batches):
        yield replace(spec, batches=[2] * len(spec.batches))
    for i, step in enumerate(spec.recipe):
        for shorter in _shorter(step):
            yield replace(spec, recipe=[*spec.recipe[:i], shorter, *spec.recipe[i + 1 :]])


def _fewer(steps: list[Step]) -> Iterator[list[Step]]:
    for i, (name, parameters) in enumerate(steps):
        before, after = steps[:i], steps[i + 1 :]
        yield [*before, *after]
        if NESTED in parameters:
            yield [*before, *parameters[NESTED], *after]
            for inner in _fewer(parameters[NESTED]):
                yield [*before, [name, {**parameters, NESTED: inner}], *after]


def _shorter(step: str) -> Iterator[str]:
    """A step of a recipe with one argument less."""
    head, _, rest = step.partition("(")
    parts = rest[:-1].split(", ")
    for i in range(1, len(parts)):
        text = f"{head}({', '.join(parts[:i] + parts[i + 1 :])})"
        if text.count("(") == text.count(")") and text.endswith(")"):
            yield text


def reduced(spec: Spec, tries: int = 60, judged: Callable[[Spec], Outcome] = judge) -> tuple[Spec, Outcome]:
    """The smallest that `tries` find to fail as `spec` does."""
    found = judged(spec)
    while True:
        for candidate in smaller(spec):
            if tries <= 0:
                return spec, found
            tries -= 1
            outcome = _tried(candidate, judged)
            if outcome.failed and outcome.what == found.what:
                spec, found = candidate, outcome
                break
        else:
            return spec, found


def _tried(spec: Spec, judged: Callable[[Spec], Outcome]) -> Outcome:
    try:
        return judged(spec)
    except Exception as error:  # a recipe that is none, a module that cannot be made
        return Outcome("refused", type(error).__name__)
