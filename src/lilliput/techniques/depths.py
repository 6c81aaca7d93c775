"""Leaving out layers and blocks: those without which least changes."""

from __future__ import annotations

from collections.abc import Sequence

from lilliput.errors import InputError
from lilliput.model.surgery.depth import Dispensable
from lilliput.techniques.amount import Amount
from lilliput.techniques.run import Run
from lilliput.techniques.surgery import dispensable, drop, left_without, undroppable
from lilliput.techniques.where import Where, chosen

_NONE = {
    "layers": "no module stands in a list with others of its class, gives what it takes, and is meant by where=",
    "blocks": "no module of several layers, within one of a list, gives what it takes, and is meant by where=",
}


def leave_out(run: Run, unit: str, where: Where, amount: Amount) -> None:
    """Leave out as much as is wanted, but not all."""
    meant = [one for one in dispensable(run, unit) if chosen(one.path, where)]
    if not meant:
        raise InputError(f"there are no {unit} to leave out", why=_NONE[unit], next="prune channels")
    lowest = sorted(meant, key=lambda one: (one.change, one.path))
    refused = undroppable(run, lowest[:-1]) if amount.budget else {}
    lowest = [one for one in lowest if one.path not in refused]

    def first(fraction: float) -> Sequence[Dispensable]:
        return lowest[: min(round(fraction * len(lowest)), len(lowest) - 1)]

    if amount.budget:
        _, fraction = amount.around(lambda fraction: left_without(run, amount.way, first(fraction)))
        going = first(fraction)
    elif amount.threshold is not None:
        going = [one for one in lowest[:-1] if one.change < amount.threshold]
    else:
        going = first(amount.value)
    for one in meant:
        if one.path in refused:
            run.skip(one.path, f"{one.told}, but cannot be left out: {refused[one.path]}")
    drop(run, sorted(going, key=meant.index))
