"""The parameters of a model by their paths, encoded or not: how they are read, written and rescaled."""

from __future__ import annotations

from torch import Tensor, nn

from lilliput.encodings import Encoding
from lilliput.errors import InputError
from lilliput.model.carrier.carrier import paths_of, tensor_held, tensors
from lilliput.model.carrier.encoded_tensor import EncodedTensor


def held_at(model: nn.Module, path: str) -> tuple[tuple[str, ...], Tensor | EncodedTensor]:
    """A parameter of `model`, with all its paths; raises InputError where there is none."""
    held = one_held(model, path)
    return paths_of(model, held), held


def one_held(model: nn.Module, path: str) -> Tensor | EncodedTensor:
    """A parameter of `model`, by one of its paths; raises InputError where there is none."""
    held = tensor_held(model, path)
    if held is None:
        raise InputError("the model has no such parameter", where=path)
    return held


def read(model: nn.Module, path: str) -> Tensor:
    """A copy of a parameter, decoded."""
    held = one_held(model, path)
    return (held().detach() if isinstance(held, EncodedTensor) else held.detach()).clone()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters, each under its first path."""
    return {paths[0]: tuple(held.shape) for paths, held in tensors(model).items()}


def encoding_of(model: nn.Module, path: str) -> Encoding | None:
    """How a parameter is represented now; None as it is."""
    held = one_held(model, path)
    return held.encoding if isinstance(held, EncodedTensor) else None


def write(model: nn.Module, path: str, x: Tensor) -> None:
    """Give a parameter of `model` new values, in place."""
    held = one_held(model, path)
    if isinstance(held, EncodedTensor):
        held.write(x)
    else:
        held.detach().copy_(x)


def rescaled(x: Tensor, factor: Tensor) -> Tensor:
    """`x` multiplied in float64, rounded once."""
    return (x.double() * factor).to(x.dtype)
