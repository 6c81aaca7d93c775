"""What gradients must lead through: tensors that they pass, and the error where they pass none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lilliput.errors import InputError


def without_gradients(what: str, model: nn.Module, where: str) -> InputError:
    """The error for something that no gradient leads through, naming the forward that may be why."""
    wrapped = (path for path, module in model.named_modules() if hasattr(type(module).forward, "__wrapped__"))
    path = next(wrapped, None)
    named = type(model if path is None else model.get_submodule(path)).__name__
    return InputError(
        f"{what} depends on no parameter by a gradient, so nothing can be trained",
        where=where if path is None else ".".join(filter(None, (path, f"{named}.forward"))),
        why="torch.no_grad() or inference_mode() around it, or a detach(), cuts gradients off",
        next="take that away: training needs none of it, and Lilliput measures without gradients itself",
    )


def to_learn_from(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`, in memory of its own, which the model may write over; an ordinary one, even of an inference
    mode, which no gradient passes.
    """
    moved = x.to(device)
    return x.clone().to(device) if moved is x or x.is_inference() else moved
