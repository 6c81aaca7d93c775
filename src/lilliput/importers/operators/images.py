"""Operators that go over axes of space: convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lilliput.importers.operators.table import operator

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_MEAN = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def around(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], auto_pad: str, pads: Sequence[int]
) -> list[tuple[int, int]]:
    """How much each axis of space is continued, before and after."""
    axes = len(kernel)
    if auto_pad == "VALID" or (auto_pad == "NOTSET" and not pads):
        return [(0, 0)] * axes
    if auto_pad == "NOTSET":
        return list(zip(pads[:axes], pads[axes:], strict=True))
    ends = []
    for length, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        missing = d * (k - 1) if s == 1 else max((-(-length // s) - 1) * s + d * (k - 1) + 1 - length, 0)
        less, more = missing // 2, missing - missing // 2
        ends.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return ends


def _padded(x: Tensor, ends: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    flat = [n for pair in reversed(ends) for n in pair]
    return F.pad(x, flat, value=value) if any(ends_differ(pair) or pair[0] for pair in ends) else x


def ends_differ(pair: tuple[int, int]) -> bool:
    return pair[0] != pair[1]


@operator("Conv")
def conv(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    *,
    kernel_shape: list[int] | None = None,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    axes = W.dim() - 2
    stride, dilation = strides or [1] * axes, dilations or [1] * axes
    ends = around(X, W.shape[2:], stride, dilation, auto_pad, pads or [])
    if not any(map(ends_differ, ends)):
        return _CONV[axes - 1](X, W, B, stride, [first for first, _ in ends], dilation, group)
    return _CONV[axes - 1](_padded(X, ends), W, B, stride, 0, dilation, group)


@operator("ConvTranspose")
def conv_transpose(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    *,
    kernel_shape: list[int] | None = None,
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
) -> Tensor:
    """All of it, then the ends cut off."""
    axes = W.dim() - 2
    stride, dilation = strides or [1] * axes, dilations or [1] * axes
    extra = output_padding or [0] * axes
    whole = _TRANSPOSED[axes - 1](X, W, B, stride, 0, 0, group, dilation)
    for axis in range(axes):
        k = dilation[axis] * (W.shape[2 + axis] - 1) + 1
        length = stride[axis] * (X.shape[2 + axis] - 1) + extra[axis] + k
        first, last = _cut(length, axis, X.shape[2 + axis] * stride[axis], auto_pad, pads, output_shape, axes)
        more = extra[axis] - last
        if more > 0:  # rows that nothing reaches, but the bias
            filled = whole.new_zeros(()) if B is None else B.reshape([-1] + [1] * axes)
            rows = filled.expand([*whole.shape[: 2 + axis], more, *whole.shape[3 + axis :]])
            whole = torch.cat([whole, rows], 2 + axis)
        whole = whole.narrow(2 + axis, first, length - first - last)
    return whole


def _cut(
    length: int,
    axis: int,
    same: int,
    auto_pad: str,
    pads: list[int] | None,
    output_shape: list[int] | None,
    axes: int,
) -> tuple[int, int]:
    """What is cut off before and after."""
    if output_shape is not None or auto_pad.startswith("SAME"):
        wanted = same if output_shape is None else output_shape[axis - axes]
        missing = length - wanted
        half = max(missing, 0) // 2
        return (half, missing - half) if auto_pad != "SAME_LOWER" else (missing - half, half)
    return (pads[axis], pads[axis + len(pads) // 2]) if pads else (0, 0)


@operator("MaxPool")
def max_pool(
    X: Tensor,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    storage_order: int = 0,
) -> Tensor:
    axes = len(kernel_shape)
    stride, dilation = strides or [1] * axes, dilations or [1] * axes
    ends = around(X, kernel_shape, stride, dilation, auto_pad, pads or [])
    if _by_torch(ends, kernel_shape):
        padding = [first for first, _ in ends]
        return _MAX[axes - 1](X, kernel_shape, stride, padding, dilation, bool(ceil_mode))
    lowest = -math.inf if X.is_floating_point() else torch.iinfo(X.dtype).min
    return _MAX[axes - 1](_padded(X, ends, lowest), kernel_shape, stride, 0, dilation, bool(ceil_mode))


def _by_torch(ends: Sequence[tuple[int, int]], kernel: Sequence[int]) -> bool:
    """Whether pooling in torch continues an axis so: alike on both sides, by half a window at most."""
    return not any(ends_differ(pair) or pair[0] > k // 2 for pair, k in zip(ends, kernel, strict=True))


@operator("AveragePool")
def average_pool(
    X: Tensor,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    count_include_pad: int = 0,
) -> Tensor:
    axes = len(kernel_shape)
    stride, dilation = strides or [1] * axes, dilations or [1] * axes
    ends = around(X, kernel_shape, stride, dilation, auto_pad, pads or [])
    if dilation == [1] * axes and _by_torch(ends, kernel_shape):
        padding = [first for first, _ in ends]
        return _MEAN[axes - 1](X, kernel_shape, stride, padding, bool(ceil_mode), bool(count_include_pad))
    return _mean(X, ends, (kernel_shape, stride, dilation), bool(ceil_mode), bool(count_include_pad))


def _mean(
    x: Tensor, ends: Sequence[tuple[int, int]], window: tuple[list[int], ...], ceil: bool, counts_pads: bool
) -> Tensor:
    """Sums under each window over how many they are of, both as convolutions with ones."""
    kernel, stride, dilation = window
    counted = _padded(torch.ones_like(x[:1, :1]), ends, float(counts_pads))
    whole = _padded(x, ends)
    if ceil:
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        more = [(0, (span - n) % s) for n, span, s in zip(whole.shape[2:], spans, stride, strict=True)]
        whole, counted = _padded(whole, more), _padded(counted, more)
    ones, channels = torch.ones((1, 1, *kernel), dtype=x.dtype), x.shape[1]
    pool = _CONV[len(kernel) - 1]
    sums = pool(whole, ones.expand(channels, *ones.shape[1:]), None, stride, 0, dilation, channels)
    return sums / pool(counted, ones, None, stride, 0, dilation)


@operator("GlobalAveragePool")
def global_average_pool(X: Tensor) -> Tensor:
    return X.mean(list(range(2, X.dim())), True)


@operator("GlobalMaxPool")
def global_max_pool(X: Tensor) -> Tensor:
    return X.amax(list(range(2, X.dim())), True)
