"""Hostile ONNX inside a file: other people's files, code of its own, graphs without end, and more memory than there is.

Whatever is not refused beforehand must fail in the runtime as an error of ours.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import golden
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import lilliput
from lilliput.file.container import Reader
from lilliput.file.graph import restored

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
GOLDEN = golden.MODULE.read_bytes()
OPSET = [helper.make_opsetid("", 20)]


def graph_of(
    *nodes: onnx.NodeProto,
    inits: Any = (),
    inputs: Any = None,
    outputs: Any = None,
    runtimes_own: bool = False,
    **more: Any,
) -> onnx.ModelProto:
    """x, two floats, to y."""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])] if inputs is None else inputs
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)] if outputs is None else outputs
    graph = helper.make_graph(nodes, "g", given, made, list(inits), **more)
    opsets = [*OPSET, helper.make_opsetid("com.microsoft", 1)] if runtimes_own else OPSET
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def file(model: onnx.ModelProto | bytes, tensors: Tensors | None = None, **described: Any) -> bytes:
    """A `.lil` with this graph."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    graph = {"format": "onnx", "target": "onnxruntime", "tensor": ":graph", "initializers": {}, "inputs": [0]}
    held = {**(tensors or {}), ":graph": ("uint8", (len(data),), data)}
    return forge.module(held, graph={**graph, "outputs": "tensor", **described})


def packed(computed: str = "", **changed: Any) -> onnx.ModelProto:
    """x through a product with packed codes, of 16 inputs and 3 outputs, whose tensors may not fit together."""
    held: dict[str, Any] = {
        "codes": np.ones((3, 1, 8), np.uint8),
        "scales": np.ones((3, 1), np.float32),
        "zeros": np.ones((3, 1), np.uint8),
        "places": None,
        "bias": np.ones(3, np.float32),
    }
    told = {"K": 16, "N": 3, "bits": 4, "block_size": 16, "accuracy_level": 4}
    held.update({name: x for name, x in changed.items() if name in held})
    told.update({name: x for name, x in changed.items() if name in told})
    given = [name if x is not None else "" for name, x in held.items()]
    before = [node("Identity", computed, out="computed")] if computed else []
    return graph_of(
        *before,
        node("Concat", *["x"] * 8, out="row", axis=0),
        node(
            "MatMulNBits",
            "row",
            *["computed" if name == computed and computed else name for name in given],
            domain="com.microsoft",
            **told,
        ),
        inits=[numpy_helper.from_array(x, n) for n, x in held.items() if x is not None],
        runtimes_own=True,
    )


def rebuilt(data: bytes) -> bytes:
    return restored(Reader(data))


