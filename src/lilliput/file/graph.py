"""The ONNX graph of a module inside its `.lil`: without its tensors, which it takes from the file's own.

An initializer becomes a reference where a tensor of the file gives the same elements: as it is, converted, transposed,
packed into bytes, as a product of scales, or as a bias divided by one. Which that is, the exporter tells; a reference
is only written where it gives the same bytes. What has no such origin is stored with the graph.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

from lilliput import external
from lilliput.disk import origins_of
from lilliput.entropy import Array
from lilliput.errors import FormatError, LilliputError, reason
from lilliput.external import Held
from lilliput.file.container import Reader, most
from lilliput.file.names import GRAPH

_INLINE = 16  # bytes of an initializer that stays in the graph whatever it is
_SMALL = 4096  # … that stays where nothing gives it
_LARGEST = 2**31 - 1  # bytes of a protobuf
_DOMAINS = ("", "ai.onnx")
_RUNTIMES_OWN = {  # operators of other domains that compute and no more
    "com.microsoft": ("DynamicQuantizeLSTM", "MatMulNBits"),
}
_TYPES = frozenset(
    getattr(onnx.TensorProto, name)
    for name in (
        *("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "BOOL", "INT4", "UINT4"),
        *("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    )
)
_PASSED = _TYPES - {  # in and out of a runtime, through NumPy
    getattr(onnx.TensorProto, name) for name in ("BFLOAT16", "INT4", "UINT4", "UINT64")
}
_NARROW = {np.dtype(ml_dtypes.int4): np.int8, np.dtype(ml_dtypes.uint4): np.uint8}

Reference = dict[str, Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Graph:
    """What a module was built into: the ONNX file, how it is called, and for whom it was made."""

    path: Path
    target: str
    called: Mapping[str, Any]  # how, and how it answers, as plain data
    departure: Mapping[str, float | None] = field(default_factory=dict)  # from the module, on the example


def stripped(graph: Graph, tensors: Arrays) -> tuple[dict[str, Any], dict[str, Array]]:
    """What the header says of a graph, and the tensors to store for it besides `tensors`, those of the module."""
    model = external.read(graph.path)
    told, references, more = _told(graph.path), dict[str, Reference](), dict[str, Array]()
    for tensor in model.graph.initializer:
        x = external.array(tensor, graph.path)
        if x.nbytes <= _INLINE:
            continue
        found = told.get(tensor.name, {"tensor": tensor.name})
        if not _gives(found, tensors, tensor, x):
            if x.nbytes <= _SMALL:
                _hold(tensor, x)
                continue
            name = f"{GRAPH}:{tensor.name}"
            more[name], found = _plain(x), {"tensor": name}
        references[tensor.name] = found
        _empty(tensor)
    check(model, str(graph.path))
    described = {
        "format": "onnx",
        "target": graph.target,
        "tensor": GRAPH,
        "initializers": references,
        **graph.called,
        "departure": {key: x if x is None or np.isfinite(x) else None for key, x in graph.departure.items()},
    }
    more[GRAPH] = np.frombuffer(model.SerializeToString(deterministic=True), np.uint8)
    return described, more


def restored(reader: Reader) -> bytes:
    """The ONNX file whose graph is inside, with all its tensors."""
    model, references = _stored(reader)
    with _sound(reader):
        if _total(model, references) + model.ByteSize() > _LARGEST:
            raise FormatError("a graph of over 2 GB", where=reader.where, next="write it to a file: lilliput export")
        for tensor, read in _sources(model, references, reader):
            tensor.raw_data = numpy_helper.from_array(read()).raw_data
        return bytes(model.SerializeToString(deterministic=True))


def is_large(reader: Reader) -> bool:
    """Whether the tensors of the graph inside lie beside the ONNX file that it is restored to."""
    model, references = _stored(reader)
    with _sound(reader):
        return external.beside([_total(model, references)])


def restore(reader: Reader, path: Path) -> Path:
    """Write the ONNX file whose graph is inside; large tensors lie beside it, and are read one at a time."""
    model, references = _stored(reader)
    with _sound(reader):
        large, held = external.beside([_total(model, references)]), dict[str, Held]()
        for tensor, read in _sources(model, references, reader):
            if large and external.size_of(tensor) > external.SMALL:
                held[tensor.name] = Held(external.size_of(tensor), partial(_write, read))
            else:
                tensor.raw_data = numpy_helper.from_array(read()).raw_data
        external.write(path, model, held)
    return path


def _write(read: Callable[[], Array], file: IO[bytes]) -> None:
    x = read()
    if x.dtype in _NARROW:  # two to a byte
        file.write(numpy_helper.from_array(x).raw_data)
    else:
        file.write(memoryview(np.ascontiguousarray(x).view(np.uint8)))  # type: ignore[arg-type]


def _stored(reader: Reader) -> tuple[onnx.ModelProto, dict[str, Reference]]:
    """The graph inside a file, checked, and where its tensors are to come from."""
    where = f"{reader.where}: graph"
    described = reader.header.get("graph")
    if described is None:
        reason_why = str(reader.header.get("no_graph", ""))
        raise FormatError("has no graph", where=reader.where, why=reason_why, next="load it into its module")
    known = isinstance(described, dict) and described.get("format") == "onnx"
    if not known or not isinstance(described.get("target"), str):
        raise FormatError("is described in no known way", where=where, next="a newer lilliput may know it")
    try:
        references, held = dict(described["initializers"]), reader.read(described["tensor"])
        model = onnx.load_from_string(held.tobytes())
    except FormatError:
        raise
    except Exception as error:  # protobuf's own
        raise FormatError("cannot be read", where=where, why=reason(error)) from None
    check(model, where)
    return model, references


@contextmanager
def _sound(reader: Reader) -> Iterator[None]:
    """Inside, whatever a forged file brings about is told as an error of ours."""
    try:
        yield
    except LilliputError:
        raise
    except Exception as error:  # a forged file can ask for anything
        raise FormatError("does not fit together", where=f"{reader.where}: graph", why=reason(error)) from None


def _total(model: onnx.ModelProto, references: Mapping[str, Reference]) -> int:
    """Bytes of all tensors that are referred to."""
    return sum(_bytes_of(tensor) for tensor in model.graph.initializer if tensor.name in references)


def _sources(
    model: onnx.ModelProto, references: Mapping[str, Reference], reader: Reader
) -> Iterator[tuple[onnx.TensorProto, Callable[[], Array]]]:
    """Each initializer that is referred to, and what reads its elements."""
    total = _total(model, references)
    if total > most(reader.size):  # one tensor may be asked for under any number of names
        raise FormatError(f"a graph of {total:,} bytes in a file of {reader.size:,}", where=reader.where)
    left = dict(references)
    for tensor in model.graph.initializer:
        reference = left.pop(tensor.name, None)
        if reference is not None:
            yield tensor, partial(_read, reference, reader, tensor)
    if left:
        raise FormatError(f"no initializer {min(left)!r}", where=reader.where)


def _read(reference: Reference, reader: Reader, tensor: onnx.TensorProto) -> Array:
    return _elements(_resolved(reference, reader.read), tensor)


def _bytes_of(tensor: onnx.TensorProto) -> int:
    each: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return each * int(prod(tensor.dims))


def _resolved(reference: Any, read: Callable[[str], Array]) -> Array:
    if not isinstance(reference, dict) or len(reference) != 1:
        raise FormatError("a reference of no known kind")
    ((kind, of),) = reference.items()
    if kind == "tensor":
        return read(of)
    if kind == "transposed":
        x = read(of)
        if x.ndim == 2:
            return x.T
    if kind == "packed" and len(of) == 2 and of[1] in (4, 8):
        return _packed(of[0], of[1], read)
    if kind == "product" and len(of) == 2:
        return _product(*map(read, of))
    if kind == "quotient" and len(of) == 3:
        x, by = read(of[0]), _product(*map(read, of[1:]))
        if by.size == 1 or by.shape == x.shape:
            return _quotient(x, by)
    raise FormatError("a reference of no known kind")


def _packed(reference: Any, bits: int, read: Callable[[str], Array]) -> Array:
    if not isinstance(reference, dict) or not reference.keys() <= {"tensor", "transposed"}:
        raise FormatError("packed codes of no known kind")
    x = _resolved(reference, read)
    if x.dtype not in (np.int8, np.uint8) or x.ndim not in (1, 2):
        raise FormatError("packed codes that are none")
    return external.packed_rows(x.reshape(len(x), -1), bits)


def _product(a: Array, b: Array) -> Array:
    if a.dtype != np.float32 or b.dtype != np.float32:
        raise FormatError("a product of other numbers than float32")
    if a.shape != b.shape and 1 not in (a.size, b.size):  # or NumPy would lay one out along the other
        raise FormatError("a product of tensors of different shapes")
    return np.asarray(a * b, np.float32)


def _quotient(x: Array, by: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.round(x.astype(np.float64) / by)


def _elements(x: Array, tensor: onnx.TensorProto) -> Array:
    """The elements of `x` as an initializer of this type and shape has them."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    whole = np.ascontiguousarray(x).reshape(tuple(tensor.dims))
    with np.errstate(over="ignore", invalid="ignore"):
        converted: Array = whole.astype(kind)
    if not np.array_equal(converted.astype(whole.dtype), whole) and not np.isnan(whole.astype(np.float64)).any():
        raise FormatError("an initializer that cannot hold its tensor", where=tensor.name)
    return converted


