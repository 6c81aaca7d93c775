"""Integers that stand for floats, as files hold them that were quantized already."""

from __future__ import annotations

import torch
from torch import Tensor

from lilliput.errors import InputError
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


@operator("com.microsoft.MatMulNBits", only={"bits": (2, 4, 8), "weight_prepacked": (0,)})
def matmul_nbits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int = 4,
    block_size: int,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> Tensor:
    """A product with packed weights, as the floats that they stand for."""
    product = a @ unpacked(b, scales, zero_points, g_idx, (N, K), bits, block_size).t()
    return product if bias is None else product + bias


def unpacked(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    places: Tensor | None,
    shape: tuple[int, int],
    bits: int,
    block: int,
) -> Tensor:
    """The floats, [outputs, inputs], that the packed codes of a `MatMulNBits` stand for."""
    if places is not None:
        raise InputError("inputs in an order of their own (g_idx)", next="quantize the network without an order")
    outputs, inputs = shape
    blocks = -(-inputs // block)
    whole = _apart(codes.reshape(outputs, -1), bits).reshape(outputs, blocks, block)
    if zeros is None:
        zero: Tensor | int = 2 ** (bits - 1)
    elif zeros.is_floating_point():
        zero = zeros.reshape(outputs, blocks, 1)
    else:
        zero = _apart(zeros.reshape(outputs, -1), bits)[:, :blocks, None]
    floats = (whole.to(scales.dtype) - zero) * scales.reshape(outputs, blocks, 1)
    return floats.reshape(outputs, -1)[:, :inputs].contiguous()


def _apart(packed: Tensor, bits: int) -> Tensor:
    """Codes from 0 on, each row's low bits first, [rows, codes]."""
    places = range(0, 8, bits)
    return torch.stack([(packed.to(torch.int32) >> place) % 2**bits for place in places], -1).flatten(1)
