"""Removing channels and heads: which of them go, and what is told of those that stay."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from lilliput.errors import InputError
from lilliput.model.carrier.parameters import encoding_of, shapes
from lilliput.model.surgery.coupling import ENCODED, Coupling, Group
from lilliput.techniques.amount import Amount
from lilliput.techniques.run import Run
from lilliput.techniques.scores import Score
from lilliput.techniques.slices import Cut, Multiples, cuts, lowest, same_length, scored
from lilliput.techniques.surgery import Going, Slices
from lilliput.techniques.where import Where, check_where, means, names_of

_FEW = 40  # groups of which one makes a difference to a budget


def remove_slices(run: Run, unit: str, where: Where, amount: Amount, scope: str, multiple: int, score: Score) -> None:
    """Remove channels or heads; what cannot go is skipped with the reason."""
    slices = Slices.of(run)
    coupling = slices.coupling
    meant = _meant(coupling, unit, where)
    multiples = Multiples(multiple, whole=amount.budget == "latency")  # a part of a block takes as long as a block
    of = functools.partial(score.of, score.gather(run))
    scores = {group: scored(group, coupling.tensors.__getitem__, of, score.degree) for group in meant}

    def choice(fraction: float | None, lengths: Sequence[Mapping[Group, int]]) -> Going:
        return lowest(cuts(meant, lengths), scores, fraction, amount.threshold, scope, multiples)

    lengths, tried = coupling.lengths(), 0.5 if amount.budget else amount.fraction
    going = choice(tried, lengths)
    refused = slices.refused(going)
    if refused:  # perhaps since lengths that were the same no longer are
        tied = [*lengths, *same_length(refused, coupling.tensors)]
        again = choice(tried, tied)
        refused_again = slices.refused(again)
        if len(refused_again) < len(refused):
            going, refused, lengths = again, refused_again, tied
    more = refused
    while amount.budget:  # until all can go that makes up the budget
        meant = [group for group in meant if group not in more]
        going = _just_within(slices, amount, cuts(meant, lengths), lambda fraction: choice(fraction, lengths))
        more = slices.refused(going)
        refused |= more
        if not more:
            break
    going = {group: atoms for group, atoms in going.items() if group not in refused}
    slices.remove(going)
    _tell(run, coupling, unit, amount, going, refused)


def _just_within(slices: Slices, amount: Amount, found: Sequence[Cut], choice: Callable[[float], Going]) -> Going:
    """What goes for a budget: of each group as much less as a smaller fraction would take, as long as it is met."""

    def left(gone: Going) -> float:
        return slices.left(amount.way, gone)

    low, high = amount.around(lambda fraction: left(choice(fraction)))
    going, coarse = choice(high), len(found) <= _FEW and amount.way != "latency"  # which takes seconds to measure
    for less in [choice(share * low) for share in ((1.0, 0.75, 0.5) if coarse else (1.0,))]:
        for cut in found:
            other = {**going, **{group: less.get(group, ()) for group in cut.groups}}
            fewer = any(len(other[group]) < len(going.get(group, ())) for group in cut.groups)
            going = other if fewer and left(other) <= amount.value else going
    return {group: atoms for group, atoms in going.items() if atoms}


def _meant(coupling: Coupling, unit: str, where: Where) -> list[Group]:
    groups = [group for group in coupling.groups if group.heads == (unit == "heads")]
    if not groups:
        stay = "; ".join(f"{place}: {why}" for place, why in islice(coupling.protected.items(), 3))
        raise InputError(
            f"there are no {unit} to remove",
            why=stay or "no axis of a tensor has parts that could go apart from each other",
            next=f"prune {'weights' if unit == 'channels' else 'channels'}",
        )
    check_where(where, [member.path for group in groups for member in group.members])
    return [g for g in groups if means(where, [name for member in g.members for name in names_of(member.path)])]


def _tell(run: Run, coupling: Coupling, unit: str, amount: Amount, gone: Going, refused: Mapping[Group, str]) -> None:
    """What became of each tensor of two axes or more."""
    asked = f", asked {amount.value:.0%}" if amount.fraction else ""
    lines: dict[str, list[str]] = {}
    for group, atoms in gone.items():
        for member in group.members:
            text = f"{group.size - len(atoms)} of {group.size} {unit} left along axis {member.axis}"
            lines.setdefault(member.path, []).append(f"{text} ({len(atoms) / group.size:.0%} removed{asked})")
    for path in shapes(run.model):
        if encoding_of(run.model, path) is not None:
            run.skip(path, ENCODED)
    stay: dict[str, str] = {}
    for group, why in refused.items():
        for member in group.members:
            stay.setdefault(member.path, f"along axis {member.axis} all stay: {why}")
    for path, x in coupling.tensors.items():
        if path in lines:
            run.note(path, "; ".join([*lines[path], *filter(None, [stay.get(path)])]), lasting=True)
        elif x.dim() > 1:
            protected = (coupling.protected.get(f"{path}[{axis}]") for axis in range(x.dim()))
            run.skip(path, stay.get(path) or next(filter(None, protected), f"no {unit} of it were meant"))
