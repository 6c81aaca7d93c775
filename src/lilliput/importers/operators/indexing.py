"""Operators that look elements up, and put them in their places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lilliput.importers.operators.numbers import Numbers, Value, are_numbers, array, number, plain, tensor
from lilliput.importers.operators.table import operator


@operator("Gather")
def gather(data: Value, indices: Value, *, axis: int = 0) -> Value:
    """Indices may count from the end."""
    if are_numbers(data, indices):
        places = array(indices).astype(int)
        return plain(array(data).take(places, axis))
    if are_numbers(indices) and isinstance(indices, int | torch.SymInt):
        return tensor(data).select(axis, indices)
    data, indices = tensor(data), tensor(indices).to(torch.int64)
    axis, length = axis % data.dim(), data.shape[axis]
    places = torch.where(indices < 0, indices + length, indices).reshape(-1)
    shape = [*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]]
    return data.index_select(axis, places).reshape(shape)


@operator("ai.onnx.ml.ArrayFeatureExtractor")
def array_feature_extractor(X: Tensor, Y: Tensor) -> Tensor:
    """Columns, as scikit-learn's networks look up the label of a class; one row is two axes, as runtimes answer."""
    rows = X.reshape(1, -1) if X.dim() == 1 else X
    return rows.index_select(-1, Y.reshape(-1))


@operator("GatherElements")
def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(data, axis, _from_front(indices, data.shape[axis]))


def _from_front(indices: Tensor, length: int) -> Tensor:
    wide = indices.to(torch.int64)
    return torch.where(wide < 0, wide + length, wide)


@operator("GatherND")
def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        rows = data.flatten(0, batch_dims - 1)
        places = indices.flatten(0, batch_dims - 1)
        made = torch.stack([gather_nd(row, at) for row, at in zip(rows, places, strict=True)])
        return made.reshape([*data.shape[:batch_dims], *made.shape[1:]])
    return data[tuple(indices.to(torch.int64).unbind(-1))]


_JOINED = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", "Scatter")
def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    places = _from_front(indices, data.shape[axis])
    if reduction == "none":
        return data.scatter(axis, places, updates)
    return data.scatter_reduce(axis, places, updates, _JOINED[reduction])


@operator("ScatterND")
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    places = tuple(indices.to(torch.int64).unbind(-1))
    if reduction in ("none", "add"):
        return data.index_put(places, updates, accumulate=reduction == "add")
    lengths = torch.tensor(data.shape[: len(places)])
    steps = lengths.flip(0).cumprod(0).flip(0) // lengths
    flat = sum(_from_front(at, data.shape[i]) * steps[i] for i, at in enumerate(places))
    assert isinstance(flat, Tensor)
    rows = data.reshape(int(lengths.prod()), -1)
    at = flat.reshape(-1, 1).expand(-1, rows.shape[1])
    return rows.scatter_reduce(0, at, updates.reshape(at.shape), _JOINED[reduction]).reshape(data.shape)


@operator("OneHot")
def one_hot(indices: Tensor, depth: Numbers, values: Tensor, *, axis: int = -1) -> Tensor:
    """Indices that are out of range give a row of the second value alone."""
    length = int(number(depth))
    off, on = values.unbind(0)
    places = torch.arange(length).to(indices.dtype)
    axis = axis % (indices.dim() + 1)
    wanted = torch.where(indices < 0, indices + length, indices).unsqueeze(axis)
    return torch.where(wanted == places.reshape([-1] + [1] * (indices.dim() - axis)), on, off)


@operator("TopK")
def top_k(X: Tensor, K: Numbers, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """Of equals torch takes any, where ONNX wants the first."""
    found = torch.topk(X, number(K), axis, bool(largest), bool(sorted))
    return found.values, found.indices


def _place(data: Tensor, axis: int, keepdims: int, last: int, largest: bool) -> Tensor:
    of = torch.argmax if largest else torch.argmin
    if not last:
        return of(data, axis, bool(keepdims))
    return data.shape[axis] - 1 - of(data.flip(axis), axis, bool(keepdims))


@operator("ArgMax")
def arg_max(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _place(data, axis, keepdims, select_last_index, True)


@operator("ArgMin")
def arg_min(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _place(data, axis, keepdims, select_last_index, False)


@operator("CumSum")
def cumulative_sum(x: Tensor, axis: Numbers, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(number(axis))
    turned = x.flip(along) if reverse else x
    made = turned.cumsum(along).to(x.dtype)
    made = made - turned if exclusive else made
    return made.flip(along) if reverse else made


@operator("GridSample")
def grid_sample(
    X: Tensor, grid: Tensor, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> Tensor:
    known = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(X, grid, known, padding_mode, bool(align_corners))
