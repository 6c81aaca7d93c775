"""Files as exporters write them: layers of torch under the file's names, and the runtime's answers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from compared import close
from files import Array, answered, file, node
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import lilliput as lp
from lilliput.errors import InputError
from lilliput.targets import OnnxRuntime

RNG = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def agrees(path: Path, *, fixed: dict[str, Any] | None = None, **given: Array) -> nn.Module:
    """Import a file, and hold its answers against the runtime's."""
    net = lp.formats.from_onnx(path, fixed=fixed)
    expected = answered(path, {**given, **{name: np.array(value) for name, value in (fixed or {}).items()}})
    with torch.no_grad():
        found = net(**{name: torch.from_numpy(x.copy()) for name, x in given.items()})
    assert list(found) == list(expected)
    for name, right in expected.items():
        assert found[name].numpy().dtype == right.dtype
        close(found[name], torch.from_numpy(right), msg=name)
    return net


def convolutional(path: Path, batch: Any = "batch") -> Path:
    """As torch's older exporter writes it: names of parameters, a flattening of computed shape."""
    tensors = {"conv.weight": floats(8, 3, 3, 3), "conv.bias": floats(8), "head.weight": floats(5, 8 * 16)}
    tensors |= {"head.bias": floats(5), "zero": np.array(0, np.int64), "axis": whole(0), "rest": whole(-1)}
    tensors |= {name: np.abs(floats(8)) + 0.5 for name in ("bn.weight", "bn.bias", "bn.mean", "bn.var")}
    nodes = [
        node("Conv", "x conv.weight conv.bias", "c", pads=[1, 1, 1, 1], kernel_shape=[3, 3], strides=[2, 2]),
        node("BatchNormalization", "c bn.weight bn.bias bn.mean bn.var", "n"),
        node("Relu", "n", "r"),
        node("Shape", "r", "s"),
        node("Gather", "s zero", "b", axis=0),
        node("Unsqueeze", "b axis", "b1"),
        node("Concat", "b1 rest", "to", axis=0),
        node("Reshape", "r to", "flat"),
        node("Gemm", "flat head.weight head.bias", "logits", transB=1),
    ]
    return file(path, nodes, {"x": [batch, 3, 8, 8]}, ["logits"], tensors)


def test_layers_are_torchs_under_the_files_names(tmp_path: Path) -> None:
    net = agrees(convolutional(tmp_path / "net.onnx"), x=floats(3, 3, 8, 8))
    kinds = {name: type(module) for name, module in net.named_children()}
    assert kinds == {"conv": nn.Conv2d, "bn": nn.BatchNorm2d, "head": nn.Linear}
    assert [name for name, _ in net.named_parameters()][:2] == ["conv.weight", "conv.bias"]


def test_it_is_compressed_pruned_saved_and_loaded(tmp_path: Path) -> None:
    path = convolutional(tmp_path / "net.onnx")
    batches = [torch.from_numpy(floats(4, 3, 8, 8)) for _ in range(3)]
    task, quick = lp.Task(lp.formats.from_onnx(path), calibrate=batches), OnnxRuntime(seconds=0)
    small = lp.compress(task, target=quick)
    onnx_file = small.export(tmp_path / "small.onnx")
    found = answered(onnx_file, {"x": batches[0].numpy()})
    close(torch.from_numpy(next(iter(found.values()))), small.model(batches[0])["logits"].detach(), share=0.05)
    again = lp.load(small.save(tmp_path / "net.lil"), into=lp.formats.from_onnx(path))
    assert torch.equal(again(batches[0])["logits"], small.model(batches[0])["logits"])
    pruned = lp.apply(task, lp.Recipe([lp.Prune("channels", 0.5)]))
    assert pruned.conv.weight.shape == (4, 3, 3, 3) and pruned.head.weight.shape == (5, 64)


