"""Recurrent layers in a captured graph: one op for a whole layer, which leaves the number of steps open.

`torch.export` learns the shapes of ``aten.lstm`` and its kind by running their steps one after another, and so makes
the number of steps a constant. Inside `WholeLayers` each such call becomes an op of ours that computes the same.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lilliput.model.views.view import RECURRENT

_SCHEMA = (
    "(Tensor x, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, bool bidirectional, bool batch_first)"
    " -> Tensor[]"
)


def _run(
    op: str,
    x: Tensor,
    hx: list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    """The layer outside training: outputs of all steps, then the last states."""
    states = hx if op == "lstm" else hx[0]
    return list(getattr(torch, op)(x, states, params, has_biases, num_layers, 0.0, False, bidirectional, batch_first))


def _shapes(
    x: Tensor,
    hx: list[Tensor],
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    outputs = hx[0].shape[2] * (2 if bidirectional else 1)
    return [x.new_empty((*x.shape[:2], outputs)), *map(torch.empty_like, hx)]


for _op in sorted(RECURRENT):
    torch.library.custom_op(
        f"lilliput::{_op}", functools.partial(_run, _op), mutates_args=(), schema=_SCHEMA
    ).register_fake(_shapes)


class WholeLayers(TorchFunctionMode):
    """While active, `torch.lstm` and its kind are ops of ours; on packed sequences they stay torch's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = getattr(func, "__name__", "")
        if op not in RECURRENT or len(args) != 9 or not isinstance(args[3], bool):
            return func(*args, **(kwargs or {}))
        x, hx, params, has_biases, num_layers, _dropout, _train, bidirectional, batch_first = args
        states = [hx] if isinstance(hx, Tensor) else list(hx)
        whole = getattr(torch.ops.lilliput, op)
        return tuple(whole(x, states, list(params), has_biases, num_layers, bidirectional, batch_first))
