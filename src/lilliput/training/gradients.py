"""Models that are computed without gradients, whatever mode is set around them."""

from __future__ import annotations

from torch import nn

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
