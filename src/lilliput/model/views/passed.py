"""How what a module answers with passes through a built graph, which gives tensors of a runtime's own types alone."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np

from lilliput.structures import is_tensor

NARROW = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # types that pass as float32
COMPLEX = ("complex64", "complex128")  # … as pairs of real numbers
CONVERTED = (*NARROW, *COMPLEX)


def passes_as(leaf: Any) -> Any:
    """What a file says of one leaf of an answer: `"tensor"`, `"int"`, `"float"`, or a dict that says more.

    Numbers are outputs of the graph, for they may be lengths of inputs; None, truth values and texts are told here.

    >>> import torch
    >>> passes_as(torch.ones(1).bfloat16()), passes_as(3), passes_as(None)
    ({'tensor': 'bfloat16'}, 'int', {'constant': None})
    """
    if is_tensor(leaf):
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


def given_back(told: Any, out: Any) -> Any:
    """The leaf again, from an output of the graph: a tensor from a tensor, an array from an array.

    >>> given_back({"tensor": "complex64"}, np.ones((3, 2), np.float32)).shape
    (3,)
    """
    if told == "tensor":
        return out
    if told in ("int", "float"):
        return (int if told == "int" else float)(out)
    kind = told["tensor"]
    if isinstance(out, np.ndarray):
        paired = kind in COMPLEX
        return np.ascontiguousarray(out).view(kind)[..., 0] if paired else out.astype(getattr(ml_dtypes, kind))
    torch = sys.modules["torch"]
    return torch.view_as_complex(out.contiguous()) if kind in COMPLEX else out.to(getattr(torch, kind))
