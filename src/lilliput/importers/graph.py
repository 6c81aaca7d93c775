"""An ONNX file as a module of torch: read, checked, and written node by node."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from onnx import GraphProto, ValueInfoProto
from torch import Tensor, fx, nn

from lilliput.errors import InputError
from lilliput.importers import names
from lilliput.importers.branches import branch
from lilliput.importers.checks import check
from lilliput.importers.layers import LAYERS
from lilliput.importers.operators.types import torch_type
from lilliput.importers.placing import Held
from lilliput.importers.reading import File, Node
from lilliput.importers.recurrent import recurrent
from lilliput.importers.scope import Scope


def from_onnx(path: str | Path, *, fixed: Mapping[str, Any] | None = None) -> fx.GraphModule:
    """The network in an ONNX file as an ordinary module of torch, to compress, train or look at.

    It takes the file's inputs by their names, and answers with a dict of its outputs. Layers are those of torch, under
    paths made of the file's own names; the rest is code, which `print(module.code)` shows. Axes without a length in the
    file vary (`module.meta["dynamic"]`), and a task takes them so. `fixed` are inputs that are always the same: they
    become part of the network, and branches that depend on them are decided.

    Raises InputError for a file that cannot be read, an opset that is not known, tensors that are missing beside it,
    and operators that torch has not: custom ones, those on integers, and trees of scikit-learn.

    >>> import tempfile
    >>> from onnx import helper, numpy_helper, save
    >>> weight = numpy_helper.from_array(torch.randn(4, 2).numpy(), "dense.weight")
    >>> inputs = [helper.make_tensor_value_info("x", 1, ["batch", 4])]
    >>> outputs = [helper.make_tensor_value_info("y", 1, ["batch", 2])]
    >>> node = helper.make_node("MatMul", ["x", "dense.weight"], ["y"])
    >>> file = helper.make_model(helper.make_graph([node], "net", inputs, outputs, [weight]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(file, f"{folder}/net.onnx")
    ...     net = from_onnx(f"{folder}/net.onnx")
    >>> net.dense, net(torch.ones(3, 4))["y"].shape
    (Linear(in_features=4, out_features=2, bias=False), torch.Size([3, 2]))
    """
    file = File.read(path)
    check(file)
    graph, given = file.model.graph, dict(fixed or {})
    scope = Scope(file, graph, Held())
    inputs = [one for one in graph.input if one.name not in scope.known]
    unknown = [name for name in given if name not in [one.name for one in inputs]]
    if unknown:
        raise InputError(
            f"has no input {unknown[0]!r}", where=str(path), next=f"it has {', '.join(one.name for one in inputs)}"
        )
    free = [one for one in inputs if one.name not in given]
    for one in inputs:
        scope.known[one.name] = _fixed(one, given[one.name]) if one.name in given else scope.placeholder(one.name)
    write(scope)
    answers = {one.name: scope.argument(one.name, "Tensor", _END) for one in graph.output}
    module = scope.finished(answers, "FromOnnx")
    module.meta["dynamic"] = {str(scope.known[one.name].target): _open(one) for one in free}
    _tell(file)
    return module


def open_axes(module: nn.Module) -> dict[str | int, dict[int, str]] | None:
    """The axes that vary of a module that came as a file, by position and by name; None for any other module.

    >>> open_axes(nn.Linear(1, 1)) is None
    True
    """
    told = module.meta.get("dynamic") if isinstance(module, fx.GraphModule) else None
    return None if told is None else {**told, **dict(enumerate(told.values()))}


_END = Node("output", "", (), (), {}, {}, "the outputs")


def imported(file: File, graph: GraphProto, held: Held, outer: Scope) -> tuple[Scope, fx.GraphModule]:
    """A graph within another as a module that answers with a tuple; its scope tells what it takes."""
    scope = Scope(file, graph, held, outer)
    write(scope)
    answers = tuple(scope.argument(one.name, "Tensor", _END) for one in graph.output)
    return scope, scope.finished(answers, "Branch")


def write(scope: Scope) -> None:
    """Write all nodes of a graph."""
    for node in scope.nodes:
        scope.run(node, _SPECIAL)


def _constant(scope: Scope, node: Node) -> Any:
    ((kind, value),) = node.attributes.items()
    if kind == "value":
        return scope.file.tensor(value)
    if "string" in kind:
        raise InputError("holds text", where=node.where, next="leave text to the program around the network")
    return torch.tensor(value, dtype=torch.float32 if "float" in kind else torch.int64)


def _shape(scope: Scope, node: Node) -> Any:
    """The shape of a list of numbers is no more than its length."""
    return None if node.attributes else scope.length(node, 0)


def _dropout(scope: Scope, node: Node) -> Any:
    training = scope.constant(node, 2)
    if scope.is_computed(node, 2) or (training is not None and bool(training)):
        raise InputError("drops values at random", where=f"{node.where} (Dropout)", next="export it for inference")
    return scope.of(node.input(0))


_SPECIAL: dict[str, Callable[[Scope, Node], Any]] = {
    **LAYERS,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    "Constant": _constant,
    "Dropout": _dropout,
    "If": branch,
    "Shape": _shape,
}


def _fixed(told: ValueInfoProto, value: Any) -> Tensor:
    kind = torch_type(told.type.tensor_type.elem_type)
    return torch.as_tensor(value).detach().to(kind, copy=True)


def _open(told: ValueInfoProto) -> dict[int, str]:
    """The axes of an input that have no length, with their names."""
    axes = enumerate(told.type.tensor_type.shape.dim)
    called = names.argument(told.name)
    return {
        i: names.argument(axis.dim_param) if axis.dim_param.strip("?") else f"{called}_{i}"
        for i, axis in axes
        if axis.dim_value <= 0
    }


def _tell(file: File) -> None:
    """Say that weights were integers, where they were."""
    count = sum(node.op_type in ("DequantizeLinear", "MatMulNBits") for node in file.model.graph.node)
    if count:
        warnings.warn(
            f"{file.path}: {count} weights are integers with scales; they are taken for the floats that they stand for",
            stacklevel=3,
        )
