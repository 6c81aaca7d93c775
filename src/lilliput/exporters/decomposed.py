"""torch's exporter traces every program anew to decompose it; here that is done only where it must be.

That is most of what exporting takes. What nearly every network holds that has no translator (batch norms, pooling to
one place, activations that write over what they read) is decomposed in place, as torch does it. Where a torch
decomposes elsewhere than this one, it goes on so.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

_aten = torch.ops.aten
_MADE_ANEW = frozenset({"linear", "matmul", "conv1d", "conv2d", "conv3d", "layer_norm", "group_norm"})
_ASSERTS = frozenset({_aten._assert_tensor_metadata.default})  # which the exporter takes out
_SHAPES = frozenset(  # composite operators of which torch keeps none, and whose translators are one reshape
    {
        _aten.reshape.default,
        _aten.flatten.using_ints,
        _aten.unflatten.int,
        _aten.contiguous.default,
        _aten.expand_as.default,
    }
)


@contextmanager
def decomposed_where_needed() -> Iterator[None]:
    """Inside, `torch.onnx.export` traces no program anew of which it then has a translator for every call."""
    try:
        from torch.onnx._internal.exporter import _fx_passes
    except ImportError:
        yield
        return
    passes: Any = _fx_passes
    torchs = vars(passes).get("decompose_with_registry")
    if torchs is None:
        yield
        return

    def where_needed(program: ExportedProgram, registry: Any) -> ExportedProgram:
        _decompose(program)
        translated = {known[0].fx_target for known in registry.functions.values()}
        return program if _as_it_is(program, translated) else torchs(program, registry)

    passes.decompose_with_registry = where_needed
    try:
        yield
    finally:
        passes.decompose_with_registry = torchs


# what is decomposed in place


def _decompose(program: ExportedProgram) -> None:
    for node in list(program.graph.nodes):
        if node.target is _aten.batch_norm.default and len(node.args) == 9 and not node.args[5]:
            _to_native(node)
        elif node.target is _aten.adaptive_avg_pool2d.default and list(node.args[1:]) == [[1, 1]]:
            node.target, node.args = _aten.mean.dim, (node.args[0], [-1, -2], True)
        elif node.target is _aten.to.dtype and len(node.args) > 1:
            _to_copy(program, node)
        elif node.target is _aten.rsub.Scalar:
            _of_one_type(node)
        elif _writes_over_its_own(node):
            node.target = _apart(node.target)
    program.graph_module.recompile()


def _to_native(node: Node) -> None:
    """A batch norm by its statistics, as the operator that torch decomposes it to."""
    *tensors, _, momentum, eps, _ = node.args
    with node.graph.inserting_before(node):
        native = node.graph.call_function(
            _aten._native_batch_norm_legit_no_training.default, (*tensors, momentum, eps), name=f"{node.name}_native"
        )
    none = node.meta["val"].new_empty(0)
    native.meta = {**node.meta, "val": (node.meta["val"], none, none)}
    node.target, node.args = operator.getitem, (native, 0)


def _to_copy(program: ExportedProgram, node: Node) -> None:
    """A conversion as a copy of another type; one that changes none is what it was given."""
    given, kind = node.args[:2]
    if isinstance(given, Node) and given.meta["val"].dtype != kind:
        node.target, node.args, node.kwargs = _aten._to_copy.default, (given,), {"dtype": kind}
    elif isinstance(given, Node):
        program.graph_signature.replace_all_uses(node.name, given.name)
        node.replace_all_uses_with(given)
        node.graph.erase_node(node)


def _of_one_type(node: Node) -> None:
    """`1.0 - mask` of whole numbers: they are converted first, for torch finds no operator where it does so itself."""
    given, made = node.args[0], node.meta["val"]
    if isinstance(given, Node) and given.meta["val"].dtype != made.dtype:
        with node.graph.inserting_before(node):
            converted = node.graph.call_function(_aten._to_copy.default, (given,), {"dtype": made.dtype})
        converted.meta = {**node.meta, "val": given.meta["val"].to(made.dtype)}
        node.args = (converted, *node.args[1:])


def _writes_over_its_own(node: Node) -> bool:
    """Whether a call writes over what only it reads, and what is no view of something else."""
    if not isinstance(node.target, OpOverload) or _apart(node.target) is None or not node.args:
        return False
    made = node.args[0]
    if not isinstance(made, Node) or made.op != "call_function" or len(made.users) > 1:
        return False
    if made.target is operator.getitem:
        return (
            isinstance(made.args[0], Node) and made.args[0].target is _aten._native_batch_norm_legit_no_training.default
        )
    return isinstance(made.target, OpOverload) and _gives_memory_of_its_own(made.target)


def _gives_memory_of_its_own(target: OpOverload) -> bool:
    """Whether what an operator gives is never what it was given: a composite one, such as dropout, may not say so."""
    if _composite(target):
        return target._opname in _MADE_ANEW
    return all(one.alias_info is None for one in target._schema.returns)


def _composite(target: OpOverload) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")


def _apart(target: OpOverload) -> Any:
    """The operator that computes the same as one that writes over its first argument alone; None where it is none."""
    name, written = target._opname, [one.alias_info and one.alias_info.is_write for one in target._schema.arguments]
    if target.namespace != "aten" or not name.endswith("_") or name.startswith("_") or written[:1] != [True]:
        return None
    packet = getattr(_aten, name.removesuffix("_"), None)
    return None if any(written[1:]) or packet is None else getattr(packet, target._overloadname, None)


# whether that was all


def _as_it_is(program: ExportedProgram, translated: Container[Any]) -> bool:
    """Whether each call is translated, nothing is written over, and no graph lies within the graph."""
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return False
    return all(_plain(node, translated) for node in program.graph.nodes if node.op not in ("placeholder", "output"))


def _plain(node: Node, translated: Container[Any]) -> bool:
    target = node.target
    if target in _ASSERTS:
        return True
    if node.op != "call_function":
        return False
    if not isinstance(target, OpOverload):
        return target is operator.getitem or target in translated
    kept = not _composite(target) or target in _SHAPES or not any(one.alias_info for one in target._schema.returns)
    return target in translated and kept and not target._schema.is_mutable
