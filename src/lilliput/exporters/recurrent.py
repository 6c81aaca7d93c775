"""Recurrent layers: from one node for all levels and directions, as torch has them, to one operator for each level.

ONNX orders the gates otherwise than torch, stacks the two directions, and knows no projection. All of that is written
as operators on the tensors as the module holds them, which the runtime folds when it loads, so that the `.lil` file
need not hold them twice. A level of an LSTM whose input has a range found at run time becomes ONNX Runtime's
``DynamicQuantizeLSTM``, which rounds its input as a whole, and the hidden state before each step, to unsigned 8-bit
integers over their own ranges; gates, cell state and outputs are float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lilliput.errors import ExportError
from lilliput.exporters.nodes import DOMAIN, RUNTIME, integers
from lilliput.exporters.origins import note, scale_origin

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's, in the order of ONNX
_STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}
_KINDS = {"LSTM": "LSTM", "GRU": "GRU", "RNNTanh": "RNN", "RNNRelu": "RNN"}  # node of our domain -> operator


@dataclass(frozen=True)
class _Cell:
    """The tensors of one level in one direction; rows are those of all gates."""

    input: ir.Value  # [rows, inputs]
    hidden: ir.Value  # [rows, hidden | projected]
    biases: tuple[ir.Value, ...]  # of input and hidden, [rows] each; or none
    projection: ir.Value | None  # [projected, hidden]


def expand(model: ir.Model) -> None:
    """Replace the recurrent nodes of our domain in `model`, in place; what they read is left to `lower`."""
    for node in [node for node in model.graph if node.domain == DOMAIN and node.op_type in _KINDS]:
        layer = _Layer(node)
        for old, new in zip(node.outputs, layer.outputs(), strict=True):
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        layer.insert(model.graph)
        if layer.on_integers:
            model.opset_imports[RUNTIME] = 1


class _Layer:
    """One `nn.LSTM`, `nn.GRU` or `nn.RNN` being written out."""

    def __init__(self, node: ir.Node) -> None:
        self.node, self.op, self.tape = node, _KINDS[node.op_type], ir.tape.Tape()
        told = {name: attribute.as_int() for name, attribute in node.attributes.items()}
        self.directions, self.batch_first = 1 + told["bidirectional"], bool(told["batch_first"])
        x, *rest = (value for value in node.inputs if value is not None)
        self.x, self.states, held = x, rest[: _STATES[self.op]], rest[_STATES[self.op] :]
        each, end = len(held) // (told["num_layers"] * self.directions), 4 if told["has_biases"] else 2
        self.cells = [
            _Cell(part[0], part[1], tuple(part[2:end]), part[end] if each > end else None)
            for part in (held[i : i + each] for i in range(0, len(held), each))
        ]
        self.projected = each > end
        assert held[0].shape is not None
        self.rows = held[0].shape.numpy()[0]  # gates · hidden
        source = x.producer()
        weights = [weight for cell in self.cells for weight in (cell.input, cell.hidden)]
        ranged = source is not None and (source.domain, source.op_type) == (DOMAIN, "ProjectIntDynamic")
        ranged = ranged and source is not None and source.attributes["bits"].as_int() == 8
        self.on_integers = self.op == "LSTM" and ranged and not self.projected and all(map(integers, weights))
        if self.on_integers and source is not None and source.inputs[0] is not None:
            self.x = source.inputs[0]  # the operator rounds it by itself

    def outputs(self) -> list[ir.Value]:
        """What torch gives: the outputs of all steps, and the last states of all levels."""
        x = self._op("Transpose", [self.x], perm=[1, 0, 2]) if self.batch_first else self.x
        last: list[list[ir.Value]] = []
        for first in range(0, len(self.cells), self.directions):
            x, *states = self._level(x, first)
            last.append(states)
        out = self._op("Transpose", [x], perm=[1, 0, 2]) if self.batch_first else x
        return [out, *(self._joined(states) for states in zip(*last, strict=True))]

    def insert(self, graph: ir.Graph) -> None:
        """Put all that was written in the place of the node."""
        made = [*self.tape.initializers, *(value for node in self.tape.nodes for value in node.outputs)]
        for i, value in enumerate(made):
            value.name = f"{self.node.outputs[0].name}_{i}"
        for value in self.tape.initializers:
            graph.register_initializer(value)
        graph.insert_before(self.node, self.tape.nodes)
        graph.remove(self.node, safe=True)

    def _level(self, x: ir.Value, first: int) -> list[ir.Value]:
        """Outputs of all steps, [steps, batch, directions · outputs]; last states, [directions, batch, outputs]."""
        cells = self.cells[first : first + self.directions]
        weights, quantization = self._weights(cells)
        read = [x, *weights, self._biases(cells), None, *self._begin(first)]
        attributes: dict[str, Any] = {
            "hidden_size": self.rows // len(_GATES[self.op]),
            "direction": "bidirectional" if self.directions == 2 else "forward",
        }
        if self.op == "GRU":
            attributes["linear_before_reset"] = 1
        if self.op == "RNN":
            attributes["activations"] = [self.node.op_type.removeprefix("RNN")] * self.directions
        op, domain = (f"DynamicQuantize{self.op}", RUNTIME) if self.on_integers else (self.op, "")
        read += [None, *quantization] if self.on_integers else []
        count = 1 + _STATES[self.op]
        steps, *last = self.tape.op_multi_out(op, read, attributes, num_outputs=count, domain=domain)
        if self.projected:
            by = self._joined([self._stacked(self._turned(cell.projection)) for cell in cells])
            steps, last[0] = self._op("MatMul", [steps, by]), self._op("MatMul", [last[0], by])
        beside = self._op("Transpose", [steps], perm=[0, 2, 1, 3])  # [steps, batch, directions, outputs]
        return [self._op("Reshape", [beside, self._constant([0, 0, -1])]), *last]

    def _weights(self, cells: Sequence[_Cell]) -> tuple[list[ir.Value], list[ir.Value]]:
        """Those of input and hidden state, [directions, rows, inputs]; or codes, [directions, inputs, rows], and with
        them scales and zero points. A projected state is taken as it is before the projection.
        """
        matrices, quantization = [], []
        for weights in zip(*((cell.input, self._hidden(cell)) for cell in cells), strict=True):
            if not self.on_integers:
                matrices.append(self._joined([self._ordered(weight, matrix=True) for weight in weights]))
                continue
            held = [pair for pair in map(integers, weights) if pair]
            ordered = [self._ordered(codes, matrix=True) for codes, _ in held]
            matrices.append(self._joined([self._op("Transpose", [x], perm=[0, 2, 1]) for x in ordered]))
            quantization += self._scales([scale for _, scale in held], weights)
        return matrices, quantization

    def _scales(self, scales: Sequence[np.ndarray], weights: Sequence[ir.Value]) -> list[ir.Value]:
        """Scales, and zero points that are 0, of a matrix in each direction: [directions] or [directions, rows]."""
        if all(scale.ndim == 0 for scale in scales):
            return [self._constant(np.stack(scales)), self._constant(np.zeros(len(scales), np.int8))]
        rows = []
        for scale, weight in zip(scales, weights, strict=True):
            row = self._constant(np.broadcast_to(scale, self.rows))
            note(row, scale_origin(weight))
            rows.append(self._ordered(row))
        return [self._joined(rows), self._constant(np.zeros((len(scales), self.rows), np.int8))]

    def _hidden(self, cell: _Cell) -> ir.Value:
        return cell.hidden if cell.projection is None else self._op("MatMul", [cell.hidden, cell.projection])

    def _biases(self, cells: Sequence[_Cell]) -> ir.Value | None:
        """Of input, then of hidden state, [directions, 2 · rows]."""
        found = [self._joined([self._ordered(bias) for bias in cell.biases], axis=1) for cell in cells if cell.biases]
        return self._joined(found) if found else None

    def _begin(self, first: int) -> list[ir.Value | None]:
        """The states that a level begins with, [directions, batch, hidden]; None where all are zero, as by default."""
        if all(map(_is_zero, self.states)):
            return [None] * len(self.states)
        if self.projected:
            raise ExportError(
                "an LSTM with a projection that begins with states of its own",
                why="ONNX has no projection, and would need the state before it",
                next="let it begin with zeros, or keep the .lil file",
            )
        ends = [self._constant([end]) for end in (first, first + self.directions, 0)]
        whole = len(self.cells) == self.directions
        return [state if whole else self._op("Slice", [state, *ends]) for state in self.states]

    # operators

    def _ordered(self, x: ir.Value, matrix: bool = False) -> ir.Value:
        """[rows, …] with the gates in ONNX's order, as [1, rows, …]."""
        gates = _GATES[self.op]
        if len(gates) > 1:
            apart = self._op("Reshape", [x, self._constant([len(gates), -1])])
            x = self._op("Gather", [apart, self._constant(gates)], axis=0)
        return self._op("Reshape", [x, self._constant([1, self.rows, -1] if matrix else [1, self.rows])])

    def _turned(self, x: ir.Value | None) -> ir.Value:
        return self._op("Transpose", [x], perm=[1, 0])

    def _stacked(self, x: ir.Value) -> ir.Value:
        return self._op("Unsqueeze", [x, self._constant([0])])

    def _joined(self, parts: Sequence[ir.Value], axis: int = 0) -> ir.Value:
        return parts[0] if len(parts) == 1 else self._op("Concat", parts, axis=axis)

    def _op(self, op: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        return self.tape.op(op, inputs, attributes)

    def _constant(self, x: Any) -> ir.Value:
        """Positions and sizes as int64; arrays as they are."""
        array = x if isinstance(x, np.ndarray) else np.array(x, np.int64)
        return self.tape.initializer(ir.tensor(np.ascontiguousarray(array)), name="constant")


def _is_zero(state: ir.Value) -> bool:
    """Whether a state is zeros of whatever size, as torch's layers make them where none is given."""
    maker = state.producer()
    made = maker.inputs[0] if maker is not None and maker.op_type == "Expand" else state
    held = None if made is None else made.const_value
    return held is not None and not held.numpy().any()
