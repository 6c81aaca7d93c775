"""What a network computes anew from its widths, and must not: attention divided by the root of a width that shrank.

Code that writes ``scores / math.sqrt(q.shape[-1])``, or leaves the scale to `scaled_dot_product_attention`, divides by
less once channels of the queries are gone, though the products they are left out of were small. The scale that was is
kept by scaling the layer that makes the queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from lilliput.model.coupling.atoms import Axis
from lilliput.model.coupling.flow import Flow, arguments, op_name
from lilliput.model.coupling.groups import Coupling

Rows = tuple[int, Tensor]  # an axis of a tensor, and by what each position along it is multiplied
_PASSES = frozenset({"view", "reshape", "transpose", "permute", "add", "sub", "to", "contiguous", "clone"})


def operators(graph: Graph) -> list[str]:
    """The operators of a captured graph, in order."""
    return [op_name(node) for node in _calls(graph)]


def rescaled_rows(coupling: Coupling, after: ExportedProgram) -> dict[str, Rows]:
    """What tensors must be multiplied by, by path, with the lengths of the network before it shrank.

    `after` is the shrunk network, of the same operators.
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
    return found


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
