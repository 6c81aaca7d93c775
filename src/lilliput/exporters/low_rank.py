"""A weight of low rank as what runtimes compute fast: two products one behind the other, in place of one.

``x · (left · right)ᵀ`` is ``(x · rightᵀ) · leftᵀ``; a convolution is one of `rank` filters of the full size, then one
of filters of one point. Where that takes no fewer products, and where a weight is not simply multiplied by, `lower` has
the runtime multiply the two factors when it loads.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from lilliput.exporters import nodes
from lilliput.exporters.nodes import DOMAIN


def expand(model: ir.Model) -> None:
    """Write the layers of `model` whose weights are of low rank as two, in place."""
    for node in [node for node in model.graph if node.domain == DOMAIN and node.op_type == "DecodeLowRank"]:
        for user, position in list(node.outputs[0].uses()):
            if user.op_type == "Gather" and position == 0 and len(nodes.shape(node.outputs[0])) == 2:
                _looked_up(model.graph, node, user)
                continue
            multiply, turned = nodes.multiply(user, position)
            if multiply is not None and _fewer(node) and _divides(node, multiply):
                _divide(model.graph, node, multiply, turned)


def _fewer(node: ir.Node) -> bool:
    """Whether two products are fewer multiply-accumulates than one."""
    left, right, whole = (nodes.shape(value) for value in (*node.inputs, node.outputs[0]))
    return prod(left) + prod(right) < prod(whole)


def _divides(node: ir.Node, multiply: ir.Node) -> bool:
    """Whether a multiplication is one of a layer, and stays what it is to the runtime once it is two.

    Behind a rounded value the runtime would round a factor of floats itself.
    """
    source = multiply.inputs[0].producer() if multiply.inputs[0] is not None else None
    rounded = source is not None and source.domain == DOMAIN and source.op_type.startswith("Project")
    factor = node.inputs[1].producer() if node.inputs[1] is not None else None
    if rounded and (factor is None or factor.op_type != "DecodeInt"):
        return False
    if multiply.op_type == "Conv":
        return nodes.attribute(multiply, "group") in (0, 1)
    scaled = "alpha" in multiply.attributes and multiply.attributes["alpha"].as_float() != 1
    turned = nodes.attribute(multiply, "transB") == 1 and not nodes.attribute(multiply, "transA")
    return multiply.op_type == "MatMul" or (turned and not scaled)


def _divide(graph: ir.Graph, node: ir.Node, multiply: ir.Node, turned: bool) -> None:
    """`multiply` by `left` what another multiplication, put before it, makes of its input and `right`."""
    left, right = node.inputs
    kept = [one for name, one in multiply.attributes.items() if name != "beta"]
    if multiply.op_type == "MatMul" and turned:
        left, right = (_new(graph, multiply, "Transpose", [x], [ir.AttrInt64s("perm", [1, 0])]) for x in (left, right))
    elif multiply.op_type == "MatMul":  # by the product as it is: its first factor comes first
        left, right = right, left
    inner = _new(graph, multiply, multiply.op_type, [multiply.inputs[0], right], kept)
    multiply.replace_input_with(0, inner)
    multiply.replace_input_with(1, left)
    if multiply.op_type == "Conv":
        for name in list(multiply.attributes):
            del multiply.attributes[name]  # strides, pads and so on: the points are all there, one by one


def _looked_up(graph: ir.Graph, node: ir.Node, gather: ir.Node) -> None:
    """Rows of `left`, and their products with `right`."""
    rows = _new(graph, gather, "Gather", [node.inputs[0], gather.inputs[1]], list(gather.attributes.values()))
    product = _new(graph, gather, "MatMul", [rows, node.inputs[1]], [])
    product.type, product.shape = gather.outputs[0].type, gather.outputs[0].shape
    ir.convenience.replace_all_uses_with(gather.outputs[0], product, replace_graph_outputs=True)


def _new(
    graph: ir.Graph, before: ir.Node, op: str, inputs: list[ir.Value | None], attributes: list[ir.Attr]
) -> ir.Value:
    made = ir.Node("", op, inputs, attributes, num_outputs=1)
    graph.insert_before(before, made)
    made.outputs[0].name = f"{before.outputs[0].name}_{op}_{len(graph)}"
    return made.outputs[0]
