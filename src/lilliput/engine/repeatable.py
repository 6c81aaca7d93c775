"""What must hold before anything can be compared: a network answers the same input alike, each time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError
from lilliput.feeding import ask
from lilliput.model.carrier.snapshot import Snapshot
from lilliput.model.surgery.trial import same_chance
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.values import Interception
from lilliput.outputs import departure, flatten_outputs

_SAME = 1e-5  # of the largest answer: sums in another order differ by less


def check_repeatable(
    model: nn.Module, before: Snapshot, inputs: Inputs, where: str, others: Sequence[Inputs] = ()
) -> list[str]:
    """Paths of what runs of `model` (in eval mode) change in it, such as tables kept for later; all is put back.

    `before` is of the model before its first run, the first of `others` is asked in between. Where a run changes
    something, all of them are, once after `inputs` and once as the first that is asked. Raises InputError where answers
    depend on earlier calls or on random numbers, and where a run writes to parameters.
    """
    try:
        with torch.no_grad():
            first = [ask(model, inputs, where), ask(model, inputs, where)]
            for other in others[:1]:
                _attempt(model, other)
            first.append(ask(model, inputs, where))
            changed = before.changed()
            asked = [first, *(_early_and_late(model, before, inputs, where, other) for other in others if changed)]
            compared = bool(flatten_outputs(first[0]))  # or there is nothing to capture either, which is told there
            if compared and any(departure(answers[0], later) > _SAME for answers in asked for later in answers[1:]):
                _refuse(model, inputs, where, before, changed)
    finally:
        before.restore()
    parameters = {name for name, _ in model.named_parameters()}
    written = [path for path in changed if path in parameters]
    if written:
        raise InputError(
            "running the model changes a parameter",
            where=written[0],
            next="let forward only read it, or hold what changes in a buffer",
        )
    return changed


def _early_and_late(model: nn.Module, before: Snapshot, inputs: Inputs, where: str, other: Inputs) -> list[Any]:
    """What the model answers to `other` as the first that it is asked, and again after `inputs` was."""
    before.restore()
    early = _attempt(model, other)
    before.restore()
    ask(model, inputs, where)
    return early + _attempt(model, other)


def _attempt(model: nn.Module, inputs: Inputs) -> list[Any]:
    """What the model answers to inputs of our own making, which it need not take."""
    try:
        return [inputs.call(model)]
    except Exception:  # the user's own code raises whatever it likes
        return []


def _refuse(model: nn.Module, inputs: Inputs, where: str, before: Snapshot, changed: list[str]) -> None:
    """Say why the same input was answered otherwise: by what is kept in the model, or by random numbers."""
    seen = []
    for _ in range(2):
        before.restore()
        with same_chance():
            seen.append(ask(model, inputs, where))
    chance = departure(*seen) <= _SAME  # with the same state and the same random numbers
    if chance:
        before.restore()
        with same_chance():
            ask(model, inputs, where)
        with same_chance():
            chance = departure(seen[0], ask(model, inputs, where)) <= _SAME  # with the same random numbers alone
    if chance:
        value = _first_by_chance(model, inputs)
        raise InputError(
            "the model answers the same input differently each time",
            where=value or where,
            why="random numbers are drawn in eval mode too",
            next="draw them in training alone, as F.dropout(x, training=self.training) does, or give them as an input",
        )
    raise InputError(
        "the model keeps state between calls",
        where=", ".join(changed[:3]) or where,
        why="the same input is answered otherwise the next time",
        next="give the state as an input and return it: forward(x, state) -> (y, state)",
    )


def _first_by_chance(model: nn.Module, inputs: Inputs) -> str:
    """The first value that flows otherwise in a second run."""
    runs: list[list[tuple[str, str]]] = []
    for _ in range(2):
        seen: list[tuple[str, str]] = []

        def visit(name: str, x: Tensor, seen: list[tuple[str, str]] = seen) -> Tensor:
            seen.append((name, _digest(x)))
            return x

        with Interception(model, visit):
            inputs.call(model)
        runs.append(seen)
    return next((a[0] for a, b in zip(*runs, strict=False) if a != b), "")


def _digest(x: Any) -> str:
    return hashlib.sha256(x.detach().double().contiguous().numpy().tobytes()).hexdigest()
