"""An ONNX file as it is read: checked before any work, its nodes as plain data, its tensors as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from torch import Tensor

from lilliput import external
from lilliput.errors import FormatError, InputError
from lilliput.importers.operators.types import tensor_of

OLDEST = 7  # the first opset whose operators broadcast as NumPy does
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Node:
    """One node: names of what it reads and gives, its attributes as Python's own, graphs within it apart."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    graphs: Mapping[str, GraphProto]
    where: str  # for messages

    def input(self, place: int) -> str:
        """The name of an input; nothing for one that is left out."""
        return self.inputs[place] if place < len(self.inputs) else ""


@dataclass(frozen=True)
class File:
    """A file that was checked."""

    path: Path
    model: ModelProto

    @classmethod
    def read(cls, path: str | Path) -> File:
        """Raises InputError for what is no ONNX file, and for tensors that are missing beside it."""
        place = Path(path)
        if not place.is_file():
            raise InputError("there is no such file", where=str(place), next="give the path of an .onnx file")
        try:
            return cls(place, external.read(place))
        except FormatError as error:
            remedy = error.next or "copy it again, or export it again"
            raise InputError(error.what, where=error.where, why=error.why, next=remedy) from None

    @cached_property
    def opset(self) -> int:
        """The version of the standard operators. Raises InputError for one that is not known."""
        known = [one.version for one in self.model.opset_import if one.domain in STANDARD]
        newest = onnx.defs.onnx_opset_version()
        if not known:
            raise InputError("names no opset", where=str(self.path), next="export it again")
        if known[0] > newest:
            raise InputError(
                f"is of opset {known[0]}",
                where=str(self.path),
                why=f"onnx {onnx.__version__} knows those up to {newest}",
                next="install a newer one: pip install -U onnx onnxruntime",
            )
        if known[0] < OLDEST:
            raise InputError(
                f"is of opset {known[0]}",
                where=str(self.path),
                why=f"those before {OLDEST} broadcast otherwise",
                next=f"convert it: onnx.version_converter.convert_version(model, {max(OLDEST, 13)})",
            )
        return int(known[0])

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each value, as far as ONNX can tell without running the file; 0 for a length that varies."""
        try:
            told = onnx.shape_inference.infer_shapes(self.model).graph
        except Exception:  # over 2 GB, or a file that its checker does not like: it is only a hint
            told = self.model.graph
        types = {one.name: one.type.tensor_type for one in (*told.input, *told.value_info, *told.output)}
        return {
            name: tuple(axis.dim_value for axis in kind.shape.dim)
            for name, kind in types.items()
            if kind.HasField("shape")
        }

    def nodes(self, graph: GraphProto) -> Iterator[Node]:
        """The nodes of a graph in order."""
        for proto in graph.node:
            yield self._node(proto)

    def _node(self, proto: NodeProto) -> Node:
        where = f"{self.path}: node {proto.name or (proto.output[0] if proto.output else '?')!r}"
        kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
        return Node(
            named(proto),
            proto.name,
            tuple(proto.input),
            tuple(proto.output),
            {one.name: _plain(one, where) for one in proto.attribute if one.type not in kinds},
            {one.name: one.g for one in proto.attribute if one.type == AttributeProto.GRAPH},
            where,
        )

    def tensor(self, proto: TensorProto) -> Tensor:
        """The elements of a tensor of the file."""
        try:
            return tensor_of(external.array(proto, self.path))
        except InputError as error:
            raise InputError(error.what, where=f"{self.path}: tensor {proto.name!r}", next=error.next) from None


def _plain(attribute: AttributeProto, where: str) -> Any:
    """An attribute as Python has it; a tensor as it is stored."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.SparseTensorProto):
        raise InputError("holds a sparse tensor", where=where, next="store it as a dense one")
    return value if isinstance(value, TensorProto | int | float) else list(value)


def named(node: NodeProto) -> str:
    """The operator of a node, after its domain where it is none of the standard's."""
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"


def every(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of the graphs within it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from every(attribute.g)
