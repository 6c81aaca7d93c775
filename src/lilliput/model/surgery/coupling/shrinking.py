"""Removing slices from a network: which edits that takes, and whether it runs with them.

Tensors follow from the coupling alone. The numbers that modules hold beside them (``num_heads``, ``split_size``) are
found where a call is given the length of an axis: the attributes of the module that makes the call, which its forward
reads, and which hold that number. Which of them it is, and whether a literal in the source stands in the way, is seen
by doing it in a copy and running that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from lilliput.errors import CaptureError, raise_own, reason
from lilliput.model.carrier.carrier import tensors
from lilliput.model.edits.structure import KEPT, Resize, SetNumber
from lilliput.model.surgery.configured import TOLERANCE, described
from lilliput.model.surgery.coupling.flow import Number
from lilliput.model.surgery.coupling.groups import Coupling, Group
from lilliput.model.surgery.coupling.masked import masked
from lilliput.model.surgery.coupling.rescaling import Rows, multiplied, not_rescaled, operators, rescaled_rows
from lilliput.model.surgery.coupling.sizes import Link, numbers_read, sizes
from lilliput.model.surgery.trial import Change, answers, changed, misfit, same_chance, shapes
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.program import program, quiet
from lilliput.modes import eval_mode, exact_products
from lilliput.outputs import departure
from lilliput.progress import Progress, silent

_MOST = 24  # ways to choose attributes that are tried for one group


@dataclass
class Shrinking:
    """One network, what is coupled in it, and which attributes were found to hold which lengths."""

    model: nn.Module
    coupling: Coupling
    inputs: Inputs
    progress: Progress = silent
    links: dict[Link, Number] = field(default_factory=dict)
    apart: float = math.nan  # how far the last network that was checked was from the masked one, of the largest answer
    _refusals: dict[frozenset[int], str] = field(default_factory=dict)  # why not; empty where it is what it was, masked
    _last: tuple[frozenset[int], float, list[Change]] | None = None  # that was checked and is right

    def __post_init__(self) -> None:
        with same_chance():
            self.read = numbers_read(self.model, self.inputs)
        self.expected = shapes(self.model, self.inputs)
        for number in self.coupling.numbers:
            if number.name in self.read.get(number.module, {}):
                self.links[number.module, number.name] = number

    def refused(self, chosen: Mapping[Group, Sequence[int]]) -> dict[Group, str]:
        """Why groups cannot lose these atoms; all others can, all together."""
        if not self._tried(set(), _all(chosen)) and not self._refuted(_all(chosen)):
            return {}
        found, gone = dict[Group, str](), set[int]()
        for done, (group, atoms) in enumerate(chosen.items()):
            self.progress("trying what can go", done, len(chosen))
            why = self._tried(gone, set(atoms))
            if why:
                found[group] = f"{why}{self._lines(set(atoms))}"
            else:
                gone |= set(atoms)
        together = {atom for group in found for atom in chosen[group]}
        if len(found) > 1 and not self._tried(gone, together):  # lengths that must stay the same multiple of each other
            found = {}
        return found | self._sieved({group: atoms for group, atoms in chosen.items() if group not in found})

    def _tried(self, before: set[int], atoms: set[int]) -> str:
        """Why these cannot go where those before are gone; if they can, the links that it takes are kept."""
        why = ""
        for links in itertools.islice(self._links(before | atoms), _MOST):
            failed = misfit(self.model, self.changes(before | atoms, links), self.inputs, self.expected)
            if not failed:
                self._link(links)
                return ""
            why = why or failed
        return why

    def _link(self, links: dict[Link, Number]) -> None:
        """Take these attributes for those that hold lengths; with others, what was checked is known no more."""
        if any(held is not self.links.get(link) for link, held in links.items()):
            self._refusals, self._last = {}, None
        self.links = links

    def _lines(self, atoms: set[int]) -> str:
        """Where the source gives the lengths that would change."""
        lines = [n.source for n in self.coupling.numbers if n.source and self._length(n, atoms) != n.value]
        return f"; see {' and '.join(list(dict.fromkeys(lines))[:2])}" if lines else ""

    def _sieved(self, chosen: Mapping[Group, Sequence[int]]) -> dict[Group, str]:
        """Of groups that run without these atoms, those that then compute something else; found by halves."""
        why = self._refuted(_all(chosen))
        if not why or len(chosen) == 1:
            return dict.fromkeys(chosen, why) if why else {}
        every, found = list(chosen), dict[Group, str]()
        for half in (every[: len(every) // 2], every[len(every) // 2 :]):
            found |= self._sieved({group: chosen[group] for group in half})
        rest = {group: atoms for group, atoms in chosen.items() if group not in found}
        if found:
            why = self._refuted(_all(rest))
        return found | dict.fromkeys(rest, why) if why else found

    def _links(self, gone: set[int]) -> Iterator[dict[Link, Number]]:
        """What attributes may have to change once `gone` are gone; the likeliest first."""
        open_ends: dict[tuple[str, int], Number] = {}
        for number in self.coupling.numbers:
            known = {(module, held.value) for (module, _), held in self.links.items()}
            if (number.module, number.value) not in known and self._length(number, gone) != number.value:
                open_ends.setdefault((number.module, number.value), number)
        choices = []
        for (module, value), number in open_ends.items():
            names = [link for link, held in self._read_by(module) if held == value]
            subsets = [[name] for name in names] + ([names] if len(names) > 1 else []) + [[]]
            choices.append([dict.fromkeys(subset, number) for subset in subsets])
        above = self._above(gone)
        for more in [{}, above] if above else [{}]:
            for chosen in itertools.product(*choices):
                yield {**self.links, **more, **{link: number for one in chosen for link, number in one.items()}}

    def _above(self, gone: set[int]) -> dict[Link, Number]:
        """Numbers that modules read which contain what shrinks, and that are as large as it was: a width to check."""
        found: dict[Link, Number] = {}
        for path, axes in self.coupling.held.items():
            for axis in axes:
                if self.coupling.left(axis, gone).all():
                    continue
                for module, numbers in self.read.items():
                    if path.startswith(f"{module}." if module else "") and path.count(".") > module.count(".") + 2:
                        for name, value in numbers.items():
                            if value == len(axis):
                                found.setdefault((module, name), Number(module, name, value, axis, ""))
        return {link: number for link, number in found.items() if link not in self.links}

    def _read_by(self, module: str) -> Iterator[tuple[Link, int]]:
        """The numbers that the forward of a module reads: its own, and those of its children."""
        for path, numbers in self.read.items():
            if path == module or path.rpartition(".")[0] == module:
                for name, value in numbers.items():
                    yield (path, name), value

    def _length(self, number: Number, gone: Iterable[int]) -> int:
        return int(self.coupling.left(number.axis, gone).sum())

    def checked(self, gone: Iterable[int], also: Sequence[Change] = ()) -> list[Change]:
        """The edits that remove these atoms, made in a copy, captured again and compared with the network masked.

        That is a check on one input, no proof. `also` are made after them. Raises CaptureError where the copy makes
        other calls or computes something else.
        """
        gone = set(gone)
        if not also and self._last is not None and self._last[0] == gone:
            self.apart = self._last[1]
            return self._last[2]
        with eval_mode(trial := changed(self.model, [*self.changes(gone), *also])), quiet():
            after = program(trial, self.inputs, {})
        if operators(after.graph) != operators(self.coupling.captured.graph):
            raise CaptureError(
                "without these slices the network makes other calls than before",
                why="its source asks for their number",
                next="leave them in place, by where=",
            )
        changes = [*self.changes(gone, rows=rescaled_rows(self.coupling, after, gone)), *also]
        with exact_products(), same_chance():
            small = answers(changed(self.model, changes), self.inputs)
            self.apart = departure(masked(self.coupling, gone, self.inputs), small)
        if not self.apart <= TOLERANCE:
            raise CaptureError(
                "without these slices the network computes something else than with the slices set to zero",
                why=f"its answers are {self.apart:.2g} of the largest apart",
                next="leave them in place, by where=",
            )
        if not also:
            self._last = frozenset(gone), self.apart, changes
        return changes

    def described(self, gone: Iterable[int]) -> tuple[list[Change], str]:
        """The checked edits, with those by which configs tell what is left; or without, and why they cannot."""
        gone = set(gone)
        made = self.checked(gone)
        return described(self.model, made, self.inputs, numbers_read, lambda also: self.checked(gone, also))

    def not_rescaled(self, gone: Iterable[int]) -> set[str]:
        """The modules whose norm gives less without these atoms, since it has no gains to scale up."""
        return not_rescaled(self.coupling, set(gone))

    def _refuted(self, gone: set[int]) -> str:
        """Why the network without these atoms is not what it was with them masked; empty if it is."""
        tried = frozenset(gone)
        if gone and tried not in self._refusals:
            try:
                self.checked(gone)
            except Exception as error:  # the network's own code raises anything
                raise_own(error)
                self._refusals[tried] = reason(error)
        return self._refusals.setdefault(tried, "")

    def changes(
        self,
        gone: Iterable[int],
        links: Mapping[Link, Number] | None = None,
        rows: Mapping[str, Rows] | None = None,
    ) -> list[Change]:
        """The edits that remove these atoms; `rows` are what those of tensors are multiplied by."""
        gone, rows = set(gone), rows or {}
        every = {path: paths for paths in tensors(self.model) for path in paths}
        found: list[Change] = []
        resized: dict[str, tuple[int, ...]] = {}
        for path, axes in self.coupling.held.items():
            left = [self.coupling.left(axis, gone) for axis in axes]
            if all(mask.all() for mask in left) and path not in rows:
                continue
            x = self.coupling.tensors[path]
            x = multiplied(x, *rows[path]) if path in rows else x
            kept = {i: torch.from_numpy(np.flatnonzero(mask)) for i, mask in enumerate(left) if not mask.all()}
            for i, places in kept.items():
                x = x.index_select(i, places.to(x.device))
            paths = every.get(path, (path,))
            resized |= {one: tuple(x.shape) for one in paths}
            told = {f"{KEPT}{i}": places for i, places in kept.items()}
            found.append((Resize(paths, tuple(x.shape)), {"value": x, **told}))
        numbers: dict[Link, tuple[int, ...]] = {}
        for link, number in (self.links if links is None else links).items():
            length = self._length(number, gone)
            if length != number.value:
                numbers[link] = (length,)
        numbers |= sizes(self.model, resized, numbers)
        return found + [(SetNumber(module, name, value), {}) for (module, name), value in numbers.items()]


def _all(chosen: Mapping[Group, Sequence[int]]) -> set[int]:
    return {atom for atoms in chosen.values() for atom in atoms}
