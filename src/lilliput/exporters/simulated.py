"""Values at the nearest number of a table, as standard operators that every runtime has: in float, and no faster.

The place in the table is found by halving: whether a value is above the middle threshold, then above the middle of the
half that is left, and so on. That takes memory for some copies of the value; comparing with all thresholds at once
would take as many copies as there are numbers. The thresholds are those of `lilliput.encodings.flowing`, bit for bit.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lilliput.exporters.nodes import DOMAIN


def expand(model: ir.Model) -> None:
    """Replace the nodes of our domain that project on grids in `model`, in place."""
    writer = _Writer(model.graph)
    for node in [node for node in model.graph if node.domain == DOMAIN]:
        if node.op_type == "ProjectGrid":
            writer.static(node)
        elif node.op_type == "ProjectGridDynamic":
            writer.dynamic(node)


class _Writer:
    """One graph in which nodes are written out; constants and projections that are equal are shared."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.made = graph, 0
        self.constants: dict[tuple[object, ...], ir.Value] = {}
        self.projected: dict[tuple[object, ...], ir.Value] = {}

    def static(self, node: ir.Node) -> None:
        x, scale = node.inputs
        assert x is not None and scale is not None and scale.const_value is not None
        levels = _levels(node, "levels") * scale.const_value.numpy().astype(np.float32)
        key = (x, levels.tobytes())
        if key not in self.projected:
            self.projected[key] = self._pick(levels, self._place(x, levels, node), node)
        self._give_way(node, self.projected[key])

    def dynamic(self, node: ir.Node) -> None:
        """Groups as rows along an axis of their own; each at its own scale on every table; the best of them."""
        (x,) = node.inputs
        assert x is not None
        tables = _levels(node, "tables").reshape(node.attributes["choices"].as_int(), -1)
        axis, group = (node.attributes[name].as_int() for name in ("axis", "group"))
        key = (x, tables.tobytes(), tables.shape, axis, group)
        if key not in self.projected:
            shape, along = _rows(x, axis, group)
            rows = self._new("Reshape", node, x, self._constant(np.array(shape, np.int64)))
            each = [self._at_own_scale(rows, levels, along, node) for levels in tables]
            best, least = each[0], self._error(rows, each[0], along, node)
            for near in each[1:]:
                error = self._error(rows, near, along, node)
                better = self._new("Less", node, error, least)
                best, least = self._new("Where", node, better, near, best), self._new("Min", node, error, least)
            self.projected[key] = self._new("Reshape", node, best, self._new("Shape", node, x))
        self._give_way(node, self.projected[key])

    def _at_own_scale(self, rows: ir.Value, levels: np.ndarray, along: int, node: ir.Node) -> ir.Value:
        axes, one, zero = self._constant(np.array([along], np.int64)), self._number(1.0), self._number(0.0)
        top = self._new("ReduceMax", node, rows, axes)
        scale = self._new("Div", node, top, self._constant(levels[-1]))
        if levels[0] < 0:
            low = self._new("Div", node, self._new("ReduceMin", node, rows, axes), self._constant(levels[0]))
            scale = self._new("Max", node, scale, low)
        scale = self._new("Where", node, self._new("Greater", node, scale, zero), scale, one)
        near = self._near(rows, scale, levels, node)
        squares = self._new("ReduceSum", node, self._new("Mul", node, near, near), axes)
        products = self._new("ReduceSum", node, self._new("Mul", node, rows, near), axes)
        some = self._new(
            "And", node, self._new("Greater", node, squares, zero), self._new("Greater", node, products, zero)
        )
        moved = self._new("Div", node, products, squares)
        scale = self._new("Where", node, some, moved, scale)
        return self._new("Mul", node, self._near(rows, scale, levels, node), scale)

    def _near(self, rows: ir.Value, scale: ir.Value, levels: np.ndarray, node: ir.Node) -> ir.Value:
        return self._pick(levels, self._place(self._new("Div", node, rows, scale), levels, node), node)

    def _error(self, rows: ir.Value, near: ir.Value, along: int, node: ir.Node) -> ir.Value:
        off = self._new("Sub", node, near, rows)
        axes = self._constant(np.array([along], np.int64))
        return self._new("ReduceSum", node, self._new("Mul", node, off, off), axes)

    def _place(self, x: ir.Value, levels: np.ndarray, node: ir.Node) -> ir.Value:
        """Which of the ascending `levels` is nearest, int32."""
        steps = (len(levels) - 1).bit_length()
        between = np.full(2**steps - 1, np.inf, np.float32)
        between[: len(levels) - 1] = (levels[1:] + levels[:-1]) / np.float32(2)
        place = None
        for half in (2**i for i in reversed(range(steps))):
            reached = self._constant(between[half - 1 :: 2 * half].copy())  # at place 0, 2 · half, 4 · half …
            if place is None:
                threshold = self._constant(between[half - 1])
            else:
                at = self._new("Div", node, place, self._constant(np.array(2 * half, np.int32)))
                threshold = self._new("Gather", node, reached, at)
            above = self._new("Greater", node, x, threshold)
            step = self._new(
                "Where", node, above, self._constant(np.array(half, np.int32)), self._constant(np.array(0, np.int32))
            )
            place = step if place is None else self._new("Add", node, place, step)
        assert place is not None
        return place

    def _pick(self, levels: np.ndarray, place: ir.Value, node: ir.Node) -> ir.Value:
        return self._new("Gather", node, self._constant(levels), place)

    def _number(self, number: float) -> ir.Value:
        return self._constant(np.array(number, np.float32))

    def _constant(self, array: np.ndarray) -> ir.Value:
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            name = f"table_{len(self.constants)}"
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)  # type: ignore[union-attr]
            self.graph.register_initializer(value)
            self.constants[key] = value
        return self.constants[key]

    def _new(self, op: str, before: ir.Node, *inputs: ir.Value) -> ir.Value:
        made = ir.node(op, list(inputs))
        self.graph.insert_before(before, made)
        self.made += 1
        made.outputs[0].name = f"simulated_{self.made}"
        return made.outputs[0]

    def _give_way(self, node: ir.Node, new: ir.Value) -> None:
        old = node.outputs[0]
        new.type, new.shape = new.type or old.type, new.shape or old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)


def _levels(node: ir.Node, name: str) -> np.ndarray:
    return np.array(node.attributes[name].as_floats(), np.float32)


def _rows(x: ir.Value, axis: int, group: int) -> tuple[list[int], int]:
    """The shape in which what shares a scale lies along one axis (0: as it is), and which axis that is."""
    if not group:
        return [1, -1], 1
    assert x.shape is not None, "a value without a shape"
    size, last = x.shape[axis], axis == len(x.shape) - 1
    kept = [0] * axis
    if last:
        return [*kept, -1, group], axis + 1
    assert isinstance(size, int), "groups along an axis that varies"
    return [*kept, size // group, group, -1], axis + 1
