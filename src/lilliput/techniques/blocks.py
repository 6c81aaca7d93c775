"""Which weights of a model are rounded together, the blocks that it is made of, and what flows into a block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.errors import InputError, RecipeError
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.view import MULTIPLIES, Call
from lilliput.techniques.inputs import Waiting
from lilliput.techniques.where import Where, means


@dataclass(frozen=True)
class Block:
    """A module whose weights are rounded together: its path, and the calls that multiply by them, by their paths.

    The calls of `biased` have biases of their own, which may move.
    """

    path: str
    calls: Mapping[str, Call]
    biased: frozenset[str] = frozenset()


class BlockStop(Waiting[Inputs]):
    """A block at whose entry the batches wait; it can be called alone, with other weights and biases."""

    def __init__(
        self,
        block: Block,
        inputs: Callable[[], Mapping[int, Inputs]],
        original: Callable[[], Mapping[int, Inputs]],
        answer: Callable[[Inputs, Mapping[str, Tensor]], Sequence[Tensor]],
        exact: Callable[[Inputs], Sequence[Tensor]],
        biases: Mapping[str, Tensor],
    ) -> None:
        super().__init__(inputs, original)
        self.block, self._answer, self._exact = block, answer, exact
        self.biases = biases  # by their paths

    def answer(self, batch: int, tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """What the block gives, its calls reading `tensors` in place of the operands of those names."""
        return self._answer(self.inputs[batch], tensors)

    def targets(self, correct: bool) -> dict[int, Sequence[Tensor]]:
        """What the block gave before the walk began, from what it then was called with or (not correct) is now.

        Raises InputError for a block that gives no floating-point tensor, or NaN or infinity.
        """
        given = self._original() if correct else self.inputs
        found = {i: self._exact(given[i]) for i in self.batches}
        if not all(found.values()):
            raise InputError(
                "this block gives no tensor of floating-point numbers", where=self.block.path, next=self._without()
            )
        if not all(bool(torch.isfinite(x).all()) for one in found.values() for x in one):
            raise InputError(
                "what this block gives is NaN or infinite",
                where=self.block.path,
                next=f"look at the calibration batches, or {self._without()}",
            )
        return found

    def _without(self) -> str:
        return f'leave it out of blocks=, with "!{self.block.path}"'


def blocks(
    weights: Mapping[str, Sequence[Call]],
    repeated: Sequence[str],
    patterns: Where,
    biased: Collection[str],
) -> list[Block]:
    """The blocks, by `patterns` of module paths, or else the innermost of the `repeated` modules with many weights.

    A weight that is used twice, or by calls outside, belongs to none; nor does one whose use cannot be looked into.

    Raises RecipeError where there is no block.
    """
    own = {path: calls[0] for path, calls in weights.items() if len(calls) == 1 and _replaceable(calls[0])}
    modules = _ancestors(call.module for call in own.values())
    inside = {module: {path: call for path, call in own.items() if _within(call.module, module)} for module in modules}
    if patterns:
        meant = {module for module in modules if means(patterns, [module])}
        found = [module for module in meant if not any(module != other and _within(module, other) for other in meant)]
    else:
        meant = {module for module in repeated if len(inside.get(module, ())) > 1}
        found = [module for module in meant if not any(module != other and _within(other, module) for other in meant)]
    if not found and patterns:
        listing = ", ".join(sorted(modules)[:8])
        raise RecipeError(
            f"blocks={patterns!r} matches no module with weights to round", next=f"modules are called {listing} …"
        )
    if not found:
        raise RecipeError(
            "no blocks found",
            why="no module of a list or sequence, of a class that occurs there twice, holds two weights to round",
            next="name modules in blocks=, or use AdaRound()",
        )
    order = {path: i for i, path in enumerate(own)}
    return [
        Block(module, inside[module], frozenset(inside[module]) & frozenset(biased))
        for module in sorted(found, key=lambda module: min(order[path] for path in inside[module]))
    ]


def _replaceable(call: Call) -> bool:
    return call.op in MULTIPLIES and call.value is not None and len(call.weights) == 1


def _ancestors(modules: Iterable[str]) -> set[str]:
    """The modules and all that hold them, but for the root."""
    parts = [module.split(".") for module in modules if module]
    return {".".join(names[: i + 1]) for names in parts for i in range(len(names))}


def _within(module: str, other: str) -> bool:
    return module == other or module.startswith(f"{other}.")
