"""What a file may hold, told before any work."""

from __future__ import annotations

from onnx import NodeProto

from lilliput.errors import InputError
from lilliput.importers.operators.table import OPERATORS, found
from lilliput.importers.reading import STANDARD, File, every, named

BUILT_IN = frozenset({"Constant", "If", "LSTM", "GRU", "RNN"})  # that no function of tensors computes
_INTEGERS = frozenset(
    {
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)
_LOOPS = frozenset({"Loop", "Scan", "SequenceMap"})
_BY_VALUE = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress"})


def check(file: File) -> None:
    """Raise InputError for the first node that cannot be computed by torch, with how many there are of its kind."""
    for function in file.model.functions:
        raise InputError(
            f"holds a function of its own, {function.name!r}",
            where=str(file.path),
            next="inline it: onnx.inliner.inline_local_functions(model)",
        )
    nodes = list(every(file.model.graph))
    opset = file.opset if any(node.domain in STANDARD for node in nodes) else 1
    for node in nodes:
        if not _known(node, opset):
            count = sum((other.op_type, other.domain) == (node.op_type, node.domain) for other in nodes)
            raise _refusal(node, file, f"1 of {count}" if count > 1 else "")


def _known(node: NodeProto, opset: int) -> bool:
    return named(node) in BUILT_IN or found(named(node), opset) is not None


def _refusal(node: NodeProto, file: File, many: str) -> InputError:
    op = node.op_type
    where = f"{file.path}: node {node.name or (node.output[0] if node.output else '?')!r}"
    what = f"operator {op!r}{f' of {node.domain!r}' if node.domain not in STANDARD else ''} has no equal in torch"
    if node.domain == "ai.onnx.ml":
        why, next = "trees, tables and text of scikit-learn are no network", "export the network inside alone"
    elif op in _INTEGERS or "Quantize" in op or "QLinear" in op or "Integer" in op:
        what = f"operator {op!r} computes on integers"
        why, next = "the file was quantized already", "give the file in float32 that it was made of"
    elif node.domain not in STANDARD:
        why, next = "only the standard operators are known here", "export it without operators of a runtime's own"
    elif op in _LOOPS:
        why, next = "how often it runs is known only when it runs", "export it unrolled, or the part inside alone"
    elif op in _BY_VALUE:
        why, next = "how much it gives depends on values", "leave it to the program around the network"
    else:
        why = f"{len(OPERATORS) + len(BUILT_IN)} operators of the standard are known here"
        next = "cut the file before it: onnx.utils.extract_model"
    return InputError(what, where=where, why=f"{many}; {why}" if many else why, next=next)
