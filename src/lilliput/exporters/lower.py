"""From decode and project nodes to standard ONNX operators, in the patterns that ONNX Runtime fuses.

What was found by trying, on ONNX Runtime 1.31 (docs/onnxruntime.md has the figures):

* convolution, and a linear layer with static ranges: Q/DQ around it, int8 weights behind a DequantizeLinear along the
  output channels, the bias as int32 at scale ``activation · weight``; a float bias stops a Gemm from fusing;
* linear with dynamic ranges: DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Add;
* rows of a table: the codes are gathered first, then scaled (a DequantizeLinear would decode the table at each run);
* weights alone: ``Cast · scale``, which the runtime folds when it loads (it never folds a DequantizeLinear).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lilliput.exporters import nodes
from lilliput.exporters.nbits import unpacked
from lilliput.exporters.nodes import DOMAIN, give_way
from lilliput.exporters.origins import Origin, note, origin, product, quotient, transposed

PACKED_OPSET = 21  # the first with tensors of 4-bit integers
_LARGEST_BIAS = 2**31 - 2**28  # of the 32 bits that hold a sum; the rest is left to the products
_SHARED = 1 << 16  # constants of up to so many bytes are kept once


def lower(model: ir.Model, *, integer_bias: bool = True, unsigned: bool = True) -> None:
    """Replace all nodes of the domain in `model`, in place.

    Without `integer_bias`, biases stay floats everywhere; without `unsigned`, symmetric values keep their zero at 0.
    """
    lowering = _Lowering(model.graph, model.opset_imports[""], integer_bias, unsigned)
    own = [node for node in model.graph if node.domain == DOMAIN]
    for node in sorted(own, key=lambda node: node.op_type != "DecodeLowRank"):  # before the factors that they read
        if node.op_type.startswith("Decode"):
            lowering.decode(node)
    for node in own:  # after the weights, whose lowering looks for them
        if node.op_type.startswith("Project"):
            lowering.project(node)
    lowering.clean()
    model.opset_imports.pop(DOMAIN, None)


class _Lowering:
    """One graph being lowered; new nodes go in right before the node that needs them."""

    def __init__(self, graph: ir.Graph, opset: int, integer_bias: bool, unsigned: bool) -> None:
        self.graph, self.opset, self.integer_bias, self.unsigned = graph, opset, integer_bias, unsigned
        self.made = 0
        self.constants: dict[tuple[object, ...] | None, ir.Value] = {}
        self.projected: dict[tuple[object, ...], ir.Value] = {}
        self.packed: dict[ir.Value | None, ir.Value] = {}
        self.unpacked: dict[ir.Value | None, ir.Value] = {}
        self.quantized: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    # tensors

    def decode(self, node: ir.Node) -> None:
        """Each use of a decoded tensor gets what suits it; the codes are shared."""
        for user, position in list(node.outputs[0].uses()):
            if user.domain == DOMAIN:
                continue  # a part that is encoded itself: its reader decodes it
            if user.op_type == "Gather" and position == 0:
                self._gather(node, user)
                continue
            multiply, turned = nodes.multiply(user, position)
            reader = user if user.op_type == "ConvTranspose" and position == 1 else multiply
            activation = reader.inputs[0] if reader is not None else None
            source = activation.producer() if activation is not None else None
            kind = source.op_type if source is not None and source.domain == DOMAIN else ""
            whole = nodes.scaled_by_output(node) and not nodes.shifted(node)
            if multiply is not None and source is not None and kind == "ProjectInt" and whole:
                self._static(node, user, position, multiply, source)
            elif multiply is not None and source is not None and nodes.takes_dynamic(multiply, source) and whole:
                self._dynamic(node, multiply, source, turned)
            else:
                user.replace_input_with(position, self._scaled(node, user))
                if reader is not None and source is not None and kind == "ProjectInt":
                    reader.replace_input_with(0, self._rounded(source, reader))
        if node.outputs[0].is_graph_output():
            out = self._scaled(node, node)
            give_way(node.outputs[0], out)

    def _gather(self, node: ir.Node, gather: ir.Node) -> None:
        """Rows of codes, then what they stand for, then their scales."""
        rows, kinds = gather.inputs[1], ("DecodeInt", "DecodeFloat", "DecodeGrid", "DecodeLevels")
        assert rows is not None
        shared = (
            node.op_type == "DecodeLevels" and nodes.array(node.inputs[1]).ndim == 1
        )  # by all rows: one list of numbers
        scale = nodes.array(node.inputs[1]) if node.op_type in ("DecodeInt", "DecodeGrid") else np.array(1, np.float32)
        across = nodes.attribute(node, "axis") != 0 and (scale.ndim > 0 or nodes.attribute(node, "group") > 0)
        if node.op_type not in kinds or (node.op_type == "DecodeLevels" and not shared) or across:
            gather.replace_input_with(0, self._scaled(node, gather))
            return
        own = unpacked(node.inputs[0], functools.partial(self._new, before=gather), self._constant)
        whole, middle = own or (self._whole_bytes(node.inputs[0], gather), 0)
        picked = self._new("Gather", [whole, rows], before=gather, axis=0)
        decoded = self._looked_up(node, picked, gather)
        if node.op_type in ("DecodeInt", "DecodeGrid"):
            held = (nodes.offset(node), nodes.minimum(node) if node.op_type == "DecodeInt" else None)
            offset, minimum = (None if part is None else nodes.array(part).astype(np.float32) for part in held)
            offset = np.array(middle, np.float32) if middle else offset
            tables = (("Sub", offset, held[0]), ("Mul", scale, node.inputs[1]), ("Add", minimum, held[1]))
            group = nodes.attribute(node, "group") if scale.ndim > 1 else 0
            if group:
                decoded = self._reshape(decoded, (-1, group), gather)
            for op, table, part in tables:
                if table is not None:
                    decoded = self._new(op, [decoded, self._rows(table, rows, gather, origin(part))], before=gather)
            if group:
                decoded = self._new("Reshape", [decoded, self._new("Shape", [picked], before=gather)], before=gather)
        give_way(gather.outputs[0], decoded)

    def _looked_up(self, node: ir.Node, codes: ir.Value, before: ir.Node) -> ir.Value:
        """Codes as the numbers that they stand for, before any scale."""
        if node.op_type in ("DecodeInt", "DecodeFloat"):
            return self._new("Cast", [codes], before=before, to=ir.DataType.FLOAT)
        grid = node.op_type == "DecodeGrid"
        table = node.attributes["table"].as_floats() if grid else nodes.array(node.inputs[1])
        place = self._new("Cast", [codes], before=before, to=ir.DataType.INT32)
        held = self._constant(np.array(table, np.float32), None if grid else origin(node.inputs[1]))
        return self._new("Gather", [held, place], before=before, axis=0)

    def _rows(self, table: np.ndarray, rows: ir.Value, before: ir.Node, of: Origin | None) -> ir.Value:
        """Scales or offsets of some rows: one each, or one for each of their groups, then below one another."""
        if table.ndim == 0:
            return self._constant(table, of)
        held = _halved(table if table.ndim > 1 else table[:, None])
        picked = self._new("Gather", [self._constant(held, of), rows], before=before, axis=0)
        if held.dtype == np.float16:
            picked = self._new("Cast", [picked], before=before, to=ir.DataType.FLOAT)
        return self._reshape(picked, (-1, 1), before) if table.ndim > 1 else picked

    def _whole_bytes(self, codes: ir.Value | None, before: ir.Node) -> ir.Value | None:
        """Codes as rows are picked from them: where they are stored two to a byte, as the runtime unpacks them once."""
        packed = (
            self._four_bits(codes) if self.opset >= PACKED_OPSET and nodes.array(codes).dtype.kind in "iu" else codes
        )
        if packed is codes:
            return codes
        if packed not in self.unpacked:
            kind = ir.DataType.INT8 if nodes.array(codes).dtype == np.int8 else ir.DataType.UINT8
            self.unpacked[packed] = self._new("Cast", [packed], before=before, to=kind)
        return self.unpacked[packed]

    def _scaled(self, node: ir.Node, before: ir.Node) -> ir.Value:
        """The whole tensor as ``(codes - offset) · scale + minimum`` or ``levels[codes] · scale``, folded by the
        runtime when it loads.
        """
        codes = node.inputs[0]
        if node.op_type == "DecodeLowRank":
            return self._multiplied(node, before)
        if node.op_type == "DecodeFloat":
            return self._new("Cast", [codes], before=before, to=ir.DataType.FLOAT)
        kind = ir.DataType.FLOAT if node.op_type == "DecodeInt" else ir.DataType.INT32
        shape, axis, group = nodes.array(codes).shape, nodes.attribute(node, "axis"), nodes.attribute(node, "group")
        order = [axis, *(i for i in range(len(shape)) if i != axis)]
        channels = nodes.attribute(node, "channels") if node.op_type == "DecodeTiles" else 1
        if group or channels > 1:  # laid out while they are bytes: the runtime holds every step until all is folded
            whole = self._whole_bytes(codes, before)
            if axis:
                whole = self._new("Transpose", [whole], before=before, perm=order)
            inputs = math.prod(shape) // shape[axis]
            tiles = (shape[axis] // channels, channels, inputs // (group or inputs), group or inputs)
            whole = self._reshape(whole, tiles if channels > 1 else (shape[axis], -1, group), before)
            x = self._new("Cast", [whole], before=before, to=kind)
        else:
            packed = self._four_bits(codes) if self.opset >= PACKED_OPSET else codes
            x = self._new("Cast", [packed], before=before, to=kind)

        def laid(parameter: np.ndarray) -> np.ndarray:
            if channels > 1:
                return parameter.reshape(len(parameter), 1, -1, 1)
            if group:
                return parameter[..., None]
            return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))] if parameter.ndim else [])

        x = self._valued(node, x, laid, before)
        if group or channels > 1:
            x = self._reshape(x, tuple(shape[i] for i in order), before)
            if axis:
                x = self._new("Transpose", [x], before=before, perm=np.argsort(order).tolist())
        return x

    def _valued(
        self, node: ir.Node, x: ir.Value, laid: Callable[[np.ndarray], np.ndarray], before: ir.Node
    ) -> ir.Value:
        """Codes `x` as the numbers that they stand for, their parameters `laid` out against them."""
        if node.op_type == "DecodeInt":
            offset = nodes.offset(node)
            if offset is not None:
                shift = self._constant(laid(nodes.array(offset)).astype(np.float32), origin(offset))
                x = self._new("Sub", [x, shift], before=before)
            for op, part in (("Mul", node.inputs[1]), ("Add", nodes.minimum(node))):
                if part is not None:
                    x = self._new(op, [x, self._part(part, laid(nodes.array(part)), before)], before=before)
        elif node.op_type == "DecodeGrid":
            table = np.array(node.attributes["table"].as_floats(), np.float32)
            x = self._new("Gather", [self._constant(table), x], before=before, axis=0)
            x = self._new(
                "Mul", [x, self._floats(node.inputs[1], laid(nodes.array(node.inputs[1])), before)], before=before
            )
        elif node.op_type == "DecodeTiles":
            tables = np.array(node.attributes["tables"].as_floats(), np.float32)
            held = self._constant(laid(nodes.array(node.inputs[2])), origin(node.inputs[2]))
            choice = self._new("Cast", [held], before=before, to=ir.DataType.INT32)
            half = self._constant(np.array(len(tables) // 2, np.int32))
            x = self._new("Add", [x, self._new("Mul", [choice, half], before=before)], before=before)
            x = self._new("Gather", [self._constant(tables), x], before=before, axis=0)
            x = self._new(
                "Mul", [x, self._floats(node.inputs[1], laid(nodes.array(node.inputs[1])), before)], before=before
            )
        else:
            levels = nodes.array(node.inputs[1])
            if levels.ndim > 1:
                starts = np.arange(0, levels.size, levels.shape[-1], dtype=np.int32).reshape(levels.shape[:-1])
                x = self._new("Add", [x, self._constant(laid(starts))], before=before)
            flat = self._constant(levels.reshape(-1).astype(np.float32), origin(node.inputs[1]))
            x = self._new("Gather", [flat, x], before=before, axis=0)
        return x

    def _multiplied(self, node: ir.Node, before: ir.Node) -> ir.Value:
        """The whole tensor as the product of its factors."""
        shape = nodes.shape(node.outputs[0])
        factors = [self._new("Flatten", [x], before=before) for x in node.inputs] if len(shape) > 2 else node.inputs
        product = self._new("MatMul", factors, before=before)
        return self._reshape(product, shape, before) if len(shape) > 2 else product

    def _four_bits(self, codes: ir.Value | None) -> ir.Value | None:
        """The codes two to a byte, where four bits hold them all."""
        whole = nodes.array(codes)
        kind = ml_dtypes.int4 if whole.dtype == np.int8 else ml_dtypes.uint4
        held = ml_dtypes.iinfo(kind)  # type: ignore[no-untyped-call]
        if whole.size == 0 or whole.min() < held.min or whole.max() > held.max:
            return codes
        if codes not in self.packed:
            self.packed[codes] = self._constant(whole.astype(kind), origin(codes))
        return self.packed[codes]

    def _bytes(self, codes: ir.Value | None, before: ir.Node) -> ir.Value | None:
        """Codes as kernels take them, each a byte; two of four bits lie in one until the runtime loads the file."""
        held = None if codes is None else codes.const_value
        if held is None or held.dtype != ir.DataType.INT8 or self.opset < PACKED_OPSET:
            return codes
        packed = self._four_bits(codes)
        return codes if packed is codes else self._new("Cast", [packed], before=before, to=ir.DataType.INT8)

    def _part(self, part: ir.Value, laid: np.ndarray, before: ir.Node) -> ir.Value:
        """Scales or minima as they are `laid` out; of those that are integers a file holds the codes alone."""
        maker = part.producer()
        if maker is not None and maker.op_type == "DecodeInt":
            return self._reshape(self._scaled(maker, before), laid.shape, before)
        return self._floats(part, laid, before)

    def _floats(self, part: ir.Value | None, laid: np.ndarray, before: ir.Node) -> ir.Value:
        """A constant of floats, in half precision where that holds them."""
        held = _halved(laid) if laid.ndim else laid
        constant = self._constant(held, origin(part))
        if held.dtype != np.float16:
            return constant
        return self._new("Cast", [constant], before=before, to=ir.DataType.FLOAT)

    def _reshape(self, x: ir.Value | None, shape: tuple[int, ...], before: ir.Node) -> ir.Value:
        return self._new("Reshape", [x, self._constant(np.array(shape, np.int64))], before=before)

    # weights beside activations of integers

    def _static(self, node: ir.Node, user: ir.Node, position: int, multiply: ir.Node, source: ir.Node) -> None:
        axis, scale, of_scale = nodes.attribute(node, "axis"), nodes.array(node.inputs[1]), origin(node.inputs[1])
        bias_user, bias_position = nodes.bias(multiply)
        if bias_user is not None and self.integer_bias:
            held = bias_user.inputs[bias_position]
            bias, step = nodes.array(held), nodes.array(source.inputs[1]).astype(np.float32)
            least = _least_scale(bias, step, scale.ndim)
            if np.all(scale >= least):
                steps = (step * scale).astype(np.float32)
                of_steps = product(origin(source.inputs[1]), of_scale)
                whole = self._constant(
                    np.round(bias.astype(np.float64) / steps).astype(np.int32), quotient(origin(held), of_steps)
                )
                decoded = self._dequantized(whole, (steps, of_steps), 0 if steps.ndim else None, bias_user)
                bias_user.replace_input_with(bias_position, decoded)
            if nodes.negative_is_zero(bias_user):
                least = _least_scale(bias.clip(0), step, scale.ndim)  # a bias far under zero may be cut
            scale = np.maximum(scale, least)  # one that stays a float the runtime rounds itself
        user.replace_input_with(position, self._dequantized(node.inputs[0], (scale, of_scale), axis, user))

    def _dequantized(
        self, codes: ir.Value | None, held: tuple[np.ndarray, Origin | None], axis: int | None, before: ir.Node
    ) -> ir.Value:
        scale, of = held
        zero = np.zeros(scale.shape, nodes.array(codes).dtype)  # without a zero point the runtime fuses no Gemm
        inputs = [self._bytes(codes, before), self._constant(scale, of), self._constant(zero)]
        attributes = {} if axis is None or scale.ndim == 0 else {"axis": axis}
        return self._new("DequantizeLinear", inputs, before=before, **attributes)

    def _dynamic(self, node: ir.Node, multiply: ir.Node, source: ir.Node, turned: bool) -> None:
        x = source.inputs[0]
        assert x is not None
        codes_q, x_scale, x_zero = self._quantized(x, source)
        scale = nodes.array(node.inputs[1])
        turned = turned or (multiply.op_type == "Gemm" and nodes.attribute(multiply, "transB") == 1)
        codes = node.inputs[0]
        if turned:
            lone = len(node.outputs[0].uses()) <= 1
            whole = nodes.array(codes)
            codes = (
                self._constant(np.ascontiguousarray(whole.T), transposed(origin(codes)))
                if lone
                else self._new("Transpose", [codes], before=multiply, perm=[1, 0])
            )
        product = self._new("MatMulInteger", [codes_q, self._bytes(codes, multiply), x_zero], before=multiply)
        factor = self._new("Mul", [x_scale, self._constant(scale, origin(node.inputs[1]))], before=multiply)
        cast = self._new("Cast", [product], before=multiply, to=ir.DataType.FLOAT)
        out = self._new("Mul", [cast, factor], before=multiply)
        if multiply.op_type == "Gemm" and len(multiply.inputs) > 2 and multiply.inputs[2] is not None:
            out = self._new("Add", [out, multiply.inputs[2]], before=multiply)
        give_way(multiply.outputs[0], out)

    # values

    def project(self, node: ir.Node) -> None:
        x = node.inputs[0]
        assert x is not None
        if node.op_type == "ProjectIntDynamic":
            in_range = self._dynamic_pair if nodes.attribute(node, "bits") == 8 else self._own_range
            out = x if not node.outputs[0].uses() else in_range(x, node)
        else:
            scale, offset = nodes.array(node.inputs[1]), nodes.array(node.inputs[2])
            key = (x, scale.tobytes(), offset.tobytes())
            if key not in self.projected:
                self.projected[key] = self._pair(x, scale, offset, node)
            out = self.projected[key]
        out.type = out.type or x.type  # torch's translation gives ours none, and an output must have one
        give_way(node.outputs[0], out)

    def _pair(self, x: ir.Value, scale: np.ndarray, offset: np.ndarray, node: ir.Node) -> ir.Value:
        low, high = nodes.attribute(node, "low"), nodes.attribute(node, "high")
        whole = np.iinfo(offset.dtype)
        if high - low < 254:  # fewer bits than the type has: the ends must be cut before
            ends = [self._constant(np.array((end - int(offset)) * float(scale), np.float32)) for end in (low, high)]
            x = self._new("Clip", [x, *ends], before=node)
        assert whole.bits == 8
        if whole.min < 0 and self.unsigned:  # the same steps, from 0 on: kernels take unsigned activations
            offset = (offset.astype(np.int16) - whole.min).astype(np.uint8)
        parameters = [self._constant(scale), self._constant(offset)]
        codes = self._new("QuantizeLinear", [x, *parameters], before=node)
        return self._new("DequantizeLinear", [codes, *parameters], before=node)

    def _rounded(self, node: ir.Node, before: ir.Node) -> ir.Value:
        """A rounded value for a layer without a kernel: right behind Q/DQ the runtime would round its weights itself.

        Cut to the range that it has anyway, so that what gives the value may still run on integers.
        """
        scale, offset = nodes.array(node.inputs[1]), int(nodes.array(node.inputs[2]))
        ends = [np.array(nodes.attribute(node, end) - offset, np.float32) * scale for end in ("low", "high")]
        cut = [self._constant(end.astype(np.float32)) for end in ends]
        return self._new("Clip", [node.outputs[0], *cut], before=before)

    def _own_range(self, x: ir.Value, node: ir.Node) -> ir.Value:
        """Rounded in float to fewer steps, over its own range, than DynamicQuantizeLinear knows."""

        def new(op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
            return self._new(op, inputs, before=node, **attributes)

        top, zero = (self._constant(np.array(n, np.float32)) for n in (2 ** nodes.attribute(node, "bits") - 1, 0))
        low = new("Min", new("ReduceMin", x, keepdims=0), zero)
        high = new("Max", new("ReduceMax", x, keepdims=0), zero)
        step = new("Div", new("Sub", high, low), top)
        scale = new("Where", new("Greater", high, low), step, self._constant(np.array(1, np.float32)))
        offset = new("Clip", new("Round", new("Neg", new("Div", low, scale))), zero, top)
        codes = new("Clip", new("Add", new("Round", new("Div", x, scale)), offset), zero, top)
        return new("Mul", new("Sub", codes, offset), scale)

    def _dynamic_pair(self, x: ir.Value, node: ir.Node) -> ir.Value:
        return self._new("DequantizeLinear", self._quantized(x, node), before=node)

    def _quantized(self, x: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, scale and zero point of a value whose range is found at run time, once for all who read it."""
        if x not in self.quantized:
            made = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
            self.graph.insert_before(before, made)
            for output in made.outputs:
                self._name(output)
            self.quantized[x] = (made.outputs[0], made.outputs[1], made.outputs[2])
        return self.quantized[x]

    # graph

    def _new(self, op: str, inputs: Iterable[ir.Value | None], *, before: ir.Node, **attributes: object) -> ir.Value:
        made = ir.node(op, list(inputs), attributes=attributes)  # type: ignore[arg-type]
        self.graph.insert_before(before, made)
        self._name(made.outputs[0])
        return made.outputs[0]

    def _constant(self, array: np.ndarray, of: Origin | None = None) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes()) if array.nbytes <= _SHARED else None
        if key in self.constants:
            note(self.constants[key], of)
            return self.constants[key]
        self.made += 1
        name = f"constant_{self.made}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)  # type: ignore[union-attr]
        note(value, of)
        self.graph.register_initializer(value)
        if key is not None:
            self.constants[key] = value
        return value

    def _name(self, value: ir.Value) -> None:
        self.made += 1
        value.name = f"value_{self.made}"

    def clean(self) -> None:
        """Drop nodes and initializers that nothing reads any more; what several read comes before all of them."""
        self.graph.sort()
        for node in reversed(list(self.graph)):
            if all(not out.uses() and not out.is_graph_output() for out in node.outputs):
                self.graph.remove(node, safe=True)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]


def _halved(x: np.ndarray) -> np.ndarray:
    """Numbers in half precision, where that holds them exactly."""
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    return half if np.array_equal(x, half.astype(np.float32)) else x


def _least_scale(bias: np.ndarray, step: np.ndarray, axes: int) -> np.ndarray:
    """The smallest scales of weights at which a bias fits into 32 bits, in which the runtime would cut it.

    It is larger than theirs only where weights are all but zero beside their bias. What that changes of a sum is at
    most a 58,000th of the bias for each input; the codes, which the `.lil` file shares, stay.
    """
    most = np.abs(bias) if axes else np.abs(bias).max(initial=0)
    return np.asarray(most / (step.astype(np.float64) * _LARGEST_BIAS), np.float32)
