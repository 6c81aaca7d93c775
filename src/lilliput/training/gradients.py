"""Models that are computed without gradients, whatever mode is set around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lilliput.errors import InputError
from lilliput.model.inputs import Inputs
from lilliput.modes import eval_mode
from lilliput.nested import leaves
from lilliput.task import ask


def check_gradients(model: nn.Module, inputs: Inputs, where: str) -> None:
    """Refuse a model that answers `inputs` without gradients though it has parameters to be trained."""
    if not any(p.requires_grad for p in model.parameters()):
        return
    with torch.enable_grad(), eval_mode(model):
        answers = [x for x in leaves(ask(model, inputs, where)) if isinstance(x, Tensor) and x.is_floating_point()]
    if answers and not any(x.requires_grad for x in answers):
        raise without_gradients("what the model answers", model, where)


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