def test_axes_vary_as_the_file_says(tmp_path: Path) -> None:
    open_, closed = (lp.formats.from_onnx(convolutional(tmp_path / "net.onnx", batch)) for batch in ("samples", 2))
    assert open_.meta["dynamic"] == {"x": {0: "samples"}} and closed.meta["dynamic"] == {"x": {}}
    example = torch.from_numpy(floats(2, 3, 8, 8))
    for net, first in ((open_, "samples"), (closed, 2)):
        built = onnx.load(lp.export(tmp_path / "out.onnx", net, example))
        axis = built.graph.input[0].type.tensor_type.shape.dim[0]
        assert (axis.dim_param or axis.dim_value) == first


def test_weights_in_constants_and_a_sum_are_one_layer(tmp_path: Path) -> None:
    held = {name: numpy_helper.from_array(x, name) for name, x in (("w", floats(6, 4)), ("b", floats(4)))}
    nodes = [node("Constant", "", name, value=tensor) for name, tensor in held.items()]
    nodes += [node("MatMul", "x w", "p"), node("Add", "p b", "y")]
    net = agrees(file(tmp_path / "net.onnx", nodes, {"x": ["n", 6]}, ["y"], {}), x=floats(3, 6))
    (layer,) = (module for module in net.modules() if isinstance(module, nn.Linear))
    assert layer.bias is not None and sum(p.numel() for p in net.parameters()) == 28


def test_a_table_that_is_read_and_multiplied_by_is_tied(tmp_path: Path) -> None:
    nodes = [
        node("Gather", "table ids", "e", axis=0),
        node("Transpose", "table", "turned", perm=[1, 0]),
        node("MatMul", "e turned", "y"),
    ]
    kinds = {"ids": TensorProto.INT64}
    path = file(tmp_path / "net.onnx", nodes, {"ids": ["n"]}, ["y"], {"table": floats(9, 4)}, kinds=kinds)
    net = agrees(path, ids=np.array([1, -1, 8]))
    assert len(list(net.parameters())) == 1


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers(op: str, direction: str, tmp_path: Path) -> None:
    ways, rows = 1 + (direction == "bidirectional"), {"LSTM": 20, "GRU": 15, "RNN": 5}[op]
    tensors = {"w": floats(ways, rows, 3), "r": floats(ways, rows, 5), "b": floats(ways, 2 * rows)}
    last = "y h c" if op == "LSTM" else "y h"
    told = {"linear_before_reset": 1} if op == "GRU" else {}
    one = node(op, "x w r b", last, hidden_size=5, direction=direction, **told)
    path = file(tmp_path / "net.onnx", [one], {"x": ["t", "n", 3]}, last.split(), tensors)
    net = agrees(path, x=floats(6, 2, 3))
    assert any(isinstance(module, nn.RNNBase) for module in net.modules())


def _sides() -> dict[str, Any]:
    empty = [helper.make_empty_tensor_value_info("out")]
    ways = {"then_branch": "Neg", "else_branch": "Exp"}
    return {
        name: helper.make_graph([helper.make_node(op, ["x"], ["out"])], name, [], empty) for name, op in ways.items()
    }


def test_a_branch_that_shapes_decide(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s first", "length"),
        node("Equal", "length three", "is"),
        node("If", "is", "y", **_sides()),
    ]
    tensors = {"first": np.array(0, np.int64), "three": np.array(3, np.int64)}
    path = file(tmp_path / "net.onnx", nodes, {"x": ["n", 2]}, ["y"], tensors)
    for length in (3, 4):
        agrees(path, x=floats(length, 2))


