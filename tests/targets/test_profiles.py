"""Who accepts which file: every rule is broken once, and what is built for a profile keeps to it and still computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from subjects import CALIBRATED, Convolutions, Tokens, agree, built, images, sentences
from torch import Tensor, nn
from typer.testing import CliRunner

import lilliput as lp
from lilliput.cli.app import app
from lilliput.errors import ExportError, InputError
from lilliput.exporters.profiles import PROFILES

STATIC = [CALIBRATED]


def convolution(
    *,
    values: Any = np.int8,
    weights: Any = np.int8,
    zero: int = 0,
    weight_zero: int = 0,
    axis: int = 0,
    scales: int = 4,
    bias: bool = False,
    dimensions: int = 2,
    domain: str = "",
    scale_given: bool = False,
    after: bool = True,
) -> bytes:
    """A quantized convolution as a file: Q/DQ before and `after` it, its weight behind a DQ."""
    shape = (4, 3) + (3,) * dimensions
    held = {
        "s": np.float32(0.1),
        "z": values(zero),
        "w": np.full(shape, 90, weights),
        "ws": np.full(scales, 0.1, np.float32) if scales > 1 else np.float32(0.1),
        "wz": np.full(scales, weight_zero, weights) if scales > 1 else weights(weight_zero),
        "b": np.zeros(4, np.int32),
        "bs": np.ones(4, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        *([helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0)] if bias else []),
        helper.make_node("Conv", ["xd", "wd", *(["bd"] if bias else [])], ["c"]),
        helper.make_node("Relu", ["c"], ["r" if after else "y"]),
        *([helper.make_node("QuantizeLinear", ["r", "s", "z"], ["rq"])] if after else []),
        *([helper.make_node("DequantizeLinear", ["rq", "s", "z"], ["y"])] if after else []),
        *([helper.make_node("Odd", ["y"], ["o"], domain=domain)] if domain else []),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3) + (8,) * dimensions)]
    if scale_given:
        held.pop("s")
        inputs.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, ()))
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("o" if domain else "y", TensorProto.FLOAT, (1, 4) + (6,) * dimensions)],
        [numpy_helper.from_array(np.asarray(x), name) for name, x in held.items() if bias or name not in ("b", "bs")],
    )
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()  # type: ignore[no-any-return]


BROKEN: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {}),
    ({"scales": 1}, {}),
    (
        {"values": np.uint8},
        {"tensorrt": "activations of uint8", "xnnpack": "weights of int8 beside activations of uint8"},
    ),
    ({"zero": 3}, {"tensorrt": "a zero point other than 0"}),
    ({"weight_zero": 3}, dict.fromkeys(("openvino", "tensorrt"), "a zero point other than 0")),
    ({"bias": True}, {"tensorrt": "a bias of int32, which must be a float"}),
    ({"dimensions": 1}, {"tensorrt": "a convolution over 1 dimension", "xnnpack": "a convolution over 1 dimension"}),
    (
        {"values": np.uint8, "weights": np.uint8},
        {
            "openvino": "weights of uint8",
            "tensorrt": "activations of uint8",
            "xnnpack": "weights of uint8 with a scale for each channel",
        },
    ),
    (
        {"axis": 1, "scales": 3},
        dict.fromkeys(PROFILES, "scales along axis 1, which is not that"),
    ),
    ({"domain": "someone.else"}, dict.fromkeys(PROFILES, "of the domain 'someone.else'")),
    ({"scale_given": True}, dict.fromkeys(PROFILES, "s is no constant")),
]


@pytest.mark.parametrize(("change", "broken"), BROKEN, ids=[" ".join(change) or "none" for change, _ in BROKEN])
def test_each_rule(change: dict[str, Any], broken: dict[str, str]) -> None:
    found = lp.targets.check(convolution(**change))
    assert {name for name, told in found.items() if told} == broken.keys()
    for name, rule in broken.items():
        assert any(rule in one.rule for one in found[name]), found[name]


@pytest.mark.parametrize("change", [change for change, _ in BROKEN if "domain" not in change], ids=str)
def test_what_openvino_is_said_to_take_it_runs_on_integers(change: dict[str, Any]) -> None:
    core, file = openvino.Core(), convolution(**change)
    compiled = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    told = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    kinds = {info["runtimePrecision"].astype(str) for info in told if info["layerType"].astype(str) == "Convolution"}
    assert (kinds <= {"u8", "i8"}) == (not lp.targets.check(file, "openvino")["openvino"])


def test_opsets() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=8)
    found = lp.targets.check(model.SerializeToString())
    assert [str(one) for one in found.pop("tensorrt")] == ["the file: opset 8, where 9 to 24 are read"]
    assert not any(found.values())


def test_ranges_at_run_time_are_taken_by_onnx_runtime_alone(tmp_path: Path) -> None:
    axes = {0: {0: "batch", 1: "tokens"}}
    _, path = built(tmp_path, Tokens(), sentences(), [lp.Quantize(activations=lp.Int(8, dynamic=True))], axes)
    found = lp.targets.check(path)
    assert {name for name in found if not found[name]} == {"ort-cpu", "ort-web"}
    assert "ranges found at run time" in str(found["openvino"][0])


def test_axis_of_linear_layers(tmp_path: Path) -> None:
    """Behind a Transpose the outputs lie along the other axis; what the exporter writes is right in both forms."""
    for shape in ((6, 24), (2, 5, 24)):
        inputs = [torch.randn(shape)]
        _, path = built(tmp_path, nn.Sequential(nn.Linear(24, 16)), inputs, STATIC)
        assert not lp.targets.check(path, "ort-cpu")["ort-cpu"]


@pytest.mark.parametrize("name", ["tensorrt", "xnnpack"])
@pytest.mark.parametrize(
    ("make", "inputs", "axes"),
    [(Convolutions, images, None), (Tokens, sentences, {0: {0: "batch", 1: "tokens"}})],
    ids=["convolutions", "tokens"],
)
def test_what_is_built_for_a_profile(
    tmp_path: Path, name: str, make: Callable[[], nn.Module], inputs: Callable[[], list[Tensor]], axes: Any
) -> None:
    torch.manual_seed(0)
    target = lp.targets.OnnxRuntime(threads=1, profile=name)
    driver, path = built(tmp_path, make(), inputs(), STATIC, axes, target)
    assert lp.targets.check(path, name) == {name: []}
    types = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    zeros = [node.input[2] for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear"]
    assert zeros and {types[zero] for zero in zeros} == {TensorProto.INT8}
    agree(driver, path, inputs(), share=0.02)


def test_by_default_ranges_for_a_profile_come_from_calibration() -> None:
    torch.manual_seed(0)
    small = lp.compress(
        nn.Sequential(nn.Linear(64, 64)),
        calibrate=[torch.randn(4, 64)],
        target=lp.targets.OnnxRuntime(threads=1, seconds=1, profile="tensorrt"),
    )
    assert small.data["layers"][0]["activations"] == "int8 per tensor"


def test_what_breaks_a_profile_is_refused_when_it_is_built(tmp_path: Path) -> None:
    net, target = nn.Sequential(nn.Conv1d(8, 8, 3)), lp.targets.OnnxRuntime(threads=1, profile="tensorrt")
    with pytest.raises(ExportError, match="tensorrt does not take a convolution over 1 dimension"):
        built(tmp_path, net, [torch.randn(2, 8, 16)], STATIC, target=target)
    with pytest.raises(InputError, match="unknown profile 'tensorr'; did you mean 'tensorrt'"):
        lp.targets.OnnxRuntime(profile="tensorr")


@pytest.mark.parametrize("values", [lp.Int(8), lp.Int(8, dynamic=True)], ids=["static", "dynamic"])
def test_safe_weights_cannot_overflow_sixteen_bits(tmp_path: Path, values: lp.Int) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), [torch.randn(4, 64)]
    target = lp.targets.OnnxRuntime(threads=1, safe=True)
    with pytest.raises(ExportError, match=r"a weight code of 127, where 63 is .* safe; use weights=Int\(7\)"):
        built(tmp_path, net, inputs, [lp.Quantize(activations=values)], target=target)
    driver, path = built(tmp_path, net, inputs, [lp.Quantize(weights=lp.Int(7), activations=values)], target=target)
    weights = [numpy_helper.to_array(x) for x in onnx.load(path).graph.initializer if x.data_type == TensorProto.INT8]
    codes = [x.astype(np.int64) for x in weights if x.ndim == 2]
    assert len(codes) == 2
    for code in codes:  # [outputs, inputs] or turned: the worst pair of products with values of 255
        assert 2 * 255 * np.abs(code).max() <= 32767
    agree(driver, path, inputs, share=0.02)


def test_safe_is_the_default_recipes_choice() -> None:
    torch.manual_seed(0)
    net, target = nn.Sequential(nn.Linear(64, 64)), lp.targets.OnnxRuntime(threads=1, seconds=1, safe=True)
    small = lp.compress(net, calibrate=[torch.randn(4, 64)], target=target)
    assert small.data["layers"][0]["encoding"] == "int7 per channel"
    assert small.data["layers"][0]["runs_as"].startswith("int8 kernel")


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(convolution(values=np.uint8))
    all_of_them = CliRunner().invoke(app, ["check", str(path)])
    assert all_of_them.exit_code == 0
    assert "ort-cpu: takes it\nort-web: takes it\nopenvino: takes it\ntensorrt (by its doc" in all_of_them.stdout
    assert "tensorrt (by its documentation): does not take it: " in all_of_them.stdout
    assert "  QuantizeLinear xq: activations of uint8, where int8 are taken" in all_of_them.stdout
    one = CliRunner().invoke(app, ["check", str(path), "--for", "tensorrt", "--json"])
    assert one.exit_code == 3 and json.loads(one.stdout)["tensorrt"][0]["node"] == "QuantizeLinear xq"
    assert CliRunner().invoke(app, ["check", str(path), "--for", "ort-cpu"]).exit_code == 0
    assert "did you mean 'tensorrt'" in CliRunner().invoke(app, ["check", str(path), "--for", "tensorr"]).stderr
    path.write_bytes(b"nothing")
    bad = CliRunner().invoke(app, ["check", str(path)])
    assert bad.exit_code == 2 and "is no sound ONNX file" in bad.stderr


def test_a_graph_inside_a_file(tmp_path: Path) -> None:
    lp.save(tmp_path / "net.lil", nn.Linear(4, 2).eval(), example=torch.zeros(1, 4))
    done = CliRunner().invoke(app, ["check", str(tmp_path / "net.lil"), "--for", "openvino"])
    assert done.exit_code == 0 and done.stdout == "openvino: takes it\n"
