"""The parameters of a model by their paths, encoded or not: how they are read, written and rescaled."""

from __future__ import annotations

from torch import Tensor, nn

from lilliput.errors import InputError
from lilliput.model.carrier import EncodedTensor, tensors


def held_at(model: nn.Module, path: str) -> tuple[tuple[str, ...], Tensor | EncodedTensor]:
    """A parameter of `model`, with all its paths; raises InputError where there is none."""
    for paths, tensor in tensors(model).items():
        if path in paths:
            return paths, tensor
    raise InputError("the model has no such parameter", where=path)


def read(model: nn.Module, path: str) -> Tensor:
    """A copy of a parameter, decoded."""
    held = held_at(model, path)[1]
    return (held().detach() if isinstance(held, EncodedTensor) else held.detach()).clone()


def write(model: nn.Module, path: str, x: Tensor) -> None:
    """Give a parameter of `model` new values, in place."""
    held = held_at(model, path)[1]
    if isinstance(held, EncodedTensor):
        held.write(x)
    else:
        held.detach().copy_(x)


def rescaled(x: Tensor, factor: Tensor) -> Tensor:
    """`x` multiplied in float64, rounded once."""
    return (x.double() * factor).to(x.dtype)