def test_a_branch_that_an_input_decides_wants_it_fixed(tmp_path: Path) -> None:
    nodes = [node("Equal", "rate usual", "is"), node("If", "is", "y", **_sides())]
    tensors, kinds = {"usual": np.array(16000, np.int64)}, {"rate": TensorProto.INT64}
    path = file(tmp_path / "net.onnx", nodes, {"x": ["n", 2], "rate": []}, ["y"], tensors, kinds=kinds)
    with pytest.raises(lp.errors.InputError, match=r"If_of_y.*takes a branch by the values of an input.*fixed="):
        lp.formats.from_onnx(path)
    for rate in (16000, 8000):
        agrees(path, fixed={"rate": rate}, x=floats(3, 2))


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 21])
def test_what_became_an_input_in_a_later_opset(opset: int, tmp_path: Path) -> None:
    late = opset >= 13
    tensors = {"low": np.array(-0.5, np.float32), "axes": whole(1), "parts": whole(1, 3)} if late else {}
    if opset == 11 or opset == 12:
        tensors = {"low": np.array(-0.5, np.float32)}
    clip = node("Clip", "x low", "c") if opset >= 11 else node("Clip", "x", "c", min=-0.5)
    nodes = [
        clip,
        node("Softmax", "c", "s", axis=1),
        node("Unsqueeze", "s axes", "u") if late else node("Unsqueeze", "s", "u", axes=[1]),
        node("ReduceSum", "u axes", "r") if late else node("ReduceSum", "u", "r", axes=[1]),
        node("Squeeze", "r axes", "q") if late else node("Squeeze", "r", "q", axes=[1]),
        node("Split", "q parts", "a b", axis=1) if late else node("Split", "q", "a b", axis=1, split=[1, 3]),
    ]
    agrees(file(tmp_path / "net.onnx", nodes, {"x": ["n", 4, 3]}, ["a", "b"], tensors, opset), x=floats(2, 4, 3))


def test_halves_stay_halves_and_integers_become_floats(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", "w scale zero", "wf", axis=1), node("MatMul", "x wf", "y")]
    tensors = {
        "w": RNG.integers(-9, 9, (6, 4)).astype(np.int8),
        "scale": np.abs(floats(4)) + 0.1,
        "zero": np.array([1, 0, -2, 3], np.int8),
    }
    path = file(tmp_path / "net.onnx", nodes, {"x": ["n", 6]}, ["y"], tensors)
    with pytest.warns(UserWarning, match="1 weights are integers with scales"):
        agrees(path, x=floats(3, 6))
    kinds = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    tensors = {"w": floats(6, 4).astype(np.float16)}
    path = file(tmp_path / "half.onnx", nodes[1:], {"x": ["n", 6]}, ["y"], {"wf": tensors["w"]}, kinds=kinds)
    assert lp.formats.from_onnx(path)(torch.ones(1, 6).half())["y"].dtype == torch.float16


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("inputs", [64, 72], ids=["whole blocks", "a block cut short"])
def test_what_the_runtimes_own_tool_packed_becomes_floats(tmp_path: Path, symmetric: bool, inputs: int) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    tensors = {"dense.weight": floats(inputs, 24)}
    path = file(tmp_path / "net.onnx", [node("MatMul", "x dense.weight", "y")], {"x": ["n", inputs]}, ["y"], tensors)
    tool = MatMulNBitsQuantizer(onnx.load(path), bits=4, block_size=32, is_symmetric=symmetric)
    tool.process()
    onnx.save(tool.model.model, path)
    with pytest.warns(UserWarning, match="1 weights are integers with scales"):
        net = agrees(path, x=floats(3, inputs))
    layer = net.get_submodule("dense")
    assert isinstance(layer, nn.Linear) and layer.in_features == inputs


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_codes_of_every_kind_become_floats(tmp_path: Path, bits: int) -> None:
    """With a bias, and zero points that are floats where the runtime knows such."""
    shape = {"K": 48, "N": 5, "bits": bits, "block_size": 16}
    tensors = {
        "codes": RNG.integers(0, 256, (5, 3, 2 * bits)).astype(np.uint8),
        "scales": np.abs(floats(5, 3)) + 0.1,
        "zeros": RNG.uniform(0, 2**bits, (5, 3)).astype(np.uint8 if bits == 8 else np.float32),
        "bias": floats(5),
    }
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "codes", "scales", "zeros", "", "bias"], ["y"], domain="com.microsoft", **shape
        )
    ]
    path = file(tmp_path / "net.onnx", nodes, {"x": ["n", 48]}, ["y"], tensors)
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    with pytest.warns(UserWarning, match="1 weights are integers with scales"):
        agrees(path, x=floats(3, 48))


