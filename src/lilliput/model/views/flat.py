"""A model that answers, for a while, with the outputs of its graph alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import CaptureError
from lilliput.model.views.passed import COMPLEX, NARROW
from lilliput.structures import comparable, leaves


@contextmanager
def flat(model: nn.Module) -> Iterator[list[str]]:
    """Inside, `model` answers with a tuple of the outputs of its graph alone, as `Signature` takes them.

    Gives a list that holds their places in the answer, such as `logits` or `0.1`, once it has answered.
    """
    places: list[str] = []

    def flattened(module: nn.Module, args: Any, output: Any) -> tuple[Tensor, ...]:
        held = list(leaves(output))
        found = [leaf for _, leaf in held]
        if not any(isinstance(leaf, Tensor) for leaf in found):
            kinds = ", ".join(sorted({type(leaf).__name__ for leaf in found})) or "nothing"
            raise CaptureError(f"the model answers with no tensor, but with {kinds}", next="let it return tensors")
        if any(isinstance(leaf, torch.SymBool) for leaf in found):
            raise CaptureError(
                "the model answers with a truth value that depends on the length of an axis",
                next="return a tensor, or fix the lengths by dynamic={}",
            )
        places[:] = [place for place, leaf in held if _goes_out(leaf)]
        return tuple(_outgoing(leaf) for leaf in found if _goes_out(leaf))

    hook = model.register_forward_hook(flattened)
    try:
        yield places
    finally:
        hook.remove()


def _goes_out(leaf: Any) -> bool:
    return comparable(leaf) and not (leaf is None or isinstance(leaf, bool | str))


def _outgoing(leaf: Any) -> Tensor:
    """A leaf as an output of the graph: numbers in 64 bits, tensors in a type that arrays have."""
    if not isinstance(leaf, Tensor):
        whole = isinstance(leaf, int | torch.SymInt)
        return torch.scalar_tensor(leaf, dtype=torch.int64 if whole else torch.float64)
    if _kind(leaf) in COMPLEX:
        return torch.view_as_real(leaf.resolve_conj())
    return leaf.float() if _kind(leaf) in NARROW else leaf


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
