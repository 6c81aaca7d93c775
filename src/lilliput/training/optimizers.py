"""Optimizers by name, schedules as a factor of the step, and clipping."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import RecipeError, nearest
from lilliput.model.carrier.carrier import stored_of
from lilliput.techniques.finetune import Finetune

_NORMS = {"l1": 1.0, "l2": 2.0, "inf": math.inf}
_CLOSURES = ("LBFGS",)  # want to call the loss themselves


def optimizer(step: Finetune, trained: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that a step names, over two groups: tensors that decay, and those that do not."""
    known = {
        name: kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    if step.optimizer not in known or step.optimizer in _CLOSURES:
        usable = [name for name in known if name not in _CLOSURES]
        like = [name for name in usable if name.lower() == step.optimizer.lower()] or usable
        raise RecipeError(f"Finetune with optimizer={step.optimizer!r}", next=nearest(step.optimizer, like))
    kind = known[step.optimizer]
    takes = inspect.signature(kind).parameters
    parameters = list(trained)
    decay = [getattr(p, "decays", step.decay_all or p.dim() > 1) for p in parameters]
    groups = [
        {"params": [p for p, one in zip(parameters, decay, strict=True) if one], "weight_decay": step.weight_decay},
        {"params": [p for p, one in zip(parameters, decay, strict=True) if not one], "weight_decay": 0.0},
    ]
    held = [group for group in groups if group["params"]]
    given: dict[str, Any] = {"lr": step.lr}
    for name, value in (("momentum", step.momentum), ("weight_decay", step.weight_decay or None)):
        if value is not None and name not in takes:
            raise RecipeError(f"{step.optimizer} has no {name}", next="leave it out, or choose one that has")
        if value is not None and name == "momentum":
            given[name] = value
    if "weight_decay" not in takes:
        held = [{"params": group["params"]} for group in held]
    return kind(held, **given)


def factor(step: Finetune, steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by at each step of so many.

    >>> rate = factor(Finetune(schedule="cosine", warmup=0.2), 10)
    >>> [round(rate(i), 2) for i in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    warm = math.ceil(step.warmup * steps)

    def at(i: int) -> float:
        if i < warm:
            return (i + 1) / warm
        done = (i - warm) / max(1, steps - warm)
        if step.schedule == "linear":
            return max(0.0, 1.0 - done)
        if step.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        if step.schedule == "step":
            return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        return 1.0

    return at


def norm_of(step: Finetune) -> float:
    """The order of the norm that gradients are clipped by."""
    return _NORMS[step.clip_norm]


class Average:
    """A moving average of a module's parameters and floating-point buffers: ``a ← d·a + (1 - d)·x``.

    The decay grows from 1/11 to what is asked, ``min(decay, (1 + n) / (10 + n))``, so that the first weights are soon
    forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.held = {name: x.detach().clone() for name, x in _averaged(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, x in _averaged(model).items():
            self.held[name].lerp_(x.detach().to(self.held[name].dtype), 1 - decay)

    @torch.no_grad()
    def give(self, model: nn.Module) -> None:
        """Put the averages into the module."""
        for name, x in _averaged(model).items():
            x.copy_(self.held[name])


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    floats = {name: x for name, x in model.named_buffers() if x.is_floating_point() and stored_of(model, name) == name}
    return {**dict(model.named_parameters()), **floats}
