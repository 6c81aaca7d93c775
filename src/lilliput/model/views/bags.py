"""Bags of embeddings in a captured graph, looked up and reduced with no loop.

torch looks bags up in one run of numbers with offsets, which leaves for ONNX as a loop that few runtimes take. Inside
`WholeBags` each call becomes an op of ours that computes the same: of a matrix of numbers [bags, numbers], or of one
run [numbers] with the offsets where each bag begins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lilliput.model.views.view import BAG

_GIVEN = ("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse",
          "per_sample_weights", "include_last_offset", "padding_idx")  # fmt: skip


def _run(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    mode: str,
    padding_idx: int | None,
    last: bool,
) -> Tensor:
    given = {"per_sample_weights": weights, "padding_idx": padding_idx, "include_last_offset": last}
    return functional.embedding_bag(indices, weight, offsets, mode=mode, **given)  # type: ignore[arg-type]


def _shape(weight: Tensor, indices: Tensor, offsets: Tensor | None, *more: Any) -> Tensor:
    bags = indices.shape[0] if offsets is None else offsets.shape[0] - more[-1]
    return weight.new_empty((bags, weight.shape[1]))


torch.library.custom_op(
    f"lilliput::{BAG}",
    _run,
    mutates_args=(),
    schema="(Tensor weight, Tensor indices, Tensor? offsets, Tensor? weights, str mode, int? padding_idx, bool last)"
    " -> Tensor",
).register_fake(_shape)


class WholeBags(TorchFunctionMode):
    """While active, bags are looked up by an op of ours; those whose rows are renormed stay torch's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip(_GIVEN, args, strict=False)) | (kwargs or {})
        if func is not functional.embedding_bag or given.get("max_norm") is not None:
            return func(*args, **(kwargs or {}))
        numbers = (given.get("mode", "mean"), given.get("padding_idx"), bool(given.get("include_last_offset")))
        whole = getattr(torch.ops.lilliput, BAG)
        return whole(given["weight"], given["input"], given.get("offsets"), given.get("per_sample_weights"), *numbers)