def test_packed_codes_in_an_order_of_their_own_are_refused(tmp_path: Path) -> None:
    tensors = {"codes": np.ones((5, 1, 8), np.uint8), "scales": np.ones((5, 1), np.float32), "g": whole(*range(16))}
    shape = {"K": 16, "N": 5, "bits": 4, "block_size": 16}
    one = helper.make_node("MatMulNBits", ["x", "codes", "scales", "", "g"], ["y"], domain="com.microsoft", **shape)
    path = file(tmp_path / "net.onnx", [one], {"x": ["n", 16]}, ["y"], tensors)
    with pytest.raises(InputError, match="in an order of their own"):
        lp.formats.from_onnx(path)


def test_tensors_that_lie_beside(tmp_path: Path) -> None:
    path = convolutional(tmp_path / "net.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.onnx.data", size_threshold=100)
    net = agrees(path, x=floats(2, 3, 8, 8))
    before = copy.deepcopy(net.state_dict())
    (tmp_path / "net.onnx.data").write_bytes(b"")
    close(dict(net.state_dict()), before)
    with pytest.raises(lp.errors.InputError, match="cut short"):
        lp.formats.from_onnx(path)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(lp.errors.InputError, match=r"the file with its tensors is missing.*keep net.onnx and"):
        lp.formats.from_onnx(path)


def test_smaller_things(tmp_path: Path) -> None:
    """Operators that the standard's own cases do not show alone."""
    nodes = [
        node("Cast", "x", "i", to=TensorProto.INT64),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("CastLike", "i x", "f2"),
        node("Mean", "f f2 x", "m"),
        node("Greater", "m zero", "g"),
        node("Not", "g", "n"),
        node("Where", "n x m", "w"),
        node("Shape", "w", "s"),
        node("ConstantOfShape", "s", "ones", value=numpy_helper.from_array(np.array([2.5], np.float32))),
        node("Gather", "s second", "length"),
        node("Range", "from length step", "r"),
        node("Cast", "r", "rf", to=TensorProto.FLOAT),
        node("Mul", "ones rf", "p"),
        node("LayerNormalization", "p gain", "l", axis=-1),
        node("Add", "l w", "y"),
    ]
    tensors = {"zero": np.array(0, np.float32), "second": np.array(1, np.int64), "gain": floats(7)}
    tensors |= {"from": np.array(0, np.int64), "step": np.array(1, np.int64)}
    net = agrees(file(tmp_path / "net.onnx", nodes, {"x": ["n", 7]}, ["y"], tensors), x=3 * floats(2, 7))
    assert any(isinstance(module, nn.LayerNorm) for module in net.modules())


@pytest.mark.parametrize("scale", [2.0, 1.5])
def test_upsampling_of_old(scale: float, tmp_path: Path) -> None:
    tensors = {"scales": np.array([1, 1, scale, scale], np.float32)}
    path = file(tmp_path / "net.onnx", [node("Upsample", "x scales", "y")], {"x": [1, 2, 4, 4]}, ["y"], tensors, 9)
    agrees(path, x=floats(1, 2, 4, 4))


def test_the_label_that_scikit_learn_looks_up(tmp_path: Path) -> None:
    extractor = helper.make_node("ArrayFeatureExtractor", ["classes", "best"], ["label"], domain="ai.onnx.ml")
    nodes = [node("MatMul", "x w", "y"), node("ArgMax", "y", "best", axis=1), extractor]
    tensors, kinds = {"w": floats(6, 4), "classes": whole(3, 5, 7, 11)}, {"label": TensorProto.INT64}
    path = file(tmp_path / "net.onnx", nodes, {"x": ["n", 6]}, ["label"], tensors, kinds=kinds)
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    onnx.save(model, path)
    agrees(path, x=floats(9, 6))
