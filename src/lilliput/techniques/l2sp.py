"""L2-SP: weights are drawn towards what they were when the training began, so that new data unteach little."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.errors import RecipeError
from lilliput.techniques.plugin import Moment, Plugin


@dataclass(frozen=True, repr=False, kw_only=True)
class L2SP(Plugin):
    """Adds ``weight / 2 · Σ (w - w₀)²`` over the weights, w₀ being what they were before the first step.

    Source: Li et al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", 2018, arXiv
    1802.01483.

    >>> L2SP(weight=0.1)
    L2SP(weight=0.1)
    """

    weight: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise RecipeError(f"L2SP of weight {self.weight}", next="give a finite number above 0")

    def begin(self, moment: Moment) -> None:
        moment.state["first"] = {path: p.detach().clone() for path, p in moment.weights.items()}

    def loss(self, moment: Moment) -> Tensor | None:
        first = moment.state["first"]
        apart = [(p - first[path]).square().sum() for path, p in moment.weights.items()]
        return self.weight / 2 * torch.stack(apart).sum() if apart else None
