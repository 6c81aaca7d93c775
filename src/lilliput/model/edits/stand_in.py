"""What stands in for a module that was taken out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class StandIn(nn.Module):
    """In the place of a module that gave what it took: gives on what it is given, or zeros of that shape.

    ``outputs``: 0 where the module gave a tensor, else the length of the tuple that it gave it first in; the rest of
    which is None.

    >>> StandIn(zeros=True, outputs=2)(hidden_states=torch.ones(1, 2))
    (tensor([[0., 0.]]), None)
    """

    def __init__(self, zeros: bool, outputs: int) -> None:
        super().__init__()
        self.zeros, self.outputs = zeros, outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = first_tensor((*args, *kwargs.values()))
        assert x is not None
        return given_as(torch.zeros_like(x) if self.zeros else x, self.outputs)

    def extra_repr(self) -> str:
        return f"zeros={self.zeros}, outputs={self.outputs}"


def given_as(x: Tensor, outputs: int) -> Any:
    return (x, *[None] * (outputs - 1)) if outputs else x


def first_tensor(values: Iterable[Any]) -> Tensor | None:
    """The first of the tensors that holds real numbers."""
    return next((x for x in values if isinstance(x, Tensor) and x.is_floating_point()), None)
