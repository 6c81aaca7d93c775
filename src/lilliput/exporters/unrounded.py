"""A built file without the rounding of what flows, for a comparison that no rounding blurs.

Two computations of a network that agree to the last bits of a float still round some values to different codes, and
each such step is read by all layers after it: after a dozen of them they are as far apart as rounding itself moves
answers. So files are compared with modules *without* it, in float: scales, offsets and ends of ranges stay, steps go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lilliput.external import array, read

_FLOAT = TensorProto.FLOAT
_FLOATS = 1  # the accuracy level of products that round nothing


def unrounded(path: Path) -> bytes | None:
    """The file at `path` with float arithmetic where integers flowed; None where it rounds in ways not known here.

    ``QuantizeLinear`` only scales, shifts and cuts, ``DynamicQuantizeLinear`` gives what it is given,
    ``MatMulInteger``, ``MatMulNBits`` and ``DynamicQuantizeLSTM`` compute with floats. Tensors that lie beside the file
    stay there.
    """
    return _Unrounding(read(path), path).done()


class _Unrounding:
    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        self.model, self.path, self.nodes = model, path, list[NodeProto]()
        self.held = {tensor.name: tensor for tensor in model.graph.initializer}
        self.floats: set[str] = set()  # codes that are floats now
        self.scales: set[str] = set()  # that were to be found at run time
        self.made = 0

    def done(self) -> bytes | None:
        try:
            for node in self.model.graph.node:
                rewrite = _REWRITES.get(node.op_type)
                if rewrite is not None:
                    rewrite(self, node)
                elif self.floats & set(node.input) and node.op_type not in _INDIFFERENT:
                    return None
                else:
                    self.floats |= set(node.output) if self.floats & set(node.input) else set()
                    self.nodes.append(node)
        except _Unknown:
            return None
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        del self.model.graph.value_info[:]
        whole: bytes = self.model.SerializeToString()
        return whole

    # rewrites

    def quantize(self, node: NodeProto) -> None:
        """Codes that are no whole numbers: scaled, shifted and cut."""
        x, scale = node.input[:2]
        zero = self._array(node.input[2])
        if zero.ndim and zero.size != 1:
            raise _Unknown
        ends = [
            self._constant(np.array(end, np.float32)) for end in (np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max)
        ]
        scaled = self._new("Div", [x, scale])
        shifted = self._new("Add", [scaled, self._constant(zero.astype(np.float32))])
        self._add("Clip", [shifted, *ends], node.output)
        self.floats.add(node.output[0])

    def dequantize(self, node: NodeProto) -> None:
        if node.input[0] not in self.floats:
            self.nodes.append(node)
            return
        if node.input[1] in self.scales:
            self._add("Identity", node.input[:1], node.output)
            return
        zero = self._array(node.input[2]).astype(np.float32)
        self._add("Mul", [self._new("Sub", [node.input[0], self._constant(zero)]), node.input[1]], node.output)

    def found_at_run_time(self, node: NodeProto) -> None:
        self._add("Identity", node.input[:1], node.output[:1])
        for name, number in zip(node.output[1:], (1, 0), strict=True):
            self._add("Identity", [self._constant(np.array(number, np.float32))], [name])
        self.floats.add(node.output[0])
        self.scales.add(node.output[1])

    def product(self, node: NodeProto) -> None:
        if node.input[0] not in self.floats or len(node.input) > 3:
            raise _Unknown
        weights = self._new("Cast", [node.input[1]], to=_FLOAT)
        self._add("MatMul", [node.input[0], weights], node.output)

    def packed(self, node: NodeProto) -> None:
        """Weights stay packed, for the runtime multiplies floats by them too."""
        level = next((one for one in node.attribute if one.name == "accuracy_level"), None)
        if level is not None:
            level.i = min(level.i, _FLOATS)
        self.nodes.append(node)

    def lstm(self, node: NodeProto) -> None:
        """Weights [directions, inputs, rows], their scales [directions] or [directions, rows], as ONNX's own LSTM."""
        given = [*node.input, *[""] * (12 - len(node.input))]
        matrices = []
        for codes, scale, zero in zip(given[1:3], (given[8], given[10]), (given[9], given[11]), strict=True):
            if np.any(self._array(zero)):
                raise _Unknown
            if scale in self.held:  # one for a direction
                held = self._array(scale).astype(np.float32)
                spread = self._constant(held.reshape(len(held), 1, -1))
            else:  # one for each row, put into ONNX's order by nodes
                spread = self._new("Unsqueeze", [scale, self._constant(np.array([1]))])
            floats = self._new("Mul", [self._new("Cast", [codes], to=_FLOAT), spread])
            matrices.append(self._new("Transpose", [floats], perm=[0, 2, 1]))
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        self._add("LSTM", [given[0], *matrices, *given[3:8]], node.output, **attributes)

    # graph

    def _array(self, name: str) -> np.ndarray:
        if name not in self.held:
            raise _Unknown
        return array(self.held[name], self.path)

    def _constant(self, array: np.ndarray) -> str:
        self.made += 1
        name = f"unrounded_{self.made}"
        self.held[name] = numpy_helper.from_array(array, name)
        self.model.graph.initializer.append(self.held[name])
        return name

    def _new(self, op: str, inputs: list[str], **attributes: Any) -> str:
        self.made += 1
        name = f"unrounded_{self.made}"
        self._add(op, inputs, [name], **attributes)
        return name

    def _add(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, list(inputs), list(outputs), **attributes))


class _Unknown(Exception):
    """A way to compute on integers that has no float in its place here."""


_INDIFFERENT = frozenset(("Identity", "Reshape", "Transpose"))
_REWRITES = {
    "QuantizeLinear": _Unrounding.quantize,
    "DequantizeLinear": _Unrounding.dequantize,
    "DynamicQuantizeLinear": _Unrounding.found_at_run_time,
    "MatMulInteger": _Unrounding.product,
    "MatMulNBits": _Unrounding.packed,
    "DynamicQuantizeLSTM": _Unrounding.lstm,
}
