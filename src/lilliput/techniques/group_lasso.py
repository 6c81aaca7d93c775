"""Group lasso: coupled slices are driven to zero together, so that few are left to prune."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.errors import InputError, RecipeError
from lilliput.model.surgery.coupling import Group
from lilliput.techniques.plugin import Moment, Plugin


@dataclass(frozen=True, repr=False, kw_only=True)
class GroupLasso(Plugin):
    """Adds ``weight · Σ √(size) · ‖slice‖`` over all slices that can only be removed together.

    A slice is a channel with all that reads it, or a head; its size is the number of its weights. Slices that the loss
    needs little shrink to nothing, and ``Prune("channels", …)`` then takes them with little harm. Source: Wen et al.,
    "Learning Structured Sparsity in Deep Neural Networks", 2016, arXiv 1608.03665; over coupled slices Fang et al.,
    "DepGraph", 2023, arXiv 2301.12900.

    >>> GroupLasso(weight=1e-3)
    GroupLasso(weight=0.001)
    """

    weight: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise RecipeError(f"GroupLasso of weight {self.weight}", next="give a finite number above 0")

    def begin(self, moment: Moment) -> None:
        if not moment.groups:
            raise InputError("nothing is coupled that could go", where="GroupLasso", next="leave the plug-in out")

    def loss(self, moment: Moment) -> Tensor | None:
        norms = [penalty(group, moment.tensor) for group in moment.groups]
        return self.weight * torch.stack(norms).sum()


def penalty(group: Group, tensor: Callable[[str], Tensor]) -> Tensor:
    """``Σ √(size) · ‖slice‖`` of one group, a scalar; of its tensors those that are floats of two axes and more."""
    tensors = ((member, tensor(member.path)) for member in group.members)
    weights = [(member, x) for member, x in tensors if x.dim() > 1 and x.is_floating_point()]
    squares = [member.sums(x.square()) for member, x in weights]
    size = sum(len(member.positions[0]) * (x.numel() // x.shape[member.axis]) for member, x in weights)
    return (torch.stack(squares).sum(0) + 1e-12).sqrt().sum() * math.sqrt(size) if squares else torch.zeros(())
