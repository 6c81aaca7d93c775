"""Operators that make one number of many, and what normalises by such numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lilliput.importers.operators.numbers import Numbers, Value, are_numbers, array, axes_of
from lilliput.importers.operators.table import Still, operator


def _reduced(name: str, of: Callable[[Tensor, list[int], bool], Tensor], of_numbers: Callable[..., Any] | None) -> None:
    def function(data: Value, axes: Numbers = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Value:
        if are_numbers(data):
            assert of_numbers is not None, name
            made = of_numbers(array(data).ravel().tolist())
            return [made] if keepdims else made
        found = [] if axes is None else axes_of(axes, data.dim())
        if not found and noop_with_empty_axes:
            return data
        return of(data, found or list(range(data.dim())), bool(keepdims))

    function.__name__ = function.__qualname__ = name.lower()
    function.__module__ = __name__
    globals()[function.__name__] = operator(name)(function)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep)
    return x


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keep).to(x.dtype)


for _name, _of, _of_numbers in (
    ("ReduceSum", _sum, sum),
    ("ReduceMean", lambda x, axes, keep: x.mean(axes, keep), None),
    ("ReduceMax", lambda x, axes, keep: x.amax(axes, keep), max),
    ("ReduceMin", lambda x, axes, keep: x.amin(axes, keep), min),
    ("ReduceProd", _product, math.prod),
    ("ReduceL1", lambda x, axes, keep: _sum(x.abs(), axes, keep), None),
    ("ReduceL2", lambda x, axes, keep: _sum(x.square(), axes, keep).sqrt(), None),
    ("ReduceSumSquare", lambda x, axes, keep: _sum(x.square(), axes, keep), None),
    ("ReduceLogSum", lambda x, axes, keep: _sum(x, axes, keep).log(), None),
    ("ReduceLogSumExp", lambda x, axes, keep: torch.logsumexp(x, axes, keep), None),
):
    _reduced(_name, _of, _of_numbers)


@operator("Softmax", since=13)
def softmax(input: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(input, axis)


@operator("LogSoftmax", since=13)
def log_softmax(input: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(input, axis)


def _from_axis(of: Callable[[Tensor, int], Tensor], input: Tensor, axis: int) -> Tensor:
    """Until opset 13 over all axes from the one that is named."""
    if axis % input.dim() == input.dim() - 1:
        return of(input, -1)
    return of(input.flatten(axis % input.dim()), -1).reshape(input.shape)


@operator("Softmax")
def softmax_from(input: Tensor, *, axis: int = 1) -> Tensor:
    return _from_axis(torch.softmax, input, axis)


@operator("LogSoftmax")
def log_softmax_from(input: Tensor, *, axis: int = 1) -> Tensor:
    return _from_axis(torch.log_softmax, input, axis)


@operator("LayerNormalization")
def layer_normalization(
    X: Tensor, Scale: Tensor, B: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    lengths = X.shape[axis % X.dim() :]
    return F.layer_norm(X, lengths, Scale.expand(lengths), None if B is None else B.expand(lengths), epsilon)


@operator("RMSNormalization")
def rms_normalization(
    X: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    over = list(range(axis % X.dim(), X.dim()))
    return X * torch.rsqrt(X.square().mean(over, True) + epsilon) * scale


@operator("InstanceNormalization")
def instance_normalization(input: Tensor, scale: Tensor, B: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(input, None, None, scale, B, True, 0.0, epsilon)


@operator("GroupNormalization", since=21)
def group_normalization(
    X: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.group_norm(X, num_groups, scale, bias, epsilon)


@operator("GroupNormalization")
def group_normalization_by_groups(
    X: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """Until opset 21 the gains were those of groups."""
    each = X.shape[1] // num_groups
    return F.group_norm(X, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


@operator("BatchNormalization", only={"training_mode": (0,), "spatial": (1,)})
def batch_normalization(
    X: Tensor,
    scale: Tensor,
    B: Tensor,
    input_mean: Still,
    input_var: Still,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> Tensor:
    """By what it is, and not by torch's layer: the statistics may be computed."""
    channels = [-1] + [1] * (X.dim() - 2)
    factor = scale * torch.rsqrt(input_var + epsilon)
    return (X - input_mean.reshape(channels)) * factor.reshape(channels) + B.reshape(channels)


@operator("LpNormalization")
def lp_normalization(input: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return F.normalize(input, p, axis)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(X: Tensor, *, axes: list[int] = [0, 2, 3]) -> Tensor:  # noqa: B006  # ONNX's own
    apart = X - X.mean(axes, True)
    return apart / (apart.square().mean(axes, True).sqrt() + 1e-9)


@operator("LRN")
def local_response_normalization(
    X: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    around = F.pad(X.square().unsqueeze(1), [0] * (2 * (X.dim() - 2)) + [(size - 1) // 2, size // 2])
    sums = sum(around[:, 0, i : i + X.shape[1]] for i in range(size))
    divisor: Tensor = (bias + alpha / size * sums) ** beta
    return X / divisor


@operator("MatMul")
def matmul(A: Tensor, B: Tensor) -> Tensor:
    return torch.matmul(A, B)


@operator("Gemm")
def gemm(
    A: Tensor,
    B: Tensor,
    C: Value = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    broadcast: int = 0,
) -> Tensor:
    product = torch.matmul(A.t() if transA else A, B.t() if transB else B)
    product = product if alpha == 1 else product * alpha
    return product if C is None else product + (C if beta == 1 else C * beta)


@operator("Einsum")
def einsum(*Inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *Inputs)
