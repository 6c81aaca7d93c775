"""Integers that stand for floats, as files hold them that were quantized already."""

from __future__ import annotations

import torch
from torch import Tensor

from lilliput.importers.operators.table import operator


@operator("DequantizeLinear")
def dequantize(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """The floats that a weight's integers stand for."""
    scale, zero = (_along(part, x, axis, block_size) for part in (x_scale, x_zero_point))
    whole = x.to(torch.int32) if zero is None else x.to(torch.int32) - zero.to(torch.int32)
    assert scale is not None
    return whole.to(scale.dtype) * scale


def _along(part: Tensor | None, x: Tensor, axis: int, block: int) -> Tensor | None:
    """Scales or zero points as they lie along the elements."""
    if part is None or part.dim() == 0 or part.numel() == 1:
        return part if part is None else part.reshape(())
    axis = axis % x.dim()
    if block:
        return part.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return part.reshape([-1] + [1] * (x.dim() - axis - 1))
