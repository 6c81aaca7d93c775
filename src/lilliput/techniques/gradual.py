"""Gradual magnitude pruning: the smallest weights go while the network trains, more and more of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.errors import InputError, RecipeError
from lilliput.techniques.plugin import Moment, Plugin
from lilliput.techniques.where import Where, chosen


@dataclass(frozen=True, repr=False, kw_only=True)
class Gradual(Plugin):
    """Sets a growing fraction of each tensor's smallest weights to zero, and keeps them there.

    The fraction rises from nothing at `begins` to `amount` at `ends`, fast at first: ``amount · (1 - (1 - t)³)``.
    ``Prune("weights", amount)`` after the training finds those zeros and keeps them from then on. Source: Zhu and
    Gupta, "To prune, or not to prune", 2017, arXiv 1710.01878.

    >>> [round(Gradual(amount=0.8).fraction(share), 2) for share in (0.0, 0.35, 1.0)]
    [0.0, 0.7, 0.8]
    """

    amount: float = 0.5
    begins: float = 0.0  # fraction of all steps
    ends: float = 0.7
    every: int = 10  # steps between two choices
    where: Where = "*"

    def __post_init__(self) -> None:
        if not 0 < self.amount < 1:
            raise RecipeError(f"Gradual with amount={self.amount}", next="give a fraction between 0 and 1")
        if not 0 <= self.begins < self.ends <= 1 or self.every < 1:
            raise RecipeError(
                f"{self!r}", next="begin before the end, within 0 to 1, and choose every step or less often"
            )

    def fraction(self, share: float) -> float:
        """How many of the weights are zero when so much of the training is done."""
        done = min(1.0, max(0.0, (share - self.begins) / (self.ends - self.begins)))
        return self.amount * (1 - (1 - done) ** 3)

    def begin(self, moment: Moment) -> None:
        names = [path for path in moment.weights if chosen(path, self.where)]
        if not names:
            raise InputError(f"where={self.where!r} means no weight", where="Gradual", next="name layers of the model")
        moment.state["kept"] = {path: torch.ones_like(moment.weights[path], dtype=torch.bool) for path in names}

    def after_step(self, moment: Moment) -> None:
        kept, weights = moment.state["kept"], moment.weights
        for path in kept:
            if moment.step % self.every == 0 or moment.step == moment.steps:
                kept[path] = self._chosen(weights[path].detach(), kept[path], moment.share)
            weights[path].mul_(kept[path])

    def _chosen(self, x: Tensor, kept: Tensor, share: float) -> Tensor:
        """Which weights stay: what is gone, and the smallest of the others, goes."""
        smallest = x.abs().masked_fill(~kept, -1.0).flatten().argsort(stable=True)
        gone = smallest[: round(self.fraction(share) * x.numel())]
        return torch.ones_like(kept).flatten().index_fill(0, gone, False).reshape(x.shape)

    def end(self, moment: Moment) -> None:
        for path, kept in moment.state["kept"].items():
            moment.weights[path].mul_(kept)  # an average remembers what was there
