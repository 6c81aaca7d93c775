"""What a technique is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from lilliput.model.carrier.parameters import shapes
from lilliput.model.views.view import MULTIPLIES, Call, View
from lilliput.plain import short_repr
from lilliput.techniques.run import Run
from lilliput.techniques.where import Where, check_where, chosen

_PRODUCTS = frozenset({"matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"})
_SUMS = frozenset({"addmm", "baddbmm"})  # whose first operand is added
_TURNS = frozenset({"t", "numpy_T", "transpose", "permute", "contiguous"})


@dataclass(frozen=True, repr=False, kw_only=True)
class Technique(ABC):
    """A frozen set of knobs and one method, whose only inputs are those knobs and what the run answers."""

    where: Where = "*"  # module paths, with * and ?; a leading ! excludes

    @abstractmethod
    def apply(self, run: Run) -> None:
        """Decide, and ask the run to change the model."""

    @property
    def establishes(self) -> frozenset[str]:
        """What later steps rely on: ``"ranges"`` once activations are calibrated, ``"values"`` once they are encoded,
        ``"widths"`` once channels are gone.
        """
        return frozenset()

    @property
    def disturbs(self) -> frozenset[str]:
        """What this step makes stale if an earlier one established it."""
        return frozenset()

    @property
    def rounds(self) -> bool:
        """Whether it changes numbers by rounding alone, so that what flowed before tells what flows after it too."""
        return False

    @property
    def needs(self) -> Mapping[str, str]:
        """Fields of the task without which it cannot be done, each with what to do about it; asked before any step."""
        return {}

    @property
    def times(self) -> bool:
        """Whether it goes by what networks take on the target."""
        return False

    @property
    def needs_whole(self) -> str:
        """Why parts of a network, one at a time, do not tell what it does to the whole; empty where they do."""
        return "it looks at the whole network"

    def check_paths(self, paths: Sequence[str]) -> None:
        """Refuse names of layers that the network, whose weights lie at `paths`, has not."""
        check_where(self.where, paths)

    def within(self, weights: Mapping[str, Sequence[Call]]) -> Self | None:
        """The same step, of a part of the network with these weights; None where it means none of them.

        Each with its calls, or with none where they are not known yet.
        """
        return self if any(chosen(path, self.where) for path in weights) else None

    def rehearse(self, run: Run) -> None:
        """Try on little what would fail late; done before any step of a recipe."""
        return  # most have nothing to try

    def reading_floats(self, paths: Collection[str], layers: Collection[str]) -> Self:
        """The same step, but of the `layers` that a recipe means those at `paths` read floats."""
        return self

    def __repr__(self) -> str:
        return short_repr(self)


def used_weights(run: Run) -> dict[str, list[Call]]:
    """The parameters that layers multiply by or look rows up in, with their calls in order.

    Layers whose weight is no parameter are reported as skipped.
    """
    view, known = run.view(), shapes(run.model)
    for call in view.calls:
        if call.op in MULTIPLIES and not call.weights:
            run.skip(call.module or call.id, "its weight is computed or no parameter: make it an nn.Parameter")
    for path in view.weights:
        if path not in known:
            run.skip(path, "a buffer, not a parameter: make it an nn.Parameter")
    for path in _multiplied(view):
        if path not in known:
            run.skip(path, "a buffer that is multiplied by: make it the weight of a linear layer")
    return {path: calls for path, calls in view.weights.items() if path in known}


def _multiplied(view: View) -> Iterator[str]:
    """Paths of tensors that are operands of a product which is no layer's, as they are or turned."""
    for call in view.calls:
        operands = call.reads[call.op in _SUMS :] if call.op in _PRODUCTS else ()
        for source in operands:
            while source in view.by_id and view.by_id[source].op in _TURNS:
                source = view.by_id[source].reads[0]
            if source and source.startswith("tensor "):
                yield source.removeprefix("tensor ")