def run(data: bytes) -> Any:
    """Open the file, and run it on two ones."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.lil"
        path.write_bytes(data)
        return lilliput.open(path, threads=1)(torch.ones(2))


def node(op: str, *inputs: str, out: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [out], **attributes)


def integers(name: str, *numbers: int) -> TensorProto:
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def tensor(dims: list[int], data: bytes = b"", kind: int = TensorProto.FLOAT, name: str = "w") -> TensorProto:
    made = TensorProto(name=name, data_type=kind)
    made.dims.extend(dims)
    if data:
        made.raw_data = data
    return made


def elsewhere(path: str, marked: bool = True) -> TensorProto:
    """A tensor whose data lies in another file."""
    made = tensor([2])
    if marked:
        made.data_location = TensorProto.EXTERNAL
    for key, value in (("location", path), ("offset", "0"), ("length", "8")):
        made.external_data.add(key=key, value=value)
    return made


def changed(change: Callable[[onnx.ModelProto], Any]) -> bytes:
    model = graph_of(RELU)
    change(model)
    return file(model)


def sparse(values: TensorProto, dims: list[int]) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=values, indices=integers("i", 0), dims=dims)


def nested(depth: int) -> bytes:
    """Messages of protobuf within one another: a graph in an attribute in a node in a graph …"""
    data = b""
    for field in (*[1, 6, 5] * depth, 1, 7):  # a node in a graph in an attribute, …, in a graph in a model
        data = bytes((field << 3 | 2,)) + varint(len(data)) + data
    return data


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """The first that runs imports the runtime."""
    run(file(graph_of(RELU)))


RELU = node("Relu", "x")
ADD = node("Add", "x", "w")
INNER = helper.make_graph(
    [node("Identity", "x", out="z")], "inner", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
)
TRUE = numpy_helper.from_array(np.array(True), "c")
PLACES = ["/etc/passwd", "../../../etc/passwd", "net.lil", "//host/share/x", "C:\\x", "/dev/zero", "/proc/self/mem"]

REFUSED: dict[str, tuple[bytes, str]] = {
    **{f"data in {path}": (file(graph_of(ADD, inits=[elsewhere(path)])), "data in another file") for path in PLACES},
    "data elsewhere, unmarked": (file(graph_of(ADD, inits=[elsewhere("x", False)])), "data in another file"),
    "data elsewhere, in a constant": (
        file(graph_of(node("Constant", out="w", value=elsewhere("/etc/passwd")), ADD)),
        "data in another file",
    ),
    "data elsewhere, in a list of tensors": (
        file(graph_of(node("Relu", "x", more=[elsewhere("/etc/passwd")]))),
        "data in another file",
    ),
    "data elsewhere, in a sparse tensor": (
        file(graph_of(node("Constant", out="w", sparse_value=sparse(elsewhere("/etc/passwd"), [2])), ADD)),
        "a sparse tensor within",
    ),
    "a sparse tensor of terabytes": (
        file(graph_of(node("Constant", out="w", sparse_value=sparse(integers("v", 1), [1 << 40])), ADD)),
        "a sparse tensor within",
    ),
    "sparse initializers": (
        file(graph_of(ADD, sparse_initializer=[sparse(integers("w", 1), [1 << 40])])),
        "sparse initializers",
    ),
    "an operator of one's own": (file(graph_of(node("Run", "x", domain="evil"))), "domain 'evil'"),
    "an operator of the runtime's own": (
        file(graph_of(node("Gelu", "x", domain="com.microsoft"))),
        "domain 'com.microsoft'",
    ),
    "packed codes that are computed": (file(packed(computed="codes")), "codes or scales that it computes"),
    "packed scales that are computed": (file(packed(computed="scales")), "codes or scales that it computes"),
    "an operator for training": (file(graph_of(node("X", "x", domain="ai.onnx.preview.training"))), "domain"),
    "a domain of one's own": (
        changed(lambda model: model.opset_import.add(domain="evil", version=1)),
        "another domain",
    ),
    "functions": (changed(lambda model: model.functions.add(name="F", domain="f")), "functions of its own"),
    "training": (changed(lambda model: model.training_info.add().algorithm.CopyFrom(INNER)), "for training"),
    "If": (file(graph_of(node("If", "c", then_branch=INNER, else_branch=INNER), inits=[TRUE])), "a graph within"),
    "Loop": (file(graph_of(node("Loop", "n", "c", "x", body=INNER), inits=[TRUE, integers("n", 1 << 62)])), "within"),
    "Scan": (file(graph_of(node("Scan", "x", body=INNER, num_scan_inputs=1))), "a graph within"),
    "SequenceMap": (file(graph_of(node("SequenceMap", "x", body=INNER))), "a graph within"),
    "a list of graphs": (file(graph_of(node("Relu", "x", bodies=[INNER]))), "a graph within"),
    "negative dims": (file(graph_of(ADD, inits=[tensor([-2])])), "negative size"),
    "two negative dims": (file(graph_of(ADD, inits=[tensor([-2, -1], bytes(8))])), "negative size"),
    "negative dims in a constant": (file(graph_of(node("Constant", out="w", value=tensor([-2])), ADD)), "negative"),
    "strings": (file(graph_of(ADD, inits=[tensor([1], kind=TensorProto.STRING)])), "of type 8"),
    "an unknown type": (file(graph_of(ADD, inits=[tensor([1], kind=999)])), "of type 999"),
    "no type": (file(graph_of(ADD, inits=[tensor([1], kind=0)])), "of type 0"),
    "a sequence comes out": (
        file(
            graph_of(
                node("SequenceConstruct", "x"),
                outputs=[
                    helper.make_value_info(
                        "y", helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
                    )
                ],
            )
        ),
        "something else than tensors",
    ),
    "strings come out": (
        file(
            graph_of(
                node("Cast", "x", to=TensorProto.STRING),
                outputs=[helper.make_tensor_value_info("y", TensorProto.STRING, None)],
            )
        ),
        "a type of its own",
    ),
    "a type that NumPy has not": (
        file(
            graph_of(
                node("Cast", "x", to=TensorProto.BFLOAT16),
                outputs=[helper.make_tensor_value_info("y", TensorProto.BFLOAT16, None)],
            )
        ),
        "a type of its own",
    ),
    "strings go in": (
        file(graph_of(RELU, inputs=[helper.make_tensor_value_info("x", TensorProto.STRING, [2])])),
        "a type of its own",
    ),
    "no ONNX": (file(b"\x80\x04\x95evil"), "cannot be read"),
    "a picture": (file(b"\x89PNG\r\n\x1a\n" + bytes(100)), "cannot be read"),
    "random bytes": (file(np.random.default_rng(0).bytes(1000)), "cannot be read"),
    "half a graph": (file(graph_of(RELU).SerializeToString()[:-3]), "cannot be read"),
    "graphs without end": (file(nested(1000)), "cannot be read"),
    "a message of 2^60 bytes": (file(b"\x3a" + varint(1 << 60)), "cannot be read"),
    "groups that do not close": (file(b"\x3b" * 100_000), "cannot be read"),
}

FLOATS: Tensors = {
    "a": ("float32", (3, 2), bytes(24)),
    "b": ("float32", (2,), bytes(8)),
    "one": ("float32", (1,), bytes(4)),
    "integers": ("int8", (2,), bytes(2)),
    "cube": ("float32", (1, 2, 1), bytes(8)),
}


def filled(reference: Any, dims: list[int] | None = None, name: str = "w", kind: int = TensorProto.FLOAT) -> bytes:
    """A graph with one initializer, given so."""
    return file(graph_of(ADD, inits=[tensor(dims or [2], kind=kind)]), FLOATS, initializers={name: reference})


NO_KIND = "a reference of no known kind"
REFERENCES: dict[str, tuple[bytes, str]] = {
    "a number": (filled(5), NO_KIND),
    "a list": (filled(["tensor", "b"]), NO_KIND),
    "nothing": (filled({}), NO_KIND),
    "two in one": (filled({"tensor": "b", "transposed": "a"}), NO_KIND),
    "an unknown kind": (filled({"command": "b"}), NO_KIND),
    "a tensor that is not there": (filled({"tensor": "c"}), "holds no tensor 'c'"),
    "a tensor that is a list": (filled({"tensor": ["b"]}), "holds no tensor"),
    "a tensor that is an object": (filled({"tensor": {"tensor": "b"}}), "holds no tensor"),
    "the graph itself": (filled({"tensor": ":graph"}), "does not fit together"),
    "the graph itself, as bytes": (filled({"tensor": ":graph"}, [7], kind=TensorProto.UINT8), "does not fit together"),
    "an initializer that is not there": (filled({"tensor": "b"}, name="v"), "no initializer 'v'"),
    "another number of elements": (filled({"tensor": "a"}), "does not fit together"),
    "negative dims": (filled({"tensor": "b"}, [-2]), "negative size"),
    "one negative dim, to be made out": (filled({"tensor": "b"}, [2, -1]), "negative size"),
    "dims of terabytes": (filled({"tensor": "b"}, [1 << 40]), "a graph of over 2 GB"),
    "dims of 2^120": (filled({"tensor": "b"}, [1 << 60, 1 << 60]), "a graph of over 2 GB"),
    "500 MB of dims": (filled({"tensor": "b"}, [125_000_000]), "a graph of 500,000,000 bytes"),
    "numbers that do not fit": (filled({"tensor": "b"}, kind=TensorProto.STRING), "of type 8"),
    "a cube transposed": (filled({"transposed": "cube"}), NO_KIND),
    "a row transposed": (filled({"transposed": "b"}), NO_KIND),
    "a product of one": (filled({"product": ["b"]}), NO_KIND),
    "a product of three": (filled({"product": ["b", "one", "one"]}), NO_KIND),
    "a product of a name": (filled({"product": "ab"}), "different shapes|does not fit"),
    "a product of integers": (filled({"product": ["integers", "one"]}), "other numbers than float32"),
    "a product of other shapes": (filled({"product": ["a", "b"]}, [3, 2]), "different shapes"),
    "a product of nothing": (filled({"product": None}), "does not fit together"),
    "a quotient of one": (filled({"quotient": ["b"]}), NO_KIND),
    "a quotient by more": (filled({"quotient": ["b", "a", "one"]}, [3, 2]), NO_KIND),
}


def described(**more: Any) -> bytes:
    return file(graph_of(RELU), **more)


def deep(depth: int) -> Any:
    return {"tuple": [deep(depth - 1)]} if depth else "tensor"


UNKNOWN = "described in no known way"
DESCRIBED: dict[str, tuple[bytes, str]] = {
    "no graph": (forge.module({}, graph=None, no_graph="none was made"), "none was made"),
    "a graph that is a list": (forge.module({}, graph=[]), UNKNOWN),
    "a graph that is a number": (forge.module({}, graph=5), UNKNOWN),
    "a graph without fields": (forge.module({}, graph={}), UNKNOWN),
    "a graph of another format": (described(format="torchscript"), UNKNOWN),
    "a format that is a list": (described(format=["onnx"]), UNKNOWN),
    "no target": (described(target=None), UNKNOWN),
    "a target that is a list": (described(target=["onnxruntime"]), UNKNOWN),
    "a target that is an object": (described(target={}), UNKNOWN),
    "a graph in another tensor": (described(tensor="nothing"), "holds no tensor"),
    "a graph in a list": (described(tensor=[":graph"]), "holds no tensor|cannot be read"),
    "initializers that are a number": (described(initializers=5), "cannot be read"),
    "initializers that are a string": (described(initializers="w"), "cannot be read"),
}
CALLED: dict[str, tuple[bytes, str]] = {
    "inputs that are an object": (described(inputs={}), "how to be called"),
    "inputs that are lists": (described(inputs=[[0]]), "how to be called"),
    "inputs that are true": (described(inputs=[True]), "how to be called"),
    "inputs that are not there": (described(inputs=None), "how to be called"),
    "too many inputs": (described(inputs=[0, 1]), "other inputs"),
    "too few inputs": (described(inputs=[]), "other inputs"),
    "another input": (described(inputs=["x"]), "called with 0"),
    "an input before the first": (described(inputs=[-1]), "called with 0"),
    "outputs that are a list": (described(outputs=["tensor"]), "how to be called"),
    "outputs of another kind": (described(outputs={"object": ["tensor"]}), "how to be called"),
    "outputs with keys that are none": (described(outputs={"dict": [[0.5, "tensor"]]}), "how to be called"),
    "outputs within outputs": (described(outputs=deep(40)), "how to be called|structures within"),
    "too many outputs": (described(outputs={"tuple": ["tensor"] * 2}), "other inputs or outputs"),
    "no outputs": (described(outputs={"tuple": []}), "other inputs or outputs"),
    "another target": (described(target="evil"), "was made for 'evil'"),
    "a target of Python": (described(target="__class__"), "was made for"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_graph_that_could_do_more_than_compute_is_refused(kind: str, refused: Any) -> None:
    data, hint = REFUSED[kind]
    refused(hint, rebuilt, data)
    refused(hint, run, data)


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_reference_without_sense_is_refused(kind: str, refused: Any) -> None:
    data, hint = REFERENCES[kind]
    refused(hint, rebuilt, data)


@pytest.mark.parametrize("kind", DESCRIBED)
def test_a_description_without_sense_is_refused(kind: str, refused: Any) -> None:
    data, hint = DESCRIBED[kind]
    refused(hint, rebuilt, data)
    refused(hint, run, data)


@pytest.mark.parametrize("kind", CALLED)
def test_a_call_without_sense_is_refused(kind: str, refused: Any) -> None:
    data, hint = CALLED[kind]
    refused(hint, run, data)


def test_what_is_forged_here_would_run() -> None:
    assert run(file(recurrent())).shape == (1, 1, 1, 3)
    assert run(file(graph_of(RELU))).tolist() == [1, 1]
    given = tensor([2])
    for reference in ({"tensor": "b"}, {"product": ["b", "one"]}, {"quotient": ["b", "one", "one"]}):
        rebuilt(file(graph_of(ADD, inits=[given]), FLOATS, initializers={"w": reference}))


# What the runtime is left to refuse


def at_once(op: str, *more: str, **attributes: Any) -> onnx.ModelProto:
    """`op` makes something large, of which only the sum is returned."""
    inits = [
        *(integers("large", 1 << 34), integers("zero", 0), integers("one", 1)),
        *(integers("two", 2), integers("pads", 1 << 34, 0)),
        numpy_helper.from_array(np.array(0, np.int64), "from"),
        numpy_helper.from_array(np.array(1 << 34, np.int64), "to"),
        numpy_helper.from_array(np.array(1, np.int64), "by"),
        numpy_helper.from_array(np.ones(1, np.float32), "w"),
    ]
    return graph_of(
        node(op, *more, out="large_one", **attributes),
        node("Cast", "large_one", out="cast", to=TensorProto.FLOAT),
        node("ReduceSum", "cast", out="sum", keepdims=0),
        node("Add", "x", "sum"),
        inits=inits,
    )


def summed(*nodes: onnx.NodeProto, inits: Any = ()) -> onnx.ModelProto:
    """x and the sum of w, whatever its shape."""
    return graph_of(*nodes, node("ReduceSum", "w", out="sum", keepdims=0), node("Add", "x", "sum"), inits=inits)


def opset(*versions: int) -> onnx.ModelProto:
    model = graph_of(RELU)
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid("", version) for version in versions)
    return model


FAILS = "does not load|failed|ONNX Runtime|memory"
LARGE = {
    "ConstantOfShape": at_once("ConstantOfShape", "large"),
    "Expand": at_once("Expand", "w", "large"),
    "Range": at_once("Range", "from", "to", "by"),
    "Tile": at_once("Tile", "x", "large"),
    "Pad": at_once("Pad", "x", "pads"),
    "RandomNormal": at_once("RandomNormal", shape=[1 << 34]),
    "RandomUniform": at_once("RandomUniform", shape=[1 << 62, 1 << 62]),
    "an outer product": graph_of(
        node("ConstantOfShape", "shape", out="column"),
        node("Transpose", "column", out="row"),
        node("MatMul", "column", "row", out="all"),
        node("ReduceSum", "all", out="sum", keepdims=0),
        node("Add", "x", "sum"),
        inits=[integers("shape", 1 << 17, 1)],
    ),
    "ones of ones of ones": graph_of(
        node("Concat", *["x"] * 1000, out="c", axis=0),
        node("Concat", *["c"] * 1000, out="d", axis=0),
        node("Concat", *["d"] * 1000, out="e", axis=0),
        node("ReduceSum", "e", out="s", keepdims=0),
        node("Add", "x", "s"),
    ),
}
UNSOUND = {
    "a circle": graph_of(node("Add", "x", "b", out="a"), node("Relu", "a", out="b"), node("Relu", "b")),
    "a node that reads itself": graph_of(node("Add", "x", "y")),
    "an unknown operator": graph_of(node("System", "x")),
    "two nodes of one output": graph_of(RELU, node("Tanh", "x")),
    "an output that nobody makes": graph_of(node("Relu", "x", out="z")),
    "an input that nobody makes": graph_of(node("Relu", "z")),
    "an opset that is to come": opset(10**6),
    "an opset below zero": opset(-1),
    "no opset": opset(),
    "no graph": onnx.ModelProto(ir_version=9, opset_import=OPSET),
    "an empty initializer of terabytes": summed(inits=[tensor([1 << 40])]),
    "an initializer of fewer bytes": summed(inits=[tensor([1 << 33], bytes(8))]),
    "an initializer of 2^63 - 1": summed(inits=[tensor([(1 << 63) - 1], bytes(8))]),
    "an initializer of 2^124": summed(inits=[tensor([1 << 62, 1 << 62], bytes(8))]),
    "a constant of fewer bytes": summed(node("Constant", out="w", value=tensor([1 << 33], bytes(8)))),
    "a division by zero": graph_of(
        node("Cast", "x", out="i", to=TensorProto.INT64),
        node("Div", "i", "z", out="d"),
        node("Cast", "d", to=TensorProto.FLOAT),
        inits=[integers("z", 0, 0)],
    ),
    "a shape below zero": summed(node("ConstantOfShape", "s", out="w"), inits=[integers("s", -5)]),
}


def recurrent(hidden_size: int = 3, **changed: Any) -> onnx.ModelProto:
    """x through an LSTM of the runtime's own, of 2 inputs and 3 hidden, whose tensors may not fit together."""
    rows = 12
    held: dict[str, Any] = {
        "w": np.ones((1, 2, rows), np.int8),
        "r": np.ones((1, 3, rows), np.int8),
        "b": np.zeros((1, 2 * rows), np.float32),
        "lengths": None,
        "h": None,
        "c": None,
        "p": None,
        "w_scale": np.ones((1, rows), np.float32),
        "w_zero": np.zeros((1, rows), np.int8),
        "r_scale": np.ones((1, rows), np.float32),
        "r_zero": np.zeros((1, rows), np.int8),
    } | changed
    given = [name if x is not None else "" for name, x in held.items()]
    return graph_of(
        node("Reshape", "x", "s", out="steps"),
        node("DynamicQuantizeLSTM", "steps", *given, domain="com.microsoft", hidden_size=hidden_size),
        inits=[integers("s", 1, 1, 2), *(numpy_helper.from_array(x, n) for n, x in held.items() if x is not None)],
        runtimes_own=True,
    )


