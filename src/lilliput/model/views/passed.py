"""How what a module answers with passes through a built graph, which gives tensors of a runtime's own types alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import CaptureError
from lilliput.outputs import comparable, leaves

_NARROW = {str(kind).removeprefix("torch."): kind for kind in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)}
_COMPLEX = {str(kind).removeprefix("torch."): kind for kind in (torch.complex64, torch.complex128)}
CONVERTED = {**_NARROW, **_COMPLEX}  # types that pass as others: as float32, or as pairs of real numbers


def passes_as(leaf: Any) -> Any:
    """What a file says of one leaf of an answer: `"tensor"`, `"int"`, `"float"`, or a dict that says more.

    Numbers are outputs of the graph, for they may be lengths of inputs; None, truth values and texts are told here.

    >>> passes_as(torch.ones(1).bfloat16()), passes_as(3), passes_as(None)
    ({'tensor': 'bfloat16'}, 'int', {'constant': None})
    """
    if isinstance(leaf, Tensor):
        kind = str(leaf.dtype).removeprefix("torch.")
        return {"tensor": kind} if kind in CONVERTED else "tensor"
    if leaf is None or isinstance(leaf, bool | str):
        return {"constant": str.__str__(leaf) if isinstance(leaf, str) else leaf}  # no enumeration's own text
    if isinstance(leaf, int | float):
        return "int" if isinstance(leaf, int) else "float"
    return {"constant": None}  # an object that nobody can compare (`lilliput.outputs.left_out`)


def is_leaf(told: Any) -> bool:
    """Whether this is what `passes_as` may give, as a file may hold it."""
    if told in ("tensor", "int", "float"):
        return True
    if not isinstance(told, dict) or len(told) != 1:
        return False
    ((kind, value),) = told.items()
    if kind == "tensor":
        return isinstance(value, str) and value in CONVERTED
    return kind == "constant" and (value is None or type(value) in (bool, str))


def in_graph(told: Any) -> bool:
    """Whether a leaf is an output of the graph."""
    return not (isinstance(told, dict) and "constant" in told)


def given_back(told: Any, out: Tensor) -> Any:
    """The leaf again, from an output of the graph."""
    if told == "tensor":
        return out
    if told in ("int", "float"):
        return (int if told == "int" else float)(out)
    kind = CONVERTED[told["tensor"]]
    return torch.view_as_complex(out.contiguous()) if told["tensor"] in _COMPLEX else out.to(kind)


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
    if leaf.dtype in _COMPLEX.values():
        return torch.view_as_real(leaf.resolve_conj())
    return leaf.float() if leaf.dtype in _NARROW.values() else leaf
