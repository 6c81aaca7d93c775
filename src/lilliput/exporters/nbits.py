"""Linear layers with weights of few bits as ONNX Runtime's `MatMulNBits`, which multiplies by codes as they lie packed.

So neither the file nor the memory holds floats. With float inputs (accuracy level 1) products are exact, of codes of
four bits; of eight, that kernel decodes all of them at every run. Beside values whose range is found at run time (level
4) both are multiplied as integers, and what flows is rounded in blocks, over a range for each.

What such a kernel reads must be constants: at level 4, ONNX Runtime 1.31 multiplies by anything else where its
optimizations are off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lilliput.exporters import nodes
from lilliput.exporters.nodes import DOMAIN, RUNTIME, give_way
from lilliput.exporters.origins import Origin, note, origin, packed, transposed
from lilliput.external import packed_rows

_BLOCKS = (256, 128, 64, 32, 16)  # inputs that may share a scale
_EXACT, _INTEGERS = 1, 4  # accuracy levels
_KEY = "lilliput.packed"  # in the `meta` of codes of four bits, what they are packed in


def block_of(inputs: int, group: int | None) -> int:
    """How many inputs the kernel takes for one scale, where so many share one; 0 where it takes none of that length.

    >>> block_of(384, 64), block_of(384, 96), block_of(384, None), block_of(40, 8)
    (64, 32, 128, 0)
    """
    wide = group or inputs
    return next((n for n in _BLOCKS if wide and wide % n == 0), 0)


def multiplies(bits: int, *, at_run_time: bool, known: Collection[int]) -> int:
    """How many bits weights of so many take where the runtime multiplies by them packed; 0 where it does not.

    `at_run_time`: whether what flows is integers whose range is found at run time. `known`: what it has kernels for.
    """
    held = 4 if bits <= 4 else 8
    return held if held in known and bits <= 8 and (held == 4 or at_run_time) else 0


def expand(model: ir.Model, known: Collection[int]) -> None:
    """Write the layers of `model` so for which the runtime has kernels, of weights of `known` bits; in place."""
    writer = _Writer(model.graph)
    for node in [node for node in model.graph if node.domain == DOMAIN and node.op_type == "DecodeInt"]:
        for user, position in list(node.outputs[0].uses()):
            layer = None if user.domain == DOMAIN else _layer(node, user, position, known)
            if layer is not None:
                writer.write(layer)
                model.opset_imports[RUNTIME] = 1


def unpacked(
    codes: ir.Value | None, new: Callable[..., ir.Value], constant: Callable[[np.ndarray], ir.Value]
) -> tuple[ir.Value, int] | None:
    """The codes from 0 on, a byte each, of a table that is packed for a layer as well; and what is to be subtracted.

    The runtime computes them when it loads, so that the file holds them once.
    """
    held = None if codes is None else codes.meta.get(_KEY)
    if held is None:
        return None
    low = new("BitwiseAnd", [held, constant(np.array(15, np.uint8))])
    high = new("BitShift", [held, constant(np.array(4, np.uint8))], direction="RIGHT")
    last = constant(np.array([-1], np.int64))
    both = new("Concat", [new("Unsqueeze", [x, last]) for x in (low, high)], axis=-1)
    whole = nodes.array(codes)
    return new("Reshape", [both, constant(np.array(whole.shape, np.int64))]), 8 if whole.dtype == np.int8 else 0


@dataclass(frozen=True)
class _Layer:
    """A product with a decoded weight."""

    node: ir.Node  # that decodes it
    user: ir.Node  # of what it gives: the product itself, or what turns the weight for it
    multiply: ir.Node
    x: ir.Value
    bits: int
    block: int
    turned: bool  # whether the codes lie as [inputs, outputs]
    level: int


def _layer(node: ir.Node, user: ir.Node, position: int, known: Collection[int]) -> _Layer | None:
    """What `user` multiplies by the weight that `node` decodes, where the kernel computes the same; else None."""
    multiply, turned = nodes.multiply(user, position)
    x = None if multiply is None else multiply.inputs[0]
    codes, offset = nodes.array(node.inputs[0]), nodes.offset(node)
    if multiply is None or x is None or codes.ndim != 2 or codes.itemsize > 1 or not _plain(multiply):
        return None
    rows_first = turned or (multiply.op_type == "Gemm" and nodes.attribute(multiply, "transB") == 1)
    of_all = nodes.array(node.inputs[1]).ndim == 0
    across = not of_all and nodes.attribute(node, "axis") != (0 if rows_first else 1)
    if across or nodes.minimum(node) is not None or (offset is not None and codes.dtype != np.uint8):
        return None
    source, whole = x.producer(), nodes.scaled_by_output(node) and not nodes.shifted(node)
    ours = source if source is not None and source.domain == DOMAIN else None
    if ours is not None and whole and (ours.op_type == "ProjectInt" or nodes.takes_dynamic(multiply, ours)):
        return None  # there are kernels for whole channels of integers
    group = nodes.attribute(node, "group")
    at_run_time = ours is not None and group > 0 and nodes.takes_dynamic(multiply, ours)
    bits = multiplies(_bits(codes), at_run_time=at_run_time, known=known)
    block = block_of(codes.shape[1 if rows_first else 0], group)
    if not bits or not block:
        return None
    if at_run_time and ours is not None and ours.inputs[0] is not None:
        x = ours.inputs[0]  # the kernel rounds it by itself
    return _Layer(node, user, multiply, x, bits, block, not rows_first, _INTEGERS if at_run_time else _EXACT)


def _plain(multiply: ir.Node) -> bool:
    """Whether it is a product, and perhaps a sum, of its inputs as they are."""
    factors = (multiply.attributes[name].as_float() for name in ("alpha", "beta") if name in multiply.attributes)
    ranked = multiply.op_type == "Gemm" or (multiply.inputs[0] is not None and _rank(multiply.inputs[0]) != 1)
    return multiply.op_type != "Conv" and ranked and not nodes.attribute(multiply, "transA") and set(factors) <= {1.0}


def _rank(x: ir.Value) -> int | None:
    return None if x.shape is None else len(x.shape)


def _bits(codes: np.ndarray) -> int:
    """Of the codes as they lie here: 4 where so many hold them all."""
    least, most = (0, 15) if codes.dtype == np.uint8 else (-8, 7)
    return 4 if codes.size and codes.min() >= least and codes.max() <= most else 8


class _Writer:
    """One graph; codes that several layers multiply by are packed once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.held: dict[tuple[object, ...], ir.Value] = {}

    def write(self, layer: _Layer) -> None:
        """Put the kernel in the place of the product, and of the sum with a bias."""
        node, multiply = layer.node, layer.multiply
        codes = nodes.array(node.inputs[0])
        inputs, outputs = codes.shape if layer.turned else codes.shape[::-1]
        blocks = inputs // layer.block
        parts = [part(layer, outputs, blocks) for part in (self._codes, self._scales, self._zeros)]
        bias, last = self._bias(multiply, outputs)
        read = [layer.x, *parts, None, bias]  # the fifth is out of use
        sizes = {"K": inputs, "N": outputs, "bits": layer.bits, "block_size": layer.block}
        made = ir.node("MatMulNBits", read, {**sizes, "accuracy_level": layer.level}, domain=RUNTIME)
        self.graph.insert_before(last, made)
        made.outputs[0].name = f"{last.outputs[0].name}_packed"
        out = made.outputs[0]
        if last is multiply and bias is None and len(multiply.inputs) > 2 and multiply.inputs[2] is not None:
            added = ir.node("Add", [out, multiply.inputs[2]])
            self.graph.insert_before(last, added)
            added.outputs[0].name = f"{last.outputs[0].name}_added"
            out = added.outputs[0]
        give_way(last.outputs[0], out)
        for done in dict.fromkeys((last, multiply, layer.user)):
            self.graph.remove(done, safe=True)

    def _codes(self, layer: _Layer, outputs: int, blocks: int) -> ir.Value:
        """[outputs, blocks, bytes of a block]"""
        value = layer.node.inputs[0]
        whole, of = nodes.array(value), origin(value)
        rows, of = (whole.T, transposed(of)) if layer.turned else (whole, of)
        assert value is not None
        shape = (outputs, blocks, layer.block * layer.bits // 8)
        key = (value, layer.turned, shape)
        if key not in self.held:
            made = packed_rows(rows, layer.bits).reshape(shape)
            name = f"{value.name}.packed{'_turned' * layer.turned}"
            self.held[key] = self._constant(name, made, packed(of, layer.bits))
            if layer.bits == 4 and not layer.turned:
                value.meta[_KEY] = self.held[key]
        return self.held[key]

    def _scales(self, layer: _Layer, outputs: int, blocks: int) -> ir.Value:
        """[outputs, blocks]"""
        value = layer.node.inputs[1]
        assert value is not None
        scale = nodes.array(value)
        if layer.level == _EXACT and scale.shape == (outputs, blocks):
            return value  # `lower` decodes what is encoded itself
        return self._part(value, _laid_out(scale.astype(np.float32), outputs, blocks), origin(value))

    def _zeros(self, layer: _Layer, outputs: int, blocks: int) -> ir.Value | None:
        """The codes that mean zero, packed as the codes are; None where they lie in the middle."""
        value = nodes.offset(layer.node)
        if value is None and nodes.array(layer.node.inputs[0]).dtype == np.int8:
            return None
        zero = np.zeros((), np.uint8) if value is None else nodes.array(value)
        laid, of = _laid_out(zero, outputs, blocks), None if value is None else packed(origin(value), layer.bits)
        made = packed_rows(laid, layer.bits)
        return self._part(value or layer.node.inputs[0], made, of if laid.size == zero.size else None)

    def _part(self, value: ir.Value | None, made: np.ndarray, of: Origin | None) -> ir.Value:
        assert value is not None
        key = (value, made.shape, made.dtype.str, made.tobytes())
        if key not in self.held:
            self.held[key] = self._constant(f"{value.name}.of_blocks_{len(self.held)}", made, of)
        return self.held[key]

    def _bias(self, multiply: ir.Node, outputs: int) -> tuple[ir.Value | None, ir.Node]:
        """What the kernel adds, and the node whose output it then gives."""
        user, position = nodes.bias(multiply)
        held = None if user is None else user.inputs[position]
        if user is None or held is None or nodes.shape(held) != (outputs,):
            return None, multiply
        return held, user

    def _constant(self, name: str, array: np.ndarray, of: Origin | None) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)  # type: ignore[union-attr]
        note(value, of)
        self.graph.register_initializer(value)
        return value


def _laid_out(part: np.ndarray, outputs: int, blocks: int) -> np.ndarray:
    """A part of an encoding, [] | [outputs] | [outputs, groups], with an entry for each block of a group."""
    columns = part if part.ndim == 2 else part.reshape(-1, 1)
    whole = np.broadcast_to(columns, (outputs, columns.shape[1]))
    return np.repeat(whole, blocks // columns.shape[1], axis=1)