RECURRENT = {
    "an LSTM of fewer inputs": recurrent(w=np.ones((1, 1, 12), np.int8)),
    "an LSTM of fewer rows": recurrent(r=np.ones((1, 3, 4), np.int8)),
    "an LSTM without biases enough": recurrent(b=np.zeros((1, 3), np.float32)),
    "an LSTM of fewer scales": recurrent(w_scale=np.ones((1, 2), np.float32)),
    "an LSTM without scales": recurrent(r_scale=np.ones((0,), np.float32)),
    "an LSTM of fewer zero points": recurrent(w_zero=np.zeros((1, 2), np.int8)),
    "an LSTM with a smaller state": recurrent(h=np.zeros((1, 1, 1), np.float32)),
    "an LSTM of more steps": recurrent(lengths=np.array([1 << 30], np.int32)),
    "an LSTM of steps below zero": recurrent(lengths=np.array([-5], np.int32)),
    "an LSTM of another size": recurrent(hidden_size=1 << 40),
    "an LSTM of no size": recurrent(hidden_size=0),
}
PACKED = {
    "packed codes of fewer outputs": packed(codes=np.ones((1, 1, 8), np.uint8)),
    "packed codes of fewer inputs": packed(codes=np.ones((3, 1, 4), np.uint8)),
    "packed codes of fewer scales": packed(scales=np.ones((1, 1), np.float32)),
    "packed codes of fewer zeros": packed(zeros=np.ones((1, 1), np.uint8)),
    "packed codes without zeros enough": packed(zeros=np.ones((0,), np.uint8)),
    "packed codes in an order beyond them": packed(places=np.full(16, 1 << 20, np.int32)),
    "packed codes of fewer biases": packed(bias=np.ones(1, np.float32)),
    "packed codes of more inputs": packed(K=1 << 40),
    "packed codes of more outputs": packed(N=1 << 31),
    "packed codes of outputs below zero": packed(N=-3),
    "packed codes of other bits": packed(bits=3),
    "packed codes of more bits": packed(bits=8),
    "packed codes in blocks of none": packed(block_size=0),
    "packed codes in blocks below zero": packed(block_size=-16),
}
RUNS = {
    **RECURRENT,
    **PACKED,
    "an index out of bounds": graph_of(node("Gather", "x", "i"), inits=[integers("i", 1 << 40)]),
    "a shape that does not fit": graph_of(node("Reshape", "x", "s"), inits=[integers("s", 7, 7)]),
}