def _gives(reference: Reference, tensors: Arrays, tensor: onnx.TensorProto, x: Array) -> bool:
    """Whether a reference gives the elements `x` of an initializer, bit for bit."""
    try:
        found = _elements(_resolved(reference, tensors.__getitem__), tensor)
    except (FormatError, KeyError, ValueError):  # of another size, or none of the file's
        return False
    return np.array_equal(found.view(np.uint8), np.ascontiguousarray(x).view(np.uint8))


def _told(path: Path) -> dict[str, Reference]:
    """Where the exporter says that initializers come from; what it does not tell is a tensor of its own name."""
    beside = origins_of(path)
    told: dict[str, Reference] = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    return told


def _plain(x: Array) -> Array:
    return x.astype(_NARROW[x.dtype]) if x.dtype in _NARROW else x


def _hold(tensor: onnx.TensorProto, x: Array) -> None:
    """Let an initializer hold its elements, wherever they lay."""
    _empty(tensor)
    tensor.raw_data = numpy_helper.from_array(np.ascontiguousarray(x)).raw_data


def _empty(tensor: onnx.TensorProto) -> None:
    kept = (tensor.name, tensor.data_type, list(tensor.dims))
    tensor.Clear()
    tensor.name, tensor.data_type = kept[:2]
    tensor.dims.extend(kept[2])


