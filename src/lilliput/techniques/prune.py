"""Pruning: which unit, how much of it, over what scope; scored by magnitude."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from lilliput.encodings import Sparse
from lilliput.errors import InputError, RecipeError
from lilliput.model.coupling import ENCODED, Coupling, Group
from lilliput.model.view import MULTIPLIES, RECURRENT
from lilliput.techniques.choice import Choice
from lilliput.techniques.slices import cuts, lowest, magnitude, same_length
from lilliput.techniques.technique import Going, Run, Technique, used_weights
from lilliput.techniques.where import check_where, chosen, means, names_of

UNITS = ("weights", "channels", "heads", "layers")


@dataclass(frozen=True, repr=False)
class Prune(Technique):
    """Remove what matters least: single weights, channels, heads of attention, or whole layers.

    *Weights* become zeros and stay zeros: files get smaller, runtimes no faster, and the report says so. *Channels*
    (filters, neurons, hidden sizes, the widths of heads) and *heads* are taken out, with all that is coupled to them,
    and the module that comes back is an ordinary one of smaller tensors. What cannot go is listed with the reason, and
    with the line of the source that stands in the way.

    *Layers* are the modules that stand in a list with others of their class and give what they take, such as the blocks
    of a transformer or the residual blocks of a stage; those that change their input least are left out (Men et al.
    2024, "ShortGPT"), by the calibration batches, or the example where there are none.

    How much: `amount` is the fraction removed; `threshold` removes what scores less than that multiple of its group's
    mean; `macs` and `parameters` are fractions that may be left of the model's multiply-accumulates (on the example) or
    parameters, for which the amount is found. Channels are rounded to what the target likes, or to `multiple`.

    Magnitudes are those of Li et al. 2017, "Pruning Filters for Efficient ConvNets", over all tensors that a channel is
    coupled to (Fang et al. 2023, "DepGraph").

    Raises RecipeError for an unknown unit, scope, or amount.

    >>> Prune("channels", 0.5), Prune("weights", 0.5, scope="global")
    (Prune(unit='channels', amount=0.5), Prune(unit='weights', amount=0.5, scope='global'))
    """

    unit: Literal["weights", "channels", "heads", "layers"]
    amount: float | None = None  # fraction removed, over 0 and under 1
    scope: Literal["layer", "global"] = "layer"  # the fraction holds in each layer, or over all layers together
    threshold: float | None = None  # of channels and heads, in multiples of the mean score of a group
    macs: float | None = None  # of the model's, the fraction that may be left; for channels and heads
    parameters: float | None = None  # likewise
    multiple: int | None = None  # what the numbers of channels are rounded to; None: what the target likes

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise RecipeError(f"Prune cannot remove {self.unit!r}", next=f"known units: {', '.join(map(repr, UNITS))}")
        if self.scope not in ("layer", "global"):
            raise RecipeError(f"Prune with scope {self.scope!r}", next="known scopes: 'layer', 'global'")
        given = [name for name in ("amount", "threshold", "macs", "parameters") if getattr(self, name) is not None]
        if len(given) != 1 or (self.unit in ("weights", "layers") and given != ["amount"]):
            known = (
                "amount=" if self.unit in ("weights", "layers") else "one of amount=, threshold=, macs=, parameters="
            )
            raise RecipeError(f"Prune of {self.unit} by {' and '.join(given) or 'nothing'}", next=f"give {known}")
        value = getattr(self, given[0])
        if not 0 < value < (math.inf if given == ["threshold"] else 1):
            next = "a number over 0" if given == ["threshold"] else "a fraction between 0 and 1"
            raise RecipeError(f"Prune of {given[0]} {value}", next=f"give {next}")
        if self.multiple is not None and self.multiple < 1:
            raise RecipeError(f"Prune to multiples of {self.multiple}", next="give a whole number of 1 or more")

    @property
    def establishes(self) -> frozenset[str]:
        return frozenset({"widths"} if self.unit in ("channels", "heads") else ())

    @property
    def disturbs(self) -> frozenset[str]:
        return frozenset({"ranges", "widths"} if self.unit == "layers" else {"ranges"})

    def apply(self, run: Run) -> None:
        if self.unit == "weights":
            self._zeros(run)
        elif self.unit == "layers":
            self._layers(run)
        else:
            self._slices(run)

    def _zeros(self, run: Run) -> None:
        assert self.amount is not None
        used = used_weights(run)
        multiply = MULTIPLIES | RECURRENT
        weights = {path: calls for path, calls in used.items() if all(call.op in multiply for call in calls)}
        check_where(self.where, list(weights))
        for path in run.shapes():
            if path not in weights and len(run.shapes()[path]) > 1:
                run.skip(path, "rows of it are looked up" if path in used else "no layer multiplies by it")
        paths = [path for path in weights if chosen(path, self.where)]
        for path in [path for path in weights if path not in paths]:
            run.skip(path, f"left out by where={self.where!r}")
        scores = {path: run.tensor(path).abs() for path in paths}
        for path, kept in keep_largest(scores, self.amount, self.scope).items():
            if not bool(kept.any()):
                run.skip(path, "all of its weights are among the smallest: pruning would empty it")
                continue
            run.encode(path, Sparse(), Choice(run.tensor(path) * kept))

    def _slices(self, run: Run) -> None:
        coupling = run.coupling()
        groups = [group for group in coupling.groups if group.heads == (self.unit == "heads")]
        if not groups:
            raise InputError(
                f"there are no {self.unit} to remove",
                why="; ".join(f"{place}: {why}" for place, why in islice(coupling.protected.items(), 3))
                or "no axis of a tensor has parts that could go apart from each other",
                next=f"prune {'weights' if self.unit == 'channels' else 'channels'}",
            )
        check_where(self.where, [member.path for group in groups for member in group.members])
        meant = [g for g in groups if means(self.where, [n for m in g.members for n in names_of(m.path)])]
        scores = {group: magnitude(group, coupling.tensors.__getitem__) for group in meant}
        multiple = (self.multiple or run.multiple) if self.unit == "channels" else 1

        def choice(amount: float | None, lengths: Sequence[Mapping[Group, int]]) -> dict[Group, tuple[int, ...]]:
            return lowest(cuts(meant, lengths), scores, amount, self.threshold, self.scope, multiple)

        lengths, budget = coupling.lengths(), self._budget
        tried = 0.5 if budget else self.amount
        going: Going = choice(tried, lengths)
        refused = run.unremovable(going)
        if refused:  # perhaps since lengths that were the same no longer are
            tied = [*lengths, *same_length(refused, coupling.tensors)]
            again = choice(tried, tied)
            refused_again = run.unremovable(again)
            if len(refused_again) < len(refused):
                going, refused, lengths = again, refused_again, tied
        if budget:
            meant = [group for group in meant if group not in refused]
            going = run.within(lambda amount: choice(amount, lengths), *budget)
            refused |= run.unremovable(going)
        going = {group: atoms for group, atoms in going.items() if group not in refused}
        run.shrink(going)
        self._tell(run, coupling, {group: len(atoms) for group, atoms in going.items()}, refused)

    def _layers(self, run: Run) -> None:
        assert self.amount is not None
        changes = run.layer_changes()
        meant = [path for path in changes if chosen(path, self.where)]
        if not meant:
            raise InputError(
                "there are no layers to leave out",
                why="no module stands in a list with others of its class, gives what it takes, and is meant by where=",
                next="prune channels",
            )
        lowest_first = sorted(meant, key=lambda path: (changes[path], path))
        going = lowest_first[: min(round(self.amount * len(meant)), len(meant) - 1)]
        refused = run.drop(sorted(going, key=meant.index))
        for path in meant:
            change = f"changes its input by {changes[path]:.3f}"
            if path in refused:
                run.skip(path, f"{change}, but cannot be left out: {refused[path]}")
            elif path not in going:
                run.skip(path, f"{change}: others change theirs less")

    @property
    def _budget(self) -> tuple[str, float] | None:
        if self.macs is not None:
            return "macs", self.macs
        return None if self.parameters is None else ("parameters", self.parameters)

    def _tell(self, run: Run, coupling: Coupling, gone: dict[Group, int], refused: dict[Group, str]) -> None:
        """What became of each tensor of two axes or more."""
        asked = f", asked {self.amount:.0%}" if self.amount is not None else ""
        lines: dict[str, list[str]] = {}
        for group, count in gone.items():
            for member in group.members:
                text = f"{group.size - count} of {group.size} {self.unit} left along axis {member.axis}"
                lines.setdefault(member.path, []).append(f"{text} ({count / group.size:.0%} removed{asked})")
        for path in run.shapes():
            if run.encoding(path) is not None:
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
                run.skip(path, stay.get(path) or next(filter(None, protected), f"no {self.unit} of it were meant"))


def keep_largest(scores: dict[str, Tensor], amount: float, scope: str) -> dict[str, Tensor]:
    """For each tensor of scores a mask of the same shape, 1 where it stays: `round(amount * n)` lowest scores go.

    >>> keep_largest({"w": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5, "layer")
    {'w': tensor([1., 0., 0., 1.])}
    """
    pools = [list(scores)] if scope == "global" else [[path] for path in scores]
    masks: dict[str, Tensor] = {}
    for pool in pools:
        flat = torch.cat([scores[path].flatten() for path in pool])
        lowest = flat.argsort(stable=True)[: round(amount * flat.numel())]
        kept = torch.ones_like(flat).index_fill(0, lowest, 0.0)
        parts = kept.split([scores[path].numel() for path in pool])
        masks |= {path: part.reshape(scores[path].shape) for path, part in zip(pool, parts, strict=True)}
    return masks
