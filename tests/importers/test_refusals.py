"""What cannot be imported is refused before any work: what, where, why, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from files import file, node
from onnx import helper

import lilliput as lp
from lilliput.errors import InputError

W = {"w": np.ones((2, 2), np.float32)}


def _refused(path: Path, *said: str, **given: Any) -> None:
    with pytest.raises(InputError) as error:
        lp.formats.from_onnx(path, **given)
    assert str(path) in str(error.value) and error.value.next
    for part in said:
        assert part in str(error.value)


def _net(tmp_path: Path, *nodes: Any, opset: int = 17, outputs: str = "y") -> Path:
    return file(tmp_path / "net.onnx", nodes, {"x": ["n", 2]}, outputs.split(), W, opset)


def test_what_is_no_file(tmp_path: Path) -> None:
    _refused(tmp_path / "net.onnx", "there is no such file")
    (tmp_path / "net.onnx").write_bytes(b"no")
    _refused(tmp_path / "net.onnx", "is no sound ONNX file")


@pytest.mark.parametrize(
    ("op", "domain", "said"),
    [
        ("Mine", "com.mine", "operator 'Mine' of 'com.mine' has no equal in torch"),
        ("TreeEnsembleClassifier", "ai.onnx.ml", "trees, tables and text of scikit-learn are no network"),
        ("Loop", "", "how often it runs is known only when it runs"),
        ("NonZero", "", "how much it gives depends on values"),
        ("QLinearMatMul", "", "the file was quantized already"),
        ("StringNormalizer", "", "operators of the standard are known here"),
    ],
)
def test_operators_that_torch_has_not(op: str, domain: str, said: str, tmp_path: Path) -> None:
    odd = helper.make_node(op, ["x"], ["y"], name="odd", domain=domain)
    _refused(_net(tmp_path, odd), "node 'odd'", said)
    _refused(_net(tmp_path, odd, helper.make_node(op, ["y"], ["z"], domain=domain), outputs="z"), "1 of 2")


def test_a_file_of_trees_alone_names_no_opset(tmp_path: Path) -> None:
    tree = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], name="tree", domain="ai.onnx.ml")
    path = _net(tmp_path, tree)
    model = onnx.load(path)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    onnx.save(model, path)
    _refused(path, "node 'tree'", "scikit-learn")


@pytest.mark.parametrize(("opset", "said"), [(6, "convert it"), (99, "pip install -U onnx onnxruntime")])
def test_opsets_that_are_not_known(opset: int, said: str, tmp_path: Path) -> None:
    path = _net(tmp_path, node("Relu", "x", "y"))
    model = onnx.load(path)
    model.opset_import[0].version = opset
    onnx.save(model, path)
    _refused(path, f"is of opset {opset}", said)


def test_shapes_that_values_decide(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "i", to=7), node("Reshape", "w i", "y")]
    _refused(_net(tmp_path, *nodes), "reads 'i', which is computed of values", "fixed=")


def test_attributes_and_outputs_that_are_not_known(tmp_path: Path) -> None:
    odd = node("Resize", "x - s", "y", antialias=1)
    path = file(tmp_path / "net.onnx", [odd], {"x": ["n", 2]}, ["y"], {"s": np.ones(2, np.float32)})
    _refused(path, "antialias=1 is not known here", "only 0")
    path = file(
        tmp_path / "net.onnx", [node("MaxPool", "x", "y at", kernel_shape=[2])], {"x": [1, 1, 4]}, ["y", "at"], W
    )
    _refused(path, "gives 'at' beside its result")


def test_recurrent_layers_that_torch_has_not(tmp_path: Path) -> None:
    tensors = {"w": np.ones((1, 15, 3), np.float32), "r": np.ones((1, 15, 5), np.float32)}
    gru = node("GRU", "x w r", "y", hidden_size=5)
    path = file(tmp_path / "net.onnx", [gru], {"x": [2, 1, 3]}, ["y"], tensors)
    _refused(path, "is no GRU that torch has", "linear_before_reset=0")


def test_a_fixed_input_that_is_none(tmp_path: Path) -> None:
    _refused(_net(tmp_path, node("Relu", "x", "y")), "has no input 'z'", "it has x", fixed={"z": 1})