def outer(dims: tuple[int, int]) -> Callable[[], Any]:
    """A product of a column and a row, of which each is small."""
    tensors: Tensors = {
        "column": ("float32", (dims[0], 1), bytes(4 * dims[0])),
        "row": ("float32", (1, dims[1]), bytes(4 * dims[1])),
    }
    data = file(graph_of(ADD, inits=[tensor([2])]), tensors, initializers={"w": {"product": ["column", "row"]}})
    return lambda: rebuilt(data)


def many_times() -> Any:
    """Two thousand initializers that are one tensor of a megabyte."""
    count = 1 << 20
    inits = [tensor([count], name=f"w{i}") for i in range(500)]
    model = graph_of(node("Sum", *(f"w{i}" for i in range(500))), inits=inits)
    data = model.SerializeToString()
    chunk = b"\1" + b"\2\3\0" * 3 + b"\3\0"
    entries = [
        forge.entry("zeros", "float32", (count,), chunk),
        forge.entry(":graph", "uint8", (len(data),), b"\0" + data),
    ]
    graph = {"initializers": {f"w{i}": {"tensor": "zeros"} for i in range(500)}, "tensor": ":graph"}
    graph |= {"format": "onnx", "target": "onnxruntime"}
    return rebuilt(forge.sealed(forge.index(*entries, kind="module", graph=graph), chunk + b"\0" + data))


