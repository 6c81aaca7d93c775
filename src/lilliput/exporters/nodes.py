"""What the nodes of a graph say of weights, ranges and biases, as `lower` asks them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from lilliput.encodings.integer import decode_int

DOMAIN = "lilliput"  # of the nodes that stand for encodings until they are lowered
RUNTIME = "com.microsoft"  # of ONNX Runtime's own operators
_MULTIPLIES = ("Conv", "Gemm", "MatMul")


def integers(value: ir.Value) -> tuple[ir.Value, np.ndarray] | None:
    """Codes, and scale ([] | [outputs]), of a tensor that integer kernels take beside ranges found at run time."""
    node = value.producer()
    if node is None or node.domain != DOMAIN or not scaled_by_output(node) or shifted(node):
        return None
    assert node.inputs[0] is not None
    return node.inputs[0], array(node.inputs[1]).astype(np.float32)


def negative_is_zero(node: ir.Node) -> bool:
    """Whether all that reads what a node gives takes what is under zero for zero."""
    users = [user for user, _ in node.outputs[0].uses()]
    return bool(users) and all(user.op_type == "Relu" or _clips_to_zero(user) for user in users)


def _clips_to_zero(node: ir.Node) -> bool:
    low = node.inputs[1] if node.op_type == "Clip" and len(node.inputs) > 1 else None
    known = None if low is None else ir.convenience.get_const_tensor(low)
    return known is not None and float(known.numpy()) >= 0


def scaled_by_output(node: ir.Node) -> bool:
    """Whether a tensor is integers with a scale for each output or one for all, as integer kernels take it."""
    if node.op_type != "DecodeInt" or attribute(node, "group") or array(node.inputs[0]).itemsize > 1:
        return False
    return attribute(node, "axis") == 0 or array(node.inputs[1]).ndim == 0


def takes_dynamic(multiply: ir.Node, source: ir.Node) -> bool:
    """Whether a multiplication runs on integers whose range is found at run time: of 8 bits, and a convolution would be
    slower.
    """
    eight = source.op_type == "ProjectIntDynamic" and attribute(source, "bits") == 8
    return eight and multiply.op_type != "Conv"


def multiply(user: ir.Node, position: int) -> tuple[ir.Node | None, bool]:
    """The multiplication that a weight goes into, and whether it is transposed on the way."""
    if user.op_type in _MULTIPLIES and position == 1:
        return user, False
    uses = user.outputs[0].uses() if user.op_type == "Transpose" else []
    if len(uses) == 1:
        after, where = next(iter(uses))
        if after.op_type == "MatMul" and where == 1:
            return after, True
    return None, False


def bias(multiply: ir.Node) -> tuple[ir.Node | None, int]:
    """The node and the input that hold the constant added to a product."""
    if multiply.op_type in ("Conv", "Gemm"):
        held = multiply.inputs[2] if len(multiply.inputs) > 2 else None
        return (multiply, 2) if held is not None and held.const_value is not None else (None, 0)
    uses = list(multiply.outputs[0].uses())
    if len(uses) == 1 and uses[0][0].op_type == "Add":
        add, position = uses[0]
        other = add.inputs[1 - position]
        if other is not None and other.const_value is not None and len(other.const_value.shape) == 1:
            return add, 1 - position
    return None, 0


def give_way(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be read wherever `old` is, and be what it was: an output of a graph has a type and a shape."""
    new.type, new.shape = new.type or old.type, new.shape or old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def array(value: ir.Value | None) -> np.ndarray:
    """What a part of an encoding holds; one that is encoded itself is decoded, as the module does it."""
    assert value is not None
    maker = value.producer()
    if maker is not None and maker.op_type == "DecodeFloat":
        return array(maker.inputs[0]).astype(np.float32)
    if maker is not None and maker.op_type == "DecodeExponent":
        return np.exp2(array(maker.inputs[0]).astype(np.float32) - 127)
    if maker is not None and maker.op_type == "DecodeInt":
        held = [None if part is None else torch.from_numpy(array(part).copy()) for part in maker.inputs]
        parts = (*held, None, None)[:4]
        decoded: np.ndarray = decode_int(*parts, attribute(maker, "axis"), attribute(maker, "group")).numpy()
        return decoded
    assert value.const_value is not None, "a part of an encoding must be a constant"
    return value.const_value.numpy()


def shape(value: ir.Value | None) -> tuple[int, ...]:
    """Of a weight or a part of one, which is known."""
    assert value is not None and value.shape is not None
    return tuple(int(n) for n in value.shape.numpy())


def offset(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def minimum(node: ir.Node) -> ir.Value | None:
    """Of a `DecodeInt`, what is added to the scaled codes."""
    return node.inputs[3] if len(node.inputs) > 3 else None


def shifted(node: ir.Node) -> bool:
    """Whether the code 0 means something else than zero."""
    return offset(node) is not None or (node.op_type == "DecodeInt" and minimum(node) is not None)


def attribute(node: ir.Node, name: str) -> int:
    held = node.attributes.get(name)
    return 0 if held is None else held.as_int()
