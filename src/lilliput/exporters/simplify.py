"""What torch's exporter leaves to do: constants computed, operators put together, and no tensor laid down twice.

A `.lil` takes the tensors of its graph from the module's own, so whatever is computed from those alone, and is large,
stays as operators on them: every runtime folds such operators when it loads. A batch norm behind a convolution stays
what it is, for all runtimes take it into the convolution. Behind a `Gemm` ONNX Runtime does not, so there it is
written as operators on the weight and the bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes.common import InlinePass

from lilliput.exporters import origins
from lilliput.exporters.nodes import DOMAIN

_LARGE = 4096  # bytes of a computed constant; smaller ones cost no more than the operators that make them
_SAME_ELEMENTS = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity"})


def simplify(model: ir.Model) -> None:
    """Fold and fuse what `model` holds, in place, but for what would lay a tensor down once more."""
    InlinePass()(model)
    norms = [node for node in model.graph if node.domain == "" and node.op_type == "BatchNormalization"]
    for norm in norms:
        norm.domain = DOMAIN  # which no rule of the optimizer knows
    known = origins.followed(model)
    onnxscript.optimizer.optimize_ir(model, should_fold=_should_fold)
    origins.keep(model, known)
    for norm in norms:
        norm.domain = ""
        gemm = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if gemm is not None and _folds(gemm, norm):
            _Folding(model.graph, gemm, norm).write()


def _should_fold(node: ir.Node) -> bool | None:
    """Not where a large tensor comes of it that no other has the elements of; None: as the optimizer does."""
    turned = node.op_type == "Transpose" and all(_rank(x) == 2 for x in node.inputs)
    if node.op_type in _SAME_ELEMENTS or turned:
        return None
    return False if any(_bytes(out) > _LARGE for out in node.outputs) else None


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _bytes(value: ir.Value) -> int:
    """Bytes of a value whose shape is known, else 0."""
    if value.shape is None or not value.shape.is_static():
        return 0
    each = 4.0 if value.dtype is None else value.dtype.itemsize
    return int(each * prod(value.shape.numpy()))


def _folds(gemm: ir.Node, norm: ir.Node) -> bool:
    """Whether a norm is all that reads what a `Gemm` gives, and all tensors of both are constants."""
    given = gemm.outputs[0]
    if gemm.op_type != "Gemm" or gemm.domain or len(given.uses()) != 1 or given.is_graph_output():
        return False
    scaled = "beta" in gemm.attributes and gemm.attributes["beta"].as_float() != 1
    constants = [value for value in (*gemm.inputs[1:], *norm.inputs[1:]) if value is not None]
    return not scaled and all(value.const_value is not None for value in constants)


class _Folding:
    """A norm behind a `Gemm` as operators on the tensors of both: ``w · γ/σ`` and ``(b - μ) · γ/σ + β``."""

    def __init__(self, graph: ir.Graph, gemm: ir.Node, norm: ir.Node) -> None:
        self.graph, self.gemm, self.norm, self.tape = graph, gemm, norm, ir.tape.Tape()

    def write(self) -> None:
        weight, bias = self.gemm.inputs[1], self.gemm.inputs[2] if len(self.gemm.inputs) > 2 else None
        gamma, beta, mean, variance = self.norm.inputs[1:5]
        epsilon = self.norm.attributes["epsilon"].as_float() if "epsilon" in self.norm.attributes else 1e-5
        variance = self._op("Add", variance, self._constant(np.array(epsilon, np.float32)))
        factor = self._op("Div", gamma, self._op("Sqrt", variance))  # [outputs]
        turned = "transB" in self.gemm.attributes and self.gemm.attributes["transB"].as_int() == 1
        spread = self._op("Unsqueeze", factor, self._constant(np.array([1], np.int64))) if turned else factor
        shift = self._op("Neg", mean) if bias is None else self._op("Sub", bias, mean)
        moved = self._op("Add", self._op("Mul", shift, factor), beta)
        self.gemm.resize_inputs(3)
        self.gemm.replace_input_with(1, self._op("Mul", weight, spread))
        self.gemm.replace_input_with(2, moved)
        self._insert()
        old, new = self.norm.outputs[0], self.gemm.outputs[0]
        new.shape = old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(self.norm, safe=True)

    def _insert(self) -> None:
        for i, value in enumerate(self._made()):
            value.name = f"{self.norm.outputs[0].name}_folding_{i}"
        for value in self.tape.initializers:
            self.graph.register_initializer(value)
        self.graph.insert_before(self.gemm, self.tape.nodes)

    def _made(self) -> Iterator[ir.Value]:
        yield from self.tape.initializers
        yield from (value for node in self.tape.nodes for value in node.outputs)

    def _op(self, op: str, *inputs: ir.Value | None) -> ir.Value:
        return self.tape.op(op, inputs)

    def _constant(self, x: np.ndarray) -> ir.Value:
        return self.tape.initializer(ir.tensor(x), name="constant")
