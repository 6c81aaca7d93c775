"""Memory given back between the steps of a run."""

from __future__ import annotations

import gc
from math import prod

from torch import nn

from lilliput import external
from lilliput.model.carrier.carrier import tensors


def is_large(model: nn.Module) -> bool:
    """Whether a copy of its weights more or less is felt."""
    return external.beside(4 * prod(held.shape) for held in tensors(model).values())


def make_room(model: nn.Module) -> None:
    """Free what copies and captured programs left in cycles, which Python finds late, where the weights are large.

    A copy that nobody needs any more would be in memory beside the next one.
    """
    if is_large(model):
        gc.collect()
