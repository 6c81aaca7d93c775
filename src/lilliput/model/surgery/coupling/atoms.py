"""Which positions of which axes can only go together: what is left of a network's sizes once they are taken apart.

Every position of an axis holds an *atom*. Positions that must be removed together hold the same one; a position that
goes when either of two things goes (row ``i * B + j`` of a matrix that is viewed as ``[A, B]``) holds a *compound* of
two atoms. What cannot go is *kept*. Everything here errs to one side: where shapes do not explain themselves, atoms are
joined, until in the worst case an axis is one atom, and an axis is never emptied.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Axis = npt.NDArray[np.int64]  # the atoms of one axis, position by position
NONE = -1


class Unfit(Exception):
    """Axes whose lengths do not go together: a call of a form that its rule was not made for."""


class Atoms:
    """A growing set of atoms, joined and taken apart.

    >>> atoms = Atoms()
    >>> rows, columns = atoms.new(4), atoms.new(2)
    >>> heads, each = atoms.split(rows, 2, 2)
    >>> atoms.join(each, columns)
    >>> atoms.parts(rows).tolist() == [[heads[i], columns[j]] for i in (0, 1) for j in (0, 1)]
    True
    """

    def __init__(self) -> None:
        self._parent: Axis = np.empty(0, np.int64)  # an atom that stands for this one; itself at the end of the way
        self._pair: Axis = np.empty((0, 2), np.int64)  # what a compound is made of, or NONE
        self._why: Axis = np.empty(0, np.int64)  # of atoms at the end of the way that cannot go: which reason
        self._reasons: list[str] = [""]
        self._count = 0
        self._origin: dict[int, Axis] = {}  # of an atom that an axis was split or merged into: positions before that

    def new(self, count: int) -> Axis:
        """As many atoms, all different, that can go."""
        first, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            more = max(1024, self._count)
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), len(self._parent) + more)])
            self._pair = np.concatenate([self._pair, np.full((more, 2), NONE)])
            self._why = np.concatenate([self._why, np.zeros(more, np.int64)])
        return np.arange(first, self._count)

    def fixed(self, count: int, why: str) -> Axis:
        """As many positions of which none can go."""
        atom = self.new(1)
        self.keep(atom, why)
        return np.repeat(atom, count)

    def find(self, axis: Axis) -> Axis:
        """The atoms that stand for those of `axis`."""
        found = self._parent[axis]
        while not np.array_equal(further := self._parent[found], found):
            found = further
        self._parent[axis] = found
        return found

    def keep(self, axis: Axis, why: str) -> None:
        """No position of this axis can go."""
        if why not in self._reasons:
            self._reasons.append(why)
        found = np.unique(self.parts(axis))
        found = found[found != NONE]
        self._why[found[self._why[found] == 0]] = self._reasons.index(why)

    def why_kept(self, atom: int) -> str:
        """The reason why an atom cannot go; empty if it can."""
        return self._reasons[int(self._why[self._end(atom)])]

    def can_go(self, axis: Axis) -> npt.NDArray[np.bool_]:
        """Whether any part of each position can go."""
        parts = self.parts(axis)
        return ((parts != NONE) & (self._why[parts] == 0)).any(1)  # type: ignore[no-any-return]

    def left(self, axis: Axis, gone: Axis) -> npt.NDArray[np.bool_]:
        """Which positions are left once these atoms are gone."""
        return np.logical_not(np.isin(self.parts(axis), gone).any(axis=1))

    def fixed_whole(self, axis: Axis) -> bool:
        """Whether nothing of this axis can go, as far as is known."""
        return not bool(self.can_go(axis).any())

    def join(self, one: Axis, other: Axis) -> None:
        """From now on, what goes at a position of one axis goes at that position of the other."""
        if len(one) != len(other) and 1 not in (len(one), len(other)):
            raise Unfit
        a, b = self.find(one), self.find(other)
        plain = (self._pair[a, 0] == NONE)[:, None]
        pairs = np.unique(np.where(plain, np.stack([b, a], 1), np.stack([a, b], 1))[a != b], axis=0)
        stays, goes = pairs[:, 0], pairs[:, 1]
        apart = len(np.unique(goes)) == len(goes) and not np.isin(goes, self.parts(stays)).any()
        if apart and (self._pair[goes, 0] == NONE).all() and not self._why[goes].any():
            self._parent[goes] = stays  # the usual case: atoms that nothing is known of yet
            return
        for x, y in pairs:
            self._join(int(x), int(y))

    def _join(self, x: int, y: int) -> None:
        work = [(x, y)]
        while work:
            x, y = map(self._end, work.pop())
            if x == y:
                continue
            if self._pair[x, 0] == NONE:
                x, y = y, x
            within_x, within_y = self._within(x), self._within(y)
            if y in within_x or x in within_y:  # a part of itself: only if all of it is the same
                first, *rest = (z for z in (*within_x, *within_y) if self._pair[z, 0] == NONE)
                work += [(first, z) for z in rest]
                continue
            if self._pair[y, 0] != NONE:  # both are compounds: x comes to stand for y, part by part
                work += [(int(self._pair[x, k]), int(self._pair[y, k])) for k in (0, 1)]
            self._parent[y] = x
            if self._why[y]:
                self.keep(np.array([x]), self._reasons[self._why[y]])

    def _end(self, atom: int) -> int:
        while self._parent[atom] != atom:
            atom = int(self._parent[atom])
        return atom

    def _within(self, atom: int) -> list[int]:
        """An atom and all that it is made of."""
        found = [self._end(atom)]
        for x in found:
            if self._pair[x, 0] != NONE:
                found += [z for z in map(self._end, map(int, self._pair[x])) if z not in found]
        return found

    def compound(self, outer: Axis, inner: Axis) -> Axis:
        """The axis of ``len(outer) * len(inner)`` positions that a tensor has once two axes are made one."""
        if len(inner) == 1:
            return outer
        if len(outer) == 1:
            return inner
        firsts, seconds = np.repeat(outer, len(inner)), np.tile(inner, len(outer))
        if self.fixed_whole(inner):
            return firsts
        if self.fixed_whole(outer):
            return seconds
        axis = self.new(len(firsts))
        self._pair[axis] = np.stack([firsts, seconds], 1)
        self._origin |= dict(zip(map(int, axis), np.stack([firsts, seconds], 1), strict=True))
        return axis

    def split(self, axis: Axis, outer: int, inner: int) -> tuple[Axis, Axis]:
        """The two axes that one becomes when it is viewed as ``[outer, inner]``."""
        if outer == 1 or inner == 1:
            alone = self.fixed(1, "an axis of length 1")
            return (alone, axis) if outer == 1 else (axis, alone)
        if len(axis) != outer * inner:
            raise Unfit
        table = self.find(axis).reshape(outer, inner)
        if self.fixed_whole(axis):
            return self.fixed(outer, self._some_reason(axis)), self.fixed(inner, self._some_reason(axis))
        raw = axis.reshape(outer, inner)
        if (table == table[:, :1]).all():  # each atom fills a row: positions in a row are no matter of theirs
            return raw[:, 0], self.fixed(inner, "positions within a channel")
        if (table == table[:1]).all():
            return self.fixed(outer, "repetitions of channels"), raw[0]
        rows, columns = self.new(outer), self.new(inner)
        pairs = self.new(len(axis))
        self._pair[pairs] = np.stack([np.repeat(rows, inner), np.tile(columns, outer)], 1)
        self.join(pairs, axis)
        self._origin |= dict(zip(map(int, rows), raw, strict=True)) | dict(zip(map(int, columns), raw.T, strict=True))
        return rows, columns

    def narrowed(self, axis: Axis, to: Axis) -> Axis:
        """The same axis of a tensor that was taken out of a larger one, of which it is what came from `to`."""
        kept = set(map(int, self.origins(to)))
        known = [[int(x) for x in self.origins(axis[i : i + 1])] for i in range(len(axis))]
        within = [[x for x in positions if x in kept] for positions in known]
        if within == known or not all(within):
            return axis
        found = self.new(len(axis))
        self.join(axis, found)
        self._origin |= {int(atom): np.array(positions) for atom, positions in zip(found, within, strict=True)}
        return found

    def origins(self, axis: Axis) -> Axis:
        """The positions that these were before any axis was merged or split; not those they were joined with."""
        found, work = set[int](), [int(atom) for atom in axis]
        seen = set(work)
        while work:
            atom = work.pop()
            if atom not in self._origin:
                found.add(atom)
                continue
            more = {int(x) for x in self._origin[atom]} - seen
            seen |= more
            work += more
        return np.array(sorted(found), np.int64)

    def _some_reason(self, axis: Axis) -> str:
        return next((why for atom in self.parts(axis)[0] if atom != NONE and (why := self.why_kept(int(atom)))), "")

    def parts(self, axis: Axis) -> Axis:
        """The atoms of each position, ``[positions, most atoms of any]``: it goes when one of them goes."""
        columns = [self.find(axis)]
        done = False
        while not done:
            done, further = True, list[Axis]()
            for column in columns:
                real = np.where(column == NONE, 0, column)
                pairs = np.where((column == NONE)[:, None], NONE, self._pair[real])
                compound = pairs[:, 0] != NONE
                if not compound.any():
                    further.append(column)
                    continue
                done = False
                for k in (0, 1):
                    part = np.where(compound, pairs[:, k], column if k == 0 else NONE)
                    known = part != NONE
                    part[known] = self.find(part[known])
                    further.append(part)
            columns = further
        return np.stack(columns, 1) if len(axis) else np.empty((0, 1), np.int64)


def joined(atoms: Atoms, axes: Iterable[Axis]) -> Axis:
    """One axis for several that are the same."""
    first, *rest = axes
    for axis in rest:
        atoms.join(first, axis)
    return first
