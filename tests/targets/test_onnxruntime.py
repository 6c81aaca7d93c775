"""What is exported is what ONNX Runtime runs on integers, and computes what the module computes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from compared import close
from subjects import (
    AT_RUN_TIME,
    CALIBRATED,
    DYNAMIC,
    EXACT,
    Convolutions,
    Tokens,
    agree,
    built,
    fused,
    images,
    initializers,
    sentences,
)
from torch import Tensor, nn

import lilliput as lp
from lilliput.blame.places import places
from lilliput.engine.begin import begin
from lilliput.engine.store import Store
from lilliput.file.container import Reader
from lilliput.model.carrier.identity import model_digest
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.values import tapped
from lilliput.progress import silent
from lilliput.report.layers import layers
from lilliput.techniques.encode import encode


def test_static_convolutions_run_on_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Convolutions()
    before = model_digest(net)
    driver, path = built(tmp_path, net, images(), [CALIBRATED])
    ops = fused(path)
    assert ops["QLinearConv"] == 4  # wide, depthwise, and twice in two places: the 3-channel stem gains nothing
    assert ops["Conv"] == 1
    assert ops["QLinearAdd"] == 1
    assert ops["QGemm"] == 1
    assert not ops["Relu"] + ops["Clip"] + ops["BatchNormalization"] + ops["Add"]
    agree(driver, path, images(), share=0.02)
    assert model_digest(net) == before


def test_stem_of_many_products_runs_on_integers(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 7), nn.ReLU())
    _, path = built(tmp_path, net, images(), [CALIBRATED])
    assert fused(path)["QLinearConv"] == 1


def test_two_calls_of_one_module_have_ranges_of_their_own(tmp_path: Path) -> None:
    driver, _ = built(tmp_path, Convolutions(), images(), [CALIBRATED])
    state = driver.model.state_dict()
    first, second = (state[f"value_encodings.:relu#{i}.scale"] for i in (1, 2))
    assert first != second


def test_dynamic_linear_layers_share_one_quantization(tmp_path: Path) -> None:
    torch.manual_seed(0)
    axes = {0: {0: "batch", 1: "tokens"}}
    driver, path = built(tmp_path, Tokens(), sentences(), [AT_RUN_TIME], axes)
    ops = fused(path)
    assert ops["DynamicQuantizeLinear"] + ops["DynamicQuantizeMatMul"] >= 2
    assert ops["MatMulIntegerToFloat"] + ops["DynamicQuantizeMatMul"] == 4
    agree(driver, path, sentences()[:1], atol=1e-4)


def test_table_is_stored_once_as_integers_though_it_is_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, path = built(tmp_path, Tokens(), sentences(), [lp.Quantize()])
    tables = [x for x in onnx.load(path).graph.initializer if list(x.dims) == [50, 32]]
    assert [x.data_type for x in tables] == [onnx.TensorProto.INT8]


def test_rows_are_gathered_before_they_are_decoded(tmp_path: Path) -> None:
    _, path = built(tmp_path, Tokens(), sentences(), [lp.Quantize(weights=lp.Int(8, symmetric=False))])
    graph = onnx.load(path).graph
    table = next(x.name for x in graph.initializer if list(x.dims) == [50, 32])
    assert "Gather" in {node.op_type for node in graph.node if node.input and node.input[0] == table}


@pytest.mark.parametrize(
    "later", [replace(EXACT, symmetric=False), replace(EXACT, axis=1), replace(EXACT, per="tensor")]
)
@pytest.mark.parametrize("values", [DYNAMIC, lp.Int(8)], ids=["dynamic", "static"])
def test_weights_of_every_layout_beside_integer_values(tmp_path: Path, values: lp.Int, later: lp.Int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(4, 24)]
    net = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))
    driver, path = built(tmp_path, net, inputs, [lp.Quantize(activations=values)])
    for weight in ("0.weight", "2.weight"):
        encode(driver, weight, later)
    driver.target.writes.build(path, driver.model, Inputs.of(inputs[0]), driver.dynamic)
    options = (
        onnxruntime.SessionOptions()
    )  # the graph as written: the runtime may round float weights of its own accord
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: inputs[0].numpy()})
    close(torch.from_numpy(out), driver.model(inputs[0]).detach(), atol=1e-4, rtol=0)


def test_a_float_layer_between_integers_is_not_called_plain_float(tmp_path: Path) -> None:
    """The runtime rounds the weights of such a layer to int8 itself, whatever is written; the report says so."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    inputs = [torch.randn(2, 8, 16, 16)]
    step = lp.Quantize(weights=EXACT, activations=lp.Int(8), where=("*", "!2"))
    driver, path = built(tmp_path, net, inputs, [step])
    assert initializers(path)["2.weight"] == onnx.TensorProto.FLOAT
    assert fused(path)["QLinearConv"] == 3
    rows = {row["path"]: row["runs_as"] for row in layers(driver, {}, {})}
    assert "may round it to int8" in rows["2.weight"]
    assert rows["0.weight"] == rows["4.weight"] == "int8 kernel"


