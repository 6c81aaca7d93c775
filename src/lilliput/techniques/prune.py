"""Pruning: which unit, how much of it, over what scope; scored by magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.encodings import Sparse
from lilliput.errors import RecipeError
from lilliput.model.view import MULTIPLIES, RECURRENT
from lilliput.techniques.choice import Choice
from lilliput.techniques.technique import Run, Technique, check_where, chosen, used_weights


@dataclass(frozen=True, repr=False)
class Prune(Technique):
    """Set the weights of least magnitude to zero, and keep them there.

    Single zeros make files smaller, not runtimes faster: the report says so.

    >>> Prune("weights", 0.5, scope="global")
    Prune(unit='weights', amount=0.5, scope='global')
    """

    unit: Literal["weights"]
    amount: float  # fraction removed, over 0 and under 1
    scope: Literal["layer", "global"] = "layer"  # the fraction holds in each layer, or over all layers together

    def __post_init__(self) -> None:
        if self.unit != "weights":
            raise RecipeError(f"Prune cannot remove {self.unit!r}", next="known units: 'weights'")
        if not 0 < self.amount < 1:
            raise RecipeError(f"Prune of amount {self.amount}", next="give the fraction to remove, between 0 and 1")
        if self.scope not in ("layer", "global"):
            raise RecipeError(f"Prune with scope {self.scope!r}", next="known scopes: 'layer', 'global'")

    @property
    def disturbs(self) -> frozenset[str]:
        return frozenset({"ranges"})

    def apply(self, run: Run) -> None:
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
