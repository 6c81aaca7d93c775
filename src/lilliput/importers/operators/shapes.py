"""Operators that lay elements out otherwise, join and cut them, and make tensors of a shape."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lilliput.importers.operators.numbers import (
    Numbers,
    Value,
    are_numbers,
    array,
    axes_of,
    each,
    ints,
    number,
    plain,
    tensor,
    whole,
)
from lilliput.importers.operators.table import operator
from lilliput.importers.operators.types import torch_type


@operator("Identity")
def identity(input: Value) -> Value:
    return input


@operator("Dropout")
def dropout(data: Tensor, ratio: Numbers = 0.5, training_mode: Numbers = False, *, seed: int = 0) -> Tensor:
    """Files are for inference: what is dropped while training stays."""
    return data


@operator("Cast")
def cast(input: Value, *, to: int, saturate: int = 1, round_mode: str = "up") -> Value:
    kind = torch_type(to)
    if not are_numbers(input):
        return input.to(kind)
    if kind is torch.bool:
        return each(bool, input)
    if kind.is_floating_point:
        return each(lambda x: x * 1.0 if isinstance(x, torch.SymInt) else float(x), input)
    return each(lambda x: x if isinstance(x, torch.SymInt) else int(x), input)


@operator("CastLike")
def cast_like(input: Tensor, target_type: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return input.to(target_type.dtype)


@operator("Shape")
def shape(data: Tensor, *, start: int = 0, end: int | None = None) -> Numbers:
    return list(data.shape)[start:end]


@operator("Size")
def size(data: Value) -> Numbers:
    return data.numel() if isinstance(data, Tensor) else array(data).size


@operator("Reshape")
def reshape(data: Value, shape: Numbers, *, allowzero: int = 0) -> Value:
    wanted = ints(shape)
    if are_numbers(data):
        return plain(array(data).reshape(wanted))
    known = [data.shape[i] if type(n) is int and n == 0 and not allowzero else n for i, n in enumerate(wanted)]
    return data.reshape(whole(known))


@operator("Flatten")
def flatten(input: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis % input.dim() if axis < 0 else axis
    if axis == 1 and input.dim() > 1:
        return torch.flatten(input, 1)
    return input.reshape(math.prod(input.shape[:axis]), -1)


@operator("Transpose")
def transpose(data: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return data.permute(perm if perm is not None else list(range(data.dim()))[::-1])


@operator("Squeeze")
def squeeze(data: Value, axes: Numbers = None) -> Value:
    if are_numbers(data):
        return plain(np.squeeze(array(data), None if axes is None else tuple(ints(axes))))
    return data.squeeze() if axes is None else data.squeeze(tuple(ints(axes)))


@operator("Unsqueeze")
def unsqueeze(data: Value, axes: Numbers) -> Value:
    if are_numbers(data):
        return plain(np.expand_dims(array(data), tuple(ints(axes))))
    for axis in sorted(axes_of(axes, data.dim() + len(ints(axes)))):
        data = data.unsqueeze(axis)
    return data


@operator("Concat")
def concat(*inputs: Value, axis: int = 1) -> Value:
    if are_numbers(*inputs):
        return plain(np.concatenate([array(one) for one in inputs], axis))
    first = next(one for one in inputs if isinstance(one, Tensor))
    return torch.cat([tensor(one, first) for one in inputs], axis)


@operator("Split")
def split(
    input: Value, split: Numbers = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int = 1
) -> tuple[Value, ...]:
    """Into parts of stated lengths, or as many equal ones as the node has outputs, the last of them shorter."""
    length = input.shape[axis] if isinstance(input, Tensor) else len(array(input))
    each_one = -(-length // (num_outputs or outputs))
    sizes = ints(split) if split is not None else [each_one] * (outputs - 1) + [length - each_one * (outputs - 1)]
    if are_numbers(input):
        return tuple(map(plain, np.split(array(input), np.cumsum(sizes)[:-1].tolist(), axis)))
    return torch.split(input, sizes, axis)


_FAR = 2**31 - 1  # what exporters write for "to the end", or beyond


@operator("Slice")
def slice_(data: Value, starts: Numbers, ends: Numbers, axes: Numbers = None, steps: Numbers = None) -> Value:
    starts, ends = ints(starts), ints(ends)
    on = ints(axes) if axes is not None else list(range(len(starts)))
    by = ints(steps) if steps is not None else [1] * len(starts)
    for axis, start, end, step in zip(on, starts, ends, by, strict=True):
        data = _sliced(data, axis, start, end, step)
    return data


def _sliced(data: Value, axis: int, start: int, end: int, step: int) -> Value:
    to_end = type(end) is int and (end >= _FAR or end <= -_FAR)
    one = slice(start, None if to_end else end, step)
    if are_numbers(data):
        held = array(data)
        return plain(held[(slice(None),) * (axis % held.ndim) + (one,)])
    axis = axis % data.dim()
    if step > 0:
        return data[(slice(None),) * axis + (one,)]
    kept = range(*one.indices(int(data.shape[axis])))  # backwards, which torch's slices do not go
    if len(kept) == data.shape[axis] and step == -1:
        return data.flip(axis)
    return data.index_select(axis, torch.tensor(list(kept), dtype=torch.int64))


@operator("Expand")
def expand(input: Value, shape: Numbers) -> Tensor:
    x, wanted = tensor(input), ints(shape)
    missing = len(wanted) - x.dim()
    lengths = [1] * -missing + wanted
    known = [1] * missing + list(x.shape)
    pairs = zip(known, lengths, strict=True)
    return x.expand([have if type(want) is int and want == 1 else want for have, want in pairs])  # 1: as it is


@operator("Tile")
def tile(input: Tensor, repeats: Numbers) -> Tensor:
    return input.repeat(ints(repeats))


@operator("ConstantOfShape")
def constant_of_shape(input: Numbers, *, value: tuple[Numbers, torch.dtype] = (0.0, torch.float32)) -> Tensor:
    filled, kind = value
    return torch.full(ints(input), number(filled), dtype=kind)


@operator("Range")
def range_(start: Numbers, limit: Numbers, delta: Numbers) -> Tensor:
    return torch.arange(number(start), number(limit), number(delta))


@operator("Pad")
def pad(
    data: Tensor,
    pads: Numbers,
    constant_value: Numbers = None,
    axes: Numbers = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
) -> Tensor:
    """Ends of each axis, all beginnings first, as ONNX lists them."""
    ends = ints(pads)
    on = axes_of(axes, data.dim()) if axes is not None else list(range(data.dim()))
    before, after = ends[: len(on)], ends[len(on) :]
    filled = number(constant_value) if constant_value is not None else value
    if mode == "constant":
        flat = [(0, 0)] * data.dim()
        for axis, first, last in zip(on, before, after, strict=True):
            flat[axis] = (first, last)
        return F.pad(data, _from_the_end(flat), value=filled)
    for axis, first, last in zip(on, before, after, strict=True):
        data = _continued(data, axis, first, last, mode)
    return data


def _from_the_end(ends: list[tuple[int, int]]) -> list[int]:
    """Ends in the order of torch, the last axis first, without axes that stay as they are."""
    while ends and ends[0] == (0, 0):
        ends = ends[1:]
    return [n for pair in reversed(ends) for n in pair]


def _continued(data: Tensor, axis: int, first: int, last: int, mode: str) -> Tensor:
    """One axis continued by what it holds."""
    length = data.shape[axis]
    places = torch.arange(-first, length + last)
    if mode == "edge":
        places = places.clamp(0, length - 1)
    elif mode == "reflect":
        places = (length - 1) - ((length - 1) - places.abs()).abs()
    else:
        places = places.remainder(length)
    return data.index_select(axis, places)


@operator("DepthToSpace")
def depth_to_space(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(input, blocksize)
    batch, channels, height, width = input.shape
    parts = input.reshape(batch, blocksize, blocksize, channels // blocksize**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(
        batch, channels // blocksize**2, height * blocksize, width * blocksize
    )


@operator("SpaceToDepth")
def space_to_depth(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_unshuffle(input, blocksize)
    batch, channels, height, width = input.shape
    parts = input.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(
        batch, channels * blocksize**2, height // blocksize, width // blocksize
    )


@operator("Trilu")
def trilu(input: Tensor, k: Numbers = 0, *, upper: int = 1) -> Tensor:
    return (torch.triu if upper else torch.tril)(input, number(k))


@operator("EyeLike")
def eye_like(input: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    ones = torch.ones(input.shape, dtype=input.dtype if dtype is None else torch_type(dtype))
    return torch.triu(torch.tril(ones, k), k)