def test_values_of_fewer_bits_are_not_promised_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)), [torch.randn(2, 16, 12, 12)]
    driver, path = built(tmp_path, net, inputs, [lp.Quantize(activations=lp.Int(7))])
    assert fused(path)["QLinearConv"] == 0
    rows = [row["runs_as"] for row in layers(driver, {}, {})]
    assert rows == ["may run in float: what flows is cut to 7 bits beside the rounding"] * 2


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_images_are_rounded_where_their_padding_is_not_the_kernels(tmp_path: Path, mode: str) -> None:
    torch.manual_seed(0)
    first, last = (nn.Conv2d(16, 16, 3, padding=1, padding_mode=mode) for _ in range(2))
    net, inputs = nn.Sequential(first, nn.ReLU(), last), [torch.randn(2, 16, 12, 12)]
    driver, path = built(tmp_path, net, inputs, [CALIBRATED])
    assert fused(path)["QLinearConv"] == 2
    assert [row["runs_as"] for row in layers(driver, {}, {})] == ["int8 kernel"] * 2
    agree(driver, path, inputs, share=0.02)


def test_layers_of_equal_contents_stay_two(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    net, inputs = nn.Sequential(layer, nn.ReLU(), copy.deepcopy(layer)), [torch.randn(4, 16)]
    driver, _ = built(tmp_path, net, inputs, [CALIBRATED])
    assert [row["path"] for row in layers(driver, {}, {})] == ["0.weight", "2.weight"]


def test_bytes_of_a_tensor_are_not_those_of_one_whose_name_goes_on() -> None:
    task = lp.Task(nn.LSTM(4, 8, bidirectional=True), calibrate=[torch.randn(3, 2, 4)], dynamic={0: {1: "batch"}})
    driver, _ = begin(task, lp.targets.OnnxRuntime(), Store(), silent)
    rows = layers(driver, {}, {"weight_ih_l0": 10, "weight_ih_l0_reverse": 20})
    told = {row["path"]: row["bytes"] for row in rows}
    assert (told["weight_ih_l0"], told["weight_ih_l0_reverse"]) == (10, 20)


class Returned(nn.Module):
    """Rows that are looked up, and a weight, as outputs themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(50, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.table(ids)
        return rows, self.fc(rows), self.fc.weight


def test_what_is_decoded_may_be_an_output_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    driver, path = built(tmp_path, Returned(), sentences(), [lp.Quantize()])
    x = sentences()[1]
    run = driver.target.runs.open(path, Signature.of(Inputs.of(x), driver.model(x)))
    for ours, theirs in zip(run(x), driver.model(x), strict=True):
        close(ours, theirs.detach(), atol=1e-6, rtol=0)


SIX = lp.Int(6, group=2, symmetric=False)  # as K-quants hold scales and minima


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        (lp.Int(8), onnx.TensorProto.INT8),
        (lp.Int(8, symmetric=False), onnx.TensorProto.UINT8),
        (lp.Int(4), onnx.TensorProto.INT4),
        (lp.Int(3, group=16), onnx.TensorProto.INT4),
        (lp.Int(4, group=16, symmetric=False, scale=lp.formats.Float16()), onnx.TensorProto.UINT4),
        (lp.Int(4, group=16, symmetric=False, minimum=lp.formats.Float16()), onnx.TensorProto.UINT4),
        (lp.Int(4, group=4, symmetric=False, scale=SIX, minimum=SIX), onnx.TensorProto.UINT4),
        (lp.Int(8, symmetric=False, minimum=lp.formats.Float16()), onnx.TensorProto.UINT8),
        (lp.Int(8, per="tensor"), onnx.TensorProto.INT8),
        (lp.formats.Float16(), onnx.TensorProto.FLOAT16),
        (lp.formats.BFloat16(), onnx.TensorProto.BFLOAT16),
    ],
    ids=repr,
)
def test_weights_alone_keep_their_type_and_values(tmp_path: Path, weights: Any, dtype: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Conv1d(4, 8, 4), nn.Flatten(), nn.Linear(8 * 61, 16))
    inputs = [torch.randn(2, 4, 32)]
    where = ("*", "!4") if getattr(weights, "group", None) else "*"
    driver, path = built(tmp_path, net, inputs, [lp.Quantize(weights=weights, where=where)])
    assert dtype in initializers(path).values()
    agree(driver, path, inputs, atol=1e-5)


@pytest.mark.parametrize(
    "weights",
    [
        lp.Int(4, group=8, symmetric=False),
        lp.Int(4, group=8, scale=SIX),
        lp.Int(4, group=8, symmetric=False, scale=SIX, minimum=SIX),
    ],
    ids=repr,
)
def test_of_offsets_and_scales_that_are_integers_files_hold_the_codes_alone(tmp_path: Path, weights: lp.Int) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(256, 128)).eval(), torch.randn(2, 256)
    small = lp.apply(lp.Task(net, x), lp.Recipe([lp.Quantize(weights)]))
    lp.save(tmp_path / "net.lil", small, example=x)
    assert not [name for name in Reader(tmp_path / "net.lil").entries if name.startswith(":graph:")]
    close(lp.open(tmp_path / "net.lil", threads=1)(x), small(x).detach(), rtol=1e-5, atol=1e-6)


def test_sub_byte_codes_make_the_file_smaller(tmp_path: Path) -> None:
    sizes = []
    for bits in (8, 4):
        _, path = built(
            tmp_path, nn.Sequential(nn.Linear(256, 256)), [torch.randn(2, 256)], [lp.Quantize(weights=lp.Int(bits))]
        )
        sizes.append(path.stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_fewer_bits_of_activations_are_cut_to_their_range(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(16, 8))
    inputs = [torch.randn(64, 16)]
    driver, path = built(
        tmp_path, net, inputs, [lp.Quantize(activations=lp.Int(5), calibration=lp.ranges.Percentile(80))]
    )
    agree(driver, path, inputs, atol=1e-4)


def test_nothing_inside_tells_where_it_was_made(tmp_path: Path) -> None:
    _, path = built(tmp_path, Convolutions(), images(), [CALIBRATED])
    data = path.read_bytes()
    assert str(Path(__file__).parent).encode() not in data
    assert b".py" not in data
    assert b"stack_trace" not in data


def test_axes_keep_their_names_and_stay_open(tmp_path: Path) -> None:
    axes = {0: {0: "batch", 1: "tokens"}}
    driver, path = built(tmp_path, Tokens(), sentences(), [lp.Quantize()], axes)
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims] == ["batch", "tokens"]
    agree(driver, path, [torch.randint(0, 50, (3, 11))], atol=1e-4)


def test_bytes_are_the_same_when_built_again(tmp_path: Path) -> None:
    files = []
    for place in ("a", "b"):
        torch.manual_seed(0)
        (tmp_path / place).mkdir()
        files.append(built(tmp_path / place, Convolutions(), images(), [CALIBRATED])[1])
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("layer", [nn.Conv1d(8, 8, 3), nn.Linear(16, 8)], ids=["convolution", "linear"])
def test_a_layer_at_the_end_gives_a_sound_file(tmp_path: Path, layer: nn.Module) -> None:
    _, path = built(tmp_path, nn.Sequential(layer), [torch.randn(2, 8, 16)], [CALIBRATED])
    onnx.checker.check_model(onnx.load(path))
    assert onnx.load(path).graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_bias_of_a_dead_channel_survives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        net[0].weight[0] = 1e-13
        net[0].bias[0] = 5.0
    inputs = [torch.randn(2, 4, 12, 12)]
    driver, path = built(
        tmp_path, net, inputs, [lp.Quantize(weights=EXACT, activations=lp.Int(8), bias_correction=False)]
    )
    agree(driver, path, inputs, share=0.02)


@pytest.mark.parametrize(
    "weights",
    [EXACT, replace(EXACT, per="tensor"), replace(EXACT, symmetric=False)],
    ids=["channel", "tensor", "offset"],
)
@pytest.mark.parametrize("size", [1e-5, 1e-8])
@pytest.mark.parametrize(  # a negative one behind a ReLU is nothing, whether it is there or not
    ("after", "bias"),
    [(nn.ReLU(), 5.0), (nn.ReLU6(), 5.0), (nn.Identity(), 5.0), (nn.Identity(), -5.0)],
    ids=["relu", "relu6", "plus", "minus"],
)
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_the_bias_of_a_nearly_dead_channel_survives(
    tmp_path: Path, kind: str, after: nn.Module, bias: float, size: float, weights: lp.Int
) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)) if kind == "convolution" else (nn.Linear(12, 8), nn.Linear(8, 4))
    net = nn.Sequential(layers[0], after, layers[1])
    with torch.no_grad():
        layers[0].weight[0] = size * torch.randn_like(layers[0].weight[0])
        layers[0].bias[0] = bias
        if weights.per == "tensor":
            layers[0].weight *= size
    inputs = [torch.randn(2, 8, 12, 12) if kind == "convolution" else torch.randn(20, 12)]
    step = lp.Quantize(weights=weights, activations=lp.Int(8), bias_correction=False)
    driver, path = built(tmp_path, net, inputs, [step])
    agree(driver, path, inputs, share=0.02)


@pytest.mark.parametrize("kind", ["convolutions", "tokens"])
def test_values_given_out_encoded_leave_the_kernels_and_the_output_as_they_are(tmp_path: Path, kind: str) -> None:
    """What `diagnose` looks at is what runs without it: a value is given out behind its decoding."""
    torch.manual_seed(0)
    step = lp.Quantize(weights=EXACT, activations=lp.Int(8) if kind == "convolutions" else DYNAMIC)
    net, inputs = (Convolutions(), images()) if kind == "convolutions" else (Tokens(), sentences())
    driver, path = built(tmp_path, net, inputs, [step])
    taps = list(dict.fromkeys(tap for place in places(driver.view(), driver.model) for tap in place.gives))
    assert len(taps) >= 5
    shown = tmp_path / "shown.onnx"
    with tapped(driver.model, taps), torch.no_grad():
        driver.target.writes.build(shown, driver.model, driver.example, driver.dynamic)
        answer = driver.example.call(driver.model)
    signature = Signature.of(driver.example, driver.example.call(driver.model))
    integer = {"QLinearConv", "QLinearAdd", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    before, after = ({op: n for op, n in fused(built).items() if op in integer} for built in (path, shown))
    assert before == after and sum(before.values()) >= 3
    plain = driver.target.runs.open(path, signature)
    looked_into = driver.target.runs.open(shown, Signature.of(driver.example, answer))
    for x in inputs:
        out, values = looked_into(x)
        assert torch.equal(out, plain(x)) and len(values) == len(taps)


# number formats

WEIGHTS = [
    lp.formats.Fixed(1, 5),
    lp.formats.Fixed(2, 9),
    lp.Int(1, symmetric=False),
    lp.Int(2, symmetric=False, per="tensor", minimum=lp.formats.Float16()),
    lp.Int(4, group=4, symmetric=False, minimum=lp.formats.BFloat16()),
    lp.formats.Codebook(5),
    lp.formats.Codebook(16, per="channel"),
    lp.formats.PowerOfTwo(4),
    lp.formats.Signs(2),
    lp.formats.NF4(),
    lp.formats.MiniFloat("e4m3"),
    lp.formats.Blockwise(4, group=None),
    lp.formats.Blockwise(3, channels=4, group=None, scale=lp.formats.Float16()),
    lp.formats.Blockwise(5, channels=2, group=4),
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_weights_keep_their_values_and_only_size_is_gained(tmp_path: Path, weights: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 4), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(2), nn.Linear(36, 16))
    inputs = [torch.randn(2, 4, 8, 8)[..., :8, :8]]
    driver, path = built(tmp_path, net, inputs, [lp.Quantize(weights=weights)])
    agree(driver, path, inputs, atol=1e-5)
    found = [row["runs_as"].partition(" (") for row in layers(driver, {}, {})]
    assert {what for what, _, _ in found} == {"size only: decoded to float when the runtime loads it"}
    few = isinstance(weights, lp.Int)  # of which linear layers have a kernel, for groups of so many inputs
    assert [why.startswith("the 4-bit kernel wants") for _, _, why in found] == [False, False, few]
    if weights == lp.formats.Fixed(2, 9):
        assert onnx.TensorProto.INT16 in initializers(path).values()


VALUES = [
    lp.formats.PowerOfTwo(4),
    lp.formats.PowerOfTwo(4, terms=2),
    lp.formats.Signs(2),
    lp.formats.NF4(),
    lp.formats.MiniFloat("e4m3"),
    lp.formats.PowerOfTwo(4, dynamic=True),
    lp.formats.Blockwise(4, group=None),
    lp.formats.PowerOfTwo(3, group=8, dynamic=True),
    lp.formats.Blockwise(3, group=8),
]


@pytest.mark.parametrize("values", VALUES, ids=repr)
def test_values_on_a_grid_are_simulated_in_float_by_standard_operators(tmp_path: Path, values: Any) -> None:
    torch.manual_seed(0)
    where = ("*", "!stem") if values.group else "*"
    step = lp.Quantize(weights=lp.formats.Codebook(16), activations=values, where=where, bias_correction=False)
    driver, path = built(tmp_path, Convolutions(), images(), [step])
    x = images()[0]
    expected = driver.model(x).detach()
    out = driver.target.runs.open(path, Signature.of(Inputs.of(x), expected))(x)
    # a value at a threshold falls either way, in few places: the rest is the same
    apart = (out - expected).abs() > 1e-5
    assert float(apart.float().mean()) < 0.1
    ops = fused(path)
    assert not [op for op in ops if "Q" in op] and all(
        node.domain in ("", "ai.onnx") for node in onnx.load(path).graph.node
    )
    told = {row["runs_as"] for row in layers(driver, {}, {}) if row["path"] != "stem.weight"}
    assert told == {"simulated in float: shows accuracy, gains nothing"}


def test_groups_of_tokens_lie_along_the_last_axis(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(16, 8)), [torch.randn(2, 5, 16)]
    step = lp.Quantize(weights=lp.Int(8), activations=lp.formats.Blockwise(4, group=4), bias_correction=False)
    driver, path = built(tmp_path, net, inputs, [step], {0: {0: "batch", 1: "tokens"}})
    assert [held.encoding.axis for held in driver.model.value_encodings.values()] == [2]  # type: ignore[union-attr,operator]
    agree(driver, path, inputs, atol=1e-5)


def test_fixed_point_values_run_on_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 3)), [torch.randn(2, 8, 12, 12)]
    step = lp.Quantize(weights=lp.formats.Fixed(0, EXACT.bits - 1), activations=lp.formats.Fixed(3, 4))
    driver, path = built(tmp_path, net, inputs, [step])
    assert fused(path)["QLinearConv"] == 2
    agree(driver, path, inputs, share=0.05)  # a step of the values is a sixth of the spread
    graph = onnx.load(path).graph
    scales = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    held = [onnx.numpy_helper.to_array(x) for x in graph.initializer if x.name in scales]
    assert [x.tolist() for x in held] == [np.float32(2.0**-4)]
    assert {row["runs_as"] for row in layers(driver, {}, {})} == {"int8 kernel, but in float where a ReLU follows"}