def check(model: onnx.ModelProto, where: str) -> None:
    """Refuse a graph that could do anything but compute: other files, other operators, loops, what the checker refuses.

    A graph is trusted no more than the file it came in.
    """
    known = (*_DOMAINS, *_RUNTIMES_OWN)
    _refuse(any(entry.domain not in known for entry in model.opset_import), "operators of another domain", where)
    _refuse(bool(model.functions), "functions of its own", where)
    _refuse(bool(model.training_info), "graphs for training", where)
    for value in (*model.graph.input, *model.graph.output):
        _refuse(value.type.WhichOneof("value") != "tensor_type", f"something else than tensors, {value.name!r}", where)
        _refuse(value.type.tensor_type.elem_type not in _PASSED, f"tensors of a type of its own, {value.name!r}", where)
    constants = {"", *(tensor.name for tensor in model.graph.initializer)}
    for node in model.graph.node:
        own = node.op_type in _RUNTIMES_OWN.get(node.domain, ())
        computed = own and node.op_type == "MatMulNBits" and not constants.issuperset(_constant(node))
        _refuse(computed, f"codes or scales that it computes, {node.op_type}", where)
        _refuse(node.domain not in _DOMAINS and not own, f"an operator of the domain {node.domain!r}", where)
        for attribute in node.attribute:
            inner = attribute.HasField("g") or len(attribute.graphs) > 0
            _refuse(inner, f"a graph within an operator, {node.op_type}", where)
            sparse = attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors) > 0
            _refuse(sparse, f"a sparse tensor within an operator, {node.op_type}", where)
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                _check_tensor(tensor, where)
    _refuse(len(model.graph.sparse_initializer) > 0, "sparse initializers", where)
    for tensor in model.graph.initializer:
        _check_tensor(tensor, where)


def _constant(node: onnx.NodeProto) -> list[str]:
    """What a product with packed codes has to find in the file: ONNX Runtime 1.31 trusts it where integers flow."""
    level = next((one.i for one in node.attribute if one.name == "accuracy_level"), 0)
    return list(node.input[1:] if level > 1 else node.input[1:2])


def _check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    outside = tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data) > 0
    _refuse(outside, f"data in another file, {tensor.name!r}", where)
    _refuse(tensor.data_type not in _TYPES, f"an initializer of type {tensor.data_type}", where)
    _refuse(any(dim < 0 for dim in tensor.dims), f"an initializer of negative size, {tensor.name!r}", where)


def _refuse(wrong: bool, what: str, where: str) -> None:
    if wrong:
        raise FormatError(f"a graph with {what}", where=where, next="only plain ONNX operators on its own tensors run")
