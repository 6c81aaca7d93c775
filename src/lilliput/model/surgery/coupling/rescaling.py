"""What a network computes anew from its widths, and must not: roots of widths that it divides by.

Code that writes ``scores / math.sqrt(q.shape[-1])``, or leaves the scale to `scaled_dot_product_attention`, divides by
less once channels of the queries are gone, though the products they are left out of were small. The scale that was is
kept by scaling the layer that makes the queries.

An RMS or layer norm divides by the root of a mean of squares over its width: over fewer channels it divides by more
than where the same channels are zero. Its gains are scaled up by the root of the ratio of the widths.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from lilliput.model.surgery.coupling.atoms import Axis
from lilliput.model.surgery.coupling.flow import Flow, Reading, arguments, op_name
from lilliput.model.surgery.coupling.groups import Coupling

Rows = tuple[int, Tensor]  # an axis of a tensor, and by what each position along it is multiplied
NORMS = ("layer_norm", "rms_norm")  # over the last axes, with gains
_TO_GAINS = frozenset({"add", "rsqrt", "sqrt", "reciprocal", "pow", "clamp", "mul", "div", "to", "_to_copy", "type_as"})
_FURTHEST = 8  # calls from a mean of squares to the product with the gains
_PASSES = frozenset({"view", "reshape", "transpose", "permute", "add", "sub", "to", "contiguous", "clone"})


def operators(graph: Graph) -> list[str]:
    """The operators of a captured graph, in order."""
    return [op_name(node) for node in _calls(graph)]


def rescaled_rows(coupling: Coupling, after: ExportedProgram, gone: Collection[int]) -> dict[str, Rows]:
    """What tensors must be multiplied by, by path, with the lengths of the network before it shrank.

    `after` is the network without the atoms that are `gone`, of the same operators.
    """
    by: dict[int, float] = {}
    for node, factor in _changed(coupling.captured, after):
        axis = _scaled_axis(coupling.flow, node)
        rows = coupling.atoms.origins(axis) if axis is not None else np.empty(0, np.int64)
        scaled = set(map(int, rows))
        for outputs, bias in coupling.flow.made:
            scaled |= set(map(int, bias[np.isin(outputs, rows)]))
        by |= dict.fromkeys(scaled, factor)
    found: dict[str, Rows] = {}
    for path, axes in coupling.held.items():
        for i, axis in enumerate(axes):
            factors = torch.tensor([by.get(int(atom), 1.0) for atom in axis], dtype=torch.float64)
            if bool((factors != 1).any()):
                found[path] = (i, factors)
    for path, factor in narrowed(coupling, gone).values():
        _, factors = found.get(path, (0, torch.ones(len(coupling.tensors[path]), dtype=torch.float64)))
        found[path] = (0, factors * factor)
    return found


def narrowed(coupling: Coupling, gone: Collection[int]) -> dict[Node, tuple[str, float]]:
    """The calls that multiply by the gains of a norm over fewer channels: the path of these, and by how much."""
    found = {by: (path, factor) for _, by, path, factor in _narrowed(coupling, gone) if path}
    calls = Counter(path for path, _ in found.values())
    return {by: (path, factor) for by, (path, factor) in found.items() if calls[path] == 1}


def not_rescaled(coupling: Coupling, gone: Collection[int]) -> set[str]:
    """The modules whose norm is over fewer channels and has no gains that can make up for it."""
    known = narrowed(coupling, gone)
    return {Reading.of(node, coupling.flow).module for node, by, _, _ in _narrowed(coupling, gone) if by not in known}


def _narrowed(coupling: Coupling, gone: Collection[int]) -> Iterator[tuple[Node, Node, str, float]]:
    """Each norm over fewer channels, its product with its gains, their path if they are a parameter, the factor."""
    signature = coupling.captured.graph_signature
    for node in _calls(coupling.captured.graph):
        x = _normalised(node)
        axes = coupling.flow.axes.get(x) if x is not None else None
        left = coupling.left(axes[-1], gone) if axes else np.ones(1, bool)
        if left.all():
            continue
        by, gain = (node, arguments(node)["weight"]) if op_name(node) in NORMS else _multiplied_by(node)
        path = signature.inputs_to_parameters.get(gain.name, "") if isinstance(gain, Node) else ""
        known = path in coupling.held and len(coupling.held[path]) == 1
        yield node, by, path if known else "", math.sqrt(len(left) / int(left.sum()))


def _normalised(node: Node) -> Node | None:
    """What a norm is taken of, of its call, or of the mean of squares in an RMS norm that is spelt out."""
    given = arguments(node)
    if op_name(node) in NORMS:
        return node.all_input_nodes[0] if len(given["normalized_shape"]) == 1 else None
    square = node.all_input_nodes[0] if node.all_input_nodes else None
    if op_name(node) != "mean" or square is None or square.op != "call_function" or len(square.all_input_nodes) != 1:
        return None
    if given.get("dim") not in ([-1], [square.meta["val"].dim() - 1]):
        return None
    squared = op_name(square) in ("mul", "square") or (op_name(square) == "pow" and arguments(square)["exponent"] == 2)
    return square.all_input_nodes[0] if squared else None


def _multiplied_by(mean: Node) -> tuple[Node, Node | None]:
    """From a mean of squares on: the product with the gains, and these."""
    node = mean
    for _ in range(_FURTHEST):
        users = [user for user in node.users if user.users]  # what only asserts is used by nothing
        if len(users) != 1 or op_name(users[0]) not in _TO_GAINS:
            break
        node = users[0]
        for other in node.all_input_nodes if op_name(node) == "mul" else ():
            if other.op == "placeholder" and other.meta["val"].dim() == 1:
                return node, other
    return node, None


def _calls(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def _changed(before: ExportedProgram, after: ExportedProgram) -> Iterator[tuple[Node, float]]:
    """Calls that scale by another number than before, with what makes up for it."""
    for one, other in zip(_calls(before.graph), _calls(after.graph), strict=True):
        op, old, new = op_name(one), arguments(one), arguments(other)
        if op == "scaled_dot_product_attention":
            a, b = (given["scale"] or given["query"].meta["val"].shape[-1] ** -0.5 for given in (old, new))
            if a != b:
                yield one, a / b
        elif op in ("mul", "div"):
            c, d = _constant(old.get("other"), before), _constant(new.get("other"), after)
            if c is not None and d is not None and c != d and c and d:
                yield one, (c / d if op == "mul" else d / c)


def _constant(x: Any, captured: ExportedProgram) -> float | None:
    """The number that an argument is, or is computed to be of numbers alone."""
    if isinstance(x, float):
        return x
    if not isinstance(x, Node) or not isinstance(x.meta.get("val"), Tensor) or x.meta["val"].dim():
        return None
    if x.op == "placeholder":
        name = captured.graph_signature.inputs_to_lifted_tensor_constants.get(x.name)
        return float(captured.constants[name]) if name else None
    inputs = [_constant(node, captured) for node in x.all_input_nodes]
    if x.op != "call_function" or any(value is None for value in inputs):
        return None
    known = {node: torch.tensor(value) for node, value in zip(x.all_input_nodes, inputs, strict=True)}
    args, kwargs = torch.fx.map_arg((x.args, x.kwargs), known.__getitem__)
    return float(x.target(*args, **kwargs))  # type: ignore[operator]


def _scaled_axis(flow: Flow, node: Node) -> Axis | None:
    """The axis of queries that a scale belongs to: what the product it scales was summed over, or its own last."""
    source = node
    for _ in range(8):
        if source in flow.contracted:
            return flow.contracted[source]
        if not source.all_input_nodes or (source is not node and op_name(source) not in _PASSES):
            break
        source = source.all_input_nodes[0]
    axes = flow.axes.get(node)
    return axes[-1] if axes else None


def multiplied(x: Tensor, axis: int, factors: Tensor) -> Tensor:
    """`x` multiplied along an axis, in float64, rounded once."""
    return (x.double() * factors.reshape([-1 if i == axis else 1 for i in range(x.dim())])).to(x.dtype)
