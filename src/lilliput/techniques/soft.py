"""Choices between two numbers that gradient descent can learn: soft at first, then driven to one side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lilliput.errors import InputError

Answer = Callable[[int, Mapping[str, Tensor]], Sequence[Tensor]]  # batch, tensors to compute with -> what comes out
_ENTER = 0.2  # of the steps, after which choices are driven


class UpOrDown:
    """Between the number below and the number above each weight, by a sigmoid stretched over -0.1 … 1.1.

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020, arXiv 2004.10568. It
    begins where it gives the weights themselves.
    """

    def __init__(self, weights: Tensor, below: Tensor, above: Tensor) -> None:
        self.below, self.above, self.step = below, above, above - below
        share = torch.where(self.step > 0, (weights - below) / self.step.clamp(min=1e-30), 0.5).clamp(0.01, 0.99)
        self.nearest = torch.where(share > 0.5, above, below)
        stretched = (share + 0.1) / 1.2
        self.logit = torch.log(stretched / (1 - stretched)).requires_grad_()

    def share(self) -> Tensor:
        """Of the step from below to above."""
        return (torch.sigmoid(self.logit) * 1.2 - 0.1).clamp(0, 1)

    def soft(self) -> Tensor:
        return self.below + self.share() * self.step

    def hard(self) -> Tensor:
        return torch.where(self.logit.detach() > 0, self.above, self.below)

    def undecided(self, done: float) -> Tensor:
        """How far all are from a side, summed, judged the more sharply the more of the steps are done (0 … 1)."""
        sharp = 20 - 18 * max(0.0, (done - _ENTER) / (1 - _ENTER))
        return (1 - (2 * self.share() - 1).abs().pow(sharp)).sum()


@torch.enable_grad()
def decide(
    choices: Mapping[str, UpOrDown],
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    weight: float,
    others: Sequence[Tensor] = (),
) -> None:
    """Learn the choices by the loss of each step, the loss of plain rounding being 1; `others` learn with them.

    `weight` is of the term that drives choices to one side.
    """
    learnt = [*(one.logit for one in choices.values()), *others]
    count = sum(one.logit.numel() for one in choices.values())
    optimizer = torch.optim.Adam(learnt, lr=lr)
    for i in range(steps):
        whole = loss(i)
        if i > _ENTER * steps:
            undecided = torch.stack([one.undecided(i / steps) for one in choices.values()]).sum()
            whole = whole + weight * undecided / count**0.5
        if not whole.requires_grad:
            raise InputError(
                "is computed without gradients, so no rounding can be learnt through it",
                why="its forward, or one inside, is under torch.no_grad() or inference_mode()",
                next="take that away, or leave it out of blocks=: its layers are then rounded one by one",
            )
        gradients = torch.autograd.grad(whole, learnt, allow_unused=True)
        for x, gradient in zip(learnt, gradients, strict=True):
            x.grad = gradient
        optimizer.step()


def reconstruct(
    choices: Mapping[str, UpOrDown],
    biases: Mapping[str, tuple[Tensor, Tensor]],
    answer: Answer,
    targets: Mapping[int, Sequence[Tensor]],
    steps: int,
    lr: float,
    weight: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and biases, each of them by its name, with which `answer` comes closest to `targets`, batch by batch.

    A bias comes with the unit in which it is learnt. Where what was learnt does no better than plain rounding, that is
    what is returned.
    """
    moved = {name: torch.zeros_like(bias).requires_grad_() for name, (bias, _) in biases.items()}

    def biased() -> dict[str, Tensor]:
        return {name: bias + moved[name] * unit for name, (bias, unit) in biases.items()}

    def damage(batch: int, tensors: Mapping[str, Tensor]) -> Tensor:
        pairs = zip(answer(batch, tensors), targets[batch], strict=True)
        return torch.stack([(a - b).float().square().sum() for a, b in pairs]).sum()

    @torch.no_grad()
    def whole(tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
        return {batch: damage(batch, tensors) for batch in targets}

    nearest = {name: one.nearest for name, one in choices.items()}
    plain = whole({**nearest, **biased()})
    batches, order = list(targets), torch.Generator().manual_seed(0)

    def loss(step: int) -> Tensor:
        batch = batches[int(torch.randint(len(batches), (), generator=order))]
        found = damage(batch, {**{name: one.soft() for name, one in choices.items()}, **biased()})
        return found / plain[batch].clamp(min=1e-30)

    decide(choices, loss, steps, lr, weight, list(moved.values()))
    learnt = {name: one.hard() for name, one in choices.items()}
    if sum(whole({**learnt, **biased()}).values()) < sum(plain.values()):
        return learnt, {name: bias.detach() for name, bias in biased().items()}
    return nearest, {name: bias for name, (bias, _) in biases.items()}
