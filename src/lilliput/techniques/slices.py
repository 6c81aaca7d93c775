"""Structured pruning: which slices of a network go, by their scores; pure functions of groups and tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.model.surgery.coupling import Group

Scores = Mapping[Group, Tensor]


def scored(
    group: Group, tensor: Callable[[str], Tensor], of: Callable[[str, Tensor], Tensor], degree: float = 1.0
) -> Tensor:
    """How much goes with each slice of a group, ``[slices]``, in multiples of the mean of its group.

    The mean over the group's tensors (of two axes or more, where there are any) of what goes with the slice, by the
    scores `of` its weights, relative to that of the other slices; of that the root of `degree`. Over all that is
    coupled, as in "DepGraph" (Fang et al. 2023).
    """
    members = [member for member in group.members if tensor(member.path).is_floating_point()]
    weights = [member for member in members if tensor(member.path).dim() > 1] or members
    found = torch.zeros(group.size, dtype=torch.float64)
    for member in weights:
        each = member.sums(of(member.path, tensor(member.path).detach()).double())
        found += each / each.mean().clamp(min=1e-300)
    found = found / len(weights)
    return found.sqrt() if degree == 2 else found.pow(1 / degree)


@dataclass(frozen=True)
class Multiples:
    """What lengths are rounded to; axes shorter than two multiples to half of it, or half of that, unless `whole`."""

    of: int
    whole: bool = False


@dataclass(frozen=True)
class Cut:
    """Groups that are cut alike: their lengths must stay equal, since the source has one number for them."""

    groups: tuple[Group, ...]
    each: tuple[int, ...]  # positions that one slice of each group has along the axis

    @property
    def length(self) -> int:
        return self.groups[0].size * self.each[0]

    def kept(self, share: float, multiples: Multiples) -> tuple[int, ...]:
        """How many slices of each group stay, where `share` of them may; lengths are rounded to multiples.

        >>> from types import SimpleNamespace
        >>> wide, narrow = (Cut((SimpleNamespace(size=n),), (1,)) for n in (24, 6))
        >>> wide.kept(0.6, Multiples(8)), narrow.kept(0.6, Multiples(8)), narrow.kept(0.6, Multiples(8, whole=True))
        ((16,), (4,), (6,))
        """
        least, multiple = math.lcm(*self.each), multiples.of
        while not multiples.whole and multiple > 1 and self.length < 2 * math.lcm(least, multiple):
            multiple = multiple // 2
        step = math.lcm(least, multiple)
        length = min(max(step, math.floor(share * self.length / step + 0.5) * step), self.length)
        return tuple(length // each for each in self.each)


def cuts(groups: Iterable[Group], lengths: Sequence[Mapping[Group, int]]) -> list[Cut]:
    """The groups, those together whose lengths are one number."""
    found: list[dict[Group, int]] = []
    for group in groups:
        mine = {group: len(group.members[0].positions[0])}
        for tied in (tied for tied in lengths if group in tied):
            mine |= tied
        touching = [other for other in found if other.keys() & mine.keys()]
        for other in touching:
            mine |= other
        found = [other for other in found if other not in touching] + [mine]
    known = set(groups)
    return [Cut(tuple(g for g in one if g in known), tuple(n for g, n in one.items() if g in known)) for one in found]


def same_length(groups: Iterable[Group], tensors: Mapping[str, Tensor]) -> list[dict[Group, int]]:
    """Groups along axes of one length: for each the positions that a slice has along the shortest of its axes."""
    found: dict[int, dict[Group, int]] = {}
    for group in groups:
        shortest = min(group.members, key=lambda member: tensors[member.path].shape[member.axis])
        length = tensors[shortest.path].shape[shortest.axis]
        found.setdefault(length, {})[group] = len(shortest.positions[0])
    return list(found.values())


def lowest(
    found: Sequence[Cut],
    scores: Scores,
    amount: float | None,
    threshold: float | None,
    scope: str,
    multiples: Multiples,
) -> dict[Group, tuple[int, ...]]:
    """The atoms that go: in each group, or over all of them, those of lowest score."""
    limit = threshold
    if amount is not None and scope == "global":
        pooled = torch.cat([scores[group] for cut in found for group in cut.groups])
        limit = float(pooled.sort().values[min(round(amount * len(pooled)), len(pooled) - 1)])
    going: dict[Group, tuple[int, ...]] = {}
    for cut in found:
        shares = [_share(scores[group], amount, limit) for group in cut.groups]
        for group, kept in zip(cut.groups, cut.kept(sum(shares) / len(shares), multiples), strict=True):
            order = scores[group].argsort(stable=True)[: group.size - kept]
            if len(order):
                going[group] = tuple(group.atoms[int(i)] for i in order)
    return going


def _share(scores: Tensor, amount: float | None, limit: float | None) -> float:
    """How much of a group stays: by the amount, or what scores a limit or more."""
    if limit is None:
        return 1 - (amount or 0)
    return float((scores >= limit).double().mean())
