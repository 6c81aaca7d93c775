"""Operators with constant weights, as the layers of torch that they are.

Each function writes a node as a module and gives its call; or None, where torch has no such layer: the operator's own
function is called then, with the weights as parameters beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lilliput.importers import names
from lilliput.importers.operators.images import around, ends_differ
from lilliput.importers.operators.integers import unpacked
from lilliput.importers.placing import fill, without_numbers
from lilliput.importers.reading import Node
from lilliput.importers.scope import Scope

Written = fx.Node | tuple[fx.Node, ...] | None

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def conv(scope: Scope, node: Node) -> Written:
    weight = _weight(scope, node, 1)
    if weight is None or not 3 <= weight.dim() <= 5:
        return None
    told, kernel = _window(node, weight)
    if told["auto_pad"].startswith("SAME") and any(n != 1 for n in told["stride"]):
        return None  # how much is added depends on the size
    ends = around(weight, kernel, told["stride"], told["dilation"], told["auto_pad"], told["pads"])
    apart = any(map(ends_differ, ends))
    bias, sum_of = _bias(scope, node, len(weight), 1, len(kernel))
    layer = without_numbers(
        _CONV[len(kernel) - 1],
        weight.shape[1] * told["group"],
        len(weight),
        kernel,
        told["stride"],
        0 if apart else tuple(first for first, _ in ends),
        told["dilation"],
        told["group"],
        bias is not None,
    )
    x = scope.input(node, 0)
    if apart:
        x = scope.call(F.pad, x, [n for pair in reversed(ends) for n in pair])
    return _written(scope, node, layer, x, weight, bias, sum_of)


def conv_transpose(scope: Scope, node: Node) -> Written:
    weight = _weight(scope, node, 1)
    if weight is None or not 3 <= weight.dim() <= 5:
        return None
    told, kernel = _window(node, weight)
    axes = len(kernel)
    pads = list(told["pads"]) or [0] * 2 * axes
    if told["auto_pad"] not in ("NOTSET", "VALID") or "output_shape" in node.attributes or pads[:axes] != pads[axes:]:
        return None
    outputs = weight.shape[1] * told["group"]
    bias, sum_of = _bias(scope, node, outputs, 1, axes)
    layer = without_numbers(
        _TRANSPOSED[axes - 1],
        len(weight),
        outputs,
        kernel,
        told["stride"],
        tuple(pads[:axes]),
        tuple(node.attributes.get("output_padding", [0] * axes)),
        told["group"],
        bias is not None,
        told["dilation"],
    )
    return _written(scope, node, layer, scope.input(node, 0), weight, bias, sum_of)


def _window(node: Node, weight: Tensor) -> tuple[dict[str, Any], tuple[int, ...]]:
    kernel, given = tuple(weight.shape[2:]), node.attributes
    ones = [1] * len(kernel)
    return {
        "stride": tuple(given.get("strides", ones)),
        "dilation": tuple(given.get("dilations", ones)),
        "pads": tuple(given.get("pads", ())),
        "group": given.get("group", 1),
        "auto_pad": given.get("auto_pad", "NOTSET"),
    }, kernel


def matmul(scope: Scope, node: Node) -> Written:
    """A matrix on the right; ONNX holds it as [in, out]."""
    weight = _weight(scope, node, 1)
    if weight is None or weight.dim() != 2:
        return None
    bias, sum_of = _bias(scope, node, weight.shape[1], -1, 0)
    return _linear(scope, node, weight.t(), bias, sum_of)


def gemm(scope: Scope, node: Node) -> Written:
    weight, told = _weight(scope, node, 1), node.attributes
    if weight is None or told.get("transA", 0) or scope.is_computed(node, 2):
        return None
    turned = weight if told.get("transB", 0) else weight.t()
    bias = scope.constant(node, 2)
    if bias is not None:
        if bias.dim() > 2 or (bias.dim() == 2 and len(bias) > 1):
            return None  # rows of its own for each sample
        bias = bias.reshape(-1).expand(len(turned)) * told.get("beta", 1.0)
    alpha = told.get("alpha", 1.0)
    return _linear(scope, node, turned if alpha == 1 else turned * alpha, bias, None)


def _linear(scope: Scope, node: Node, weight: Tensor, bias: Tensor | None, sum_of: Node | None) -> Written:
    outputs, inputs = weight.shape
    layer = without_numbers(nn.Linear, inputs, outputs, bias is not None)
    return _written(scope, node, layer, scope.input(node, 0), weight, bias, sum_of)


def matmul_nbits(scope: Scope, node: Node) -> Written:
    """A matrix of packed codes, taken for the floats that they stand for."""
    parts, told = [scope.constant(node, place) for place in range(1, 5)], node.attributes
    codes, scales, zeros, places = parts
    zeros_computed = scope.is_computed(node, 3) or scope.is_computed(node, 5)
    if codes is None or scales is None or zeros_computed or not scope.is_computed(node, 0):
        return None
    shape = (told["N"], told["K"])
    weight = unpacked(codes, scales, zeros, places, shape, told.get("bits", 4), told["block_size"])
    bias = scope.constant(node, 5)
    layer = without_numbers(nn.Linear, shape[1], shape[0], bias is not None)
    return _held(scope, node, layer, scope.input(node, 0), weight, bias)


def embedding(scope: Scope, node: Node) -> Written:
    """Rows of a table; a table in one piece is a weight, and one of whole numbers is none."""
    table = _weight(scope, node, 0)
    if table is None or table.dim() != 2 or not table.is_floating_point() or node.attributes.get("axis", 0) != 0:
        return None
    if scope.of(node.input(1)) in scope.numbers:
        return None  # places in the shape of a tensor
    path = names.of_layer(scope.name_of(node, 0), node.name, node.outputs[0])
    layer = fill(without_numbers(nn.Embedding, *table.shape), weight=scope.held.parameter(table))
    places = scope.call(_from_front, scope.input(node, 1), len(table))
    return scope.layer(path, layer, places)


def _from_front(indices: Tensor, length: int) -> Tensor:
    """Places that may count from the end, counted from the front."""
    return torch.where(indices < 0, indices + length, indices)


def batch_norm(scope: Scope, node: Node) -> Written:
    parts = [scope.constant(node, place) for place in range(1, 5)]
    rank = scope.rank(node.input(0))
    if any(part is None for part in parts) or rank not in _NORMS or node.attributes.get("training_mode", 0):
        return None
    scale, bias, mean, variance = parts
    layer = without_numbers(_NORMS[rank], len(scale), node.attributes.get("epsilon", 1e-5))  # type: ignore[arg-type]
    hold = scope.held.of_layer
    fill(layer, weight=hold(scale), bias=hold(bias), running_mean=mean, running_var=variance)  # type: ignore[arg-type]
    path = names.of_layer(scope.name_of(node, 1), node.name, node.outputs[0])
    return scope.layer(path, layer, scope.input(node, 0))


def layer_norm(scope: Scope, node: Node) -> Written:
    scale, bias = scope.constant(node, 1), scope.constant(node, 2)
    rank, axis = scope.rank(node.input(0)), node.attributes.get("axis", -1)
    over = None if rank is None else rank - axis % rank
    if scale is None or scope.is_computed(node, 2) or scale.dim() != (over if axis >= 0 else -axis):
        return None
    if bias is not None and bias.shape != scale.shape:
        return None
    layer = without_numbers(
        nn.LayerNorm, tuple(scale.shape), node.attributes.get("epsilon", 1e-5), bias=bias is not None
    )
    hold = scope.held.of_layer
    fill(layer, weight=hold(scale), bias=None if bias is None else hold(bias))
    path = names.of_layer(scope.name_of(node, 1), node.name, node.outputs[0])
    return scope.layer(path, layer, scope.input(node, 0))


# --- weights and biases


def _weight(scope: Scope, node: Node, place: int) -> Tensor | None:
    """The constant at an input, where the other one is computed."""
    found = scope.constant(node, place)
    return found if found is not None and scope.is_computed(node, 1 - place) else None


def _bias(scope: Scope, node: Node, outputs: int, axis: int, space: int) -> tuple[Tensor | None, Node | None]:
    """The bias that a node has, or that the one sum which reads it adds; and that sum."""
    if node.input(2):
        return scope.constant(node, 2), None
    adder = scope.only_reader(node, "Add")
    if adder is None:
        return None, None
    place = 1 - adder.inputs.index(node.outputs[0])
    added = scope.constant_ahead(adder.inputs[place])
    shape = (outputs, *[1] * space)
    if added is None or added.numel() != outputs or tuple(added.shape) not in (shape, (1, *shape)):
        return None, None
    return added.reshape(-1), adder


def _written(
    scope: Scope, node: Node, layer: nn.Module, x: Any, weight: Tensor, bias: Tensor | None, sum_of: Node | None
) -> Written:
    """Hold a layer with its tensors, and call it; the sum that adds its bias is done with that."""
    if node.input(2) and bias is None:
        return None  # it is computed
    called = _held(scope, node, layer, x, weight, bias)
    if sum_of is not None:
        scope.skip(sum_of, called)
    return called


def _held(scope: Scope, node: Node, layer: nn.Module, x: Any, weight: Tensor, bias: Tensor | None) -> fx.Node:
    hold = scope.held.of_layer
    fill(layer, weight=hold(weight), bias=None if bias is None else hold(bias))
    return scope.layer(names.of_layer(scope.name_of(node, 1), node.name, node.outputs[0]), layer, x)


LAYERS: dict[str, Callable[[Scope, Node], Written]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MatMul": matmul,
    "Gemm": gemm,
    "com.microsoft.MatMulNBits": matmul_nbits,
    "Gather": embedding,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
}