CAPPED: dict[str, Callable[[], Any]] = {
    **{
        name: lambda model=model: run(file(model))  # type: ignore[misc]
        for name, model in {**LARGE, **UNSOUND, **RUNS}.items()
    },
    "a product laid out, 1 TB": outer((1 << 19, 1 << 19)),
    "a product laid out, 4 GB": outer((1 << 15, 1 << 15)),
    "one tensor five hundred times": many_times,
}


@pytest.mark.parametrize("kind", ["a product laid out, 1 TB", "a product laid out, 4 GB"])
def test_a_product_is_not_laid_out(kind: str, capped: Any) -> None:
    capped(kind, "different shapes")


def test_one_tensor_under_many_names_is_refused(capped: Any) -> None:
    capped("one tensor five hundred times", "a graph of over|a graph of 2,097,152,000 bytes")


@pytest.mark.parametrize("kind", UNSOUND)
def test_an_unsound_graph_does_not_load(kind: str, capped: Any) -> None:
    capped(kind, FAILS)


@pytest.mark.parametrize("kind", [*LARGE, *RUNS])
def test_a_graph_that_fails_in_a_run_is_an_error_of_ours(kind: str, capped: Any) -> None:
    capped(kind, FAILS, mb=1024)


def test_no_environment_is_asked_by_a_graph() -> None:
    """A model may hold settings for the runtime; it is to look at them only if told so."""
    assert os.environ.get("ORT_LOAD_CONFIG_FROM_MODEL") in (None, "0")
