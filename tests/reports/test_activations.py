"""Activations that were asked for and not encoded.

Reported: ``Quantize(weights=Int(4), activations=Int(8))`` on convolutions gives weights of 4 bits beside activations of
32, and nothing is told (winml-cli#185 is of that kind). Right: whatever a chosen layer reads is encoded as asked, in an
integer kernel where there is one, or else rounded in float; or it is told, with the reason, that it stays float.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import Encoding
from lilliput.engine.begin import begin, follow
from lilliput.engine.evidence import build
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.model.carrier.parameters import encoding_of, shapes
from lilliput.model.views.values import value_encodings
from lilliput.model.views.view import Call, View
from lilliput.progress import silent
from lilliput.report.layers import layers
from lilliput.targets.kernels import integers
from lilliput.techniques.quantize import for_weight
from lilliput.techniques.run import Wanted

ORT = lp.targets.OnnxRuntime(threads=1, seconds=5)
OPENVINO = lp.targets.OpenVino(threads=1, seconds=5)
TARGETS: dict[str, lp.Target] = {
    "onnxruntime": ORT,
    "safe": lp.targets.OnnxRuntime(threads=1, safe=True),
    "tensorrt": lp.targets.OnnxRuntime(threads=1, profile="tensorrt"),
    "openvino": OPENVINO,
}
WEIGHTS: list[Encoding] = [
    *(lp.Int(8), lp.Int(7), lp.Int(4), lp.Int(2), lp.Int(8, per="tensor"), lp.Int(8, symmetric=False)),
    *(
        lp.Int(4, group=8),
        lp.formats.Codebook(16),
        lp.formats.NF4(group=8),
        lp.formats.Float16(),
        lp.formats.Blockwise(4, group=8),
        lp.formats.Fixed(0, 7),
    ),
    *(lp.formats.Fixed(0, 11), lp.formats.Signs(3), lp.formats.MiniFloat("e4m3")),
]
VALUES: list[Encoding] = [
    *(lp.Int(8), lp.Int(4), lp.Int(8, symmetric=True), lp.Int(8, dynamic=True), lp.Int(4, dynamic=True)),
    *(
        lp.formats.Fixed(3, 4),
        lp.formats.PowerOfTwo(4),
        lp.formats.PowerOfTwo(4, dynamic=True),
        lp.formats.Blockwise(4, group=8),
        lp.formats.NF4(group=5, dynamic=True),
    ),
]


class Attention(nn.Module):
    """Products of what flows, between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        near = torch.matmul(self.q(x), self.k(x).transpose(1, 2)) / 4
        return self.o(torch.matmul(near.softmax(-1), self.v(x)))  # type: ignore[no-any-return]


class Everything(nn.Module):
    """A layer of every kind that multiplies what flows by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise, self.pointwise = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.up, self.grouped = nn.ConvTranspose2d(16, 16, 2, stride=2), nn.Conv2d(16, 16, 3, groups=2)
        self.line = nn.Conv1d(16, 16, 3, padding=1)
        self.attention, self.multihead = Attention(), nn.MultiheadAttention(16, 2, batch_first=True)
        self.lstm, self.gru = nn.LSTM(16, 16, batch_first=True), nn.GRU(16, 16, batch_first=True)
        self.words, self.head = nn.Embedding(9, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, word: Tensor) -> Tensor:
        x = self.pointwise(self.depthwise(torch.relu(self.wide(torch.relu(self.stem(x))))))
        x = torch.relu(self.grouped(nn.functional.pad(self.up(x), (1, 1, 1, 1))))
        steps = self.line(x.flatten(2)[..., :12]).transpose(1, 2) + self.words(word)[:, None]
        steps = self.attention(steps)
        steps = steps + self.multihead(steps, steps, steps, need_weights=False)[0]
        return self.head(self.gru(self.lstm(steps)[0])[0][:, -1])  # type: ignore[no-any-return]


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 6, 6, generator=made), torch.randint(9, (2,), generator=made)


@pytest.fixture(scope="module")
def begun() -> Driver:
    """A driver that has captured the network, which no target changes."""
    torch.manual_seed(0)
    driver = begin(lp.Task(Everything().eval(), calibrate=[inputs(1), inputs(2)]), ORT, Store(), silent)[0]
    driver.view()
    return driver


def again(begun: Driver) -> Driver:
    """The driver as it was before any recipe, with what was captured."""
    driver = begun.afresh(begun.model)
    driver._views = dict(begun._views)
    return driver


def rows(driver: Driver) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in layers(driver, {}, None)}


def reads_encoded(view: View, call: Call, names: set[str]) -> bool:
    """Whether what a call reads is among the values called `names`: by itself, or where it arises."""
    source = view.by_id.get(call.reads[0] or "")
    while source is not None and source.value not in names and source.op in ("pad", "dropout", "contiguous"):
        if f"{source.value}@0" in names:
            return True
        source = view.by_id.get(source.reads[0] or "")
    return f"{call.value}@0" in names or (source is not None and source.value in names)


@pytest.mark.parametrize("values", VALUES, ids=repr)
@pytest.mark.parametrize("name", TARGETS)
def test_what_each_layer_reads_is_encoded_or_told(name: str, values: Encoding, begun: Driver) -> None:
    view, known = begun.view(), shapes(begun.model)
    for weights in WEIGHTS:
        encodings = {path: for_weight(weights, calls[0], known[path]) for path, calls in view.weights.items()}
        encoded = {path: x for path, x in encodings.items() if x}
        placed = TARGETS[name].prefers.place(view, Wanted(dict.fromkeys(encoded, values.for_value()), encoded))
        names = {place.value for place in placed.values}
        for path, (call, *_) in view.weights.items():
            told = "stays float" in placed.left.get(path, "")
            assert (reads_encoded(view, call, names) != told) is (call.op != "embedding"), (weights, path)
        assert "no name" in placed.left["multihead.in_proj_weight"]
        kernels = isinstance(weights, lp.Int | lp.formats.Fixed) and integers(encodings["wide.weight"])
        if not kernels and not (
            name == "tensorrt" and getattr(values, "dynamic", False) and isinstance(values, lp.Int)
        ):
            grouped = getattr(values, "group", None)  # then a recurrent layer's input is told
            odd = {path for path in placed.left if not path.startswith("multihead")}
            assert all(path.startswith(("lstm", "gru")) for path in odd) if grouped else not odd


def test_beside_weights_without_a_kernel_all_is_rounded_and_called_simulated(begun: Driver) -> None:
    driver, weights, values = again(begun), lp.Int(4, group=8), lp.Int(8)
    follow(lp.Recipe([lp.Quantize(weights=weights, activations=values)]), driver)
    assert driver.told.skipped.keys() == {"multihead.in_proj_weight", "multihead.out_proj.weight"}
    for path, row in rows(driver).items():
        if path not in driver.told.skipped and row["op"] != "embedding":
            assert row["activations"].startswith("uint8") and "simulated in float" in row["runs_as"]


def test_the_default_values_are_those_that_they_were(begun: Driver) -> None:
    """Beside weights of 8 bits the same are encoded as before; what is not is told."""
    driver = again(begun)
    follow(lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.Int(8))]), driver)
    floats = {path for path, row in rows(driver).items() if row["activations"] == "float32"} - {"words.weight"}
    assert floats == {
        *("stem.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "gru.weight_ih_l0", "gru.weight_hh_l0"),
        *("multihead.in_proj_weight", "multihead.out_proj.weight"),
    }
    assert set(driver.told.skipped) == floats | ({"up.weight"} & set(driver.told.skipped))
    assert "float kernel is the faster" in driver.told.skipped["stem.weight"]
    assert "dynamic=True" in driver.told.skipped["lstm.weight_ih_l0"]


def test_ranges_at_run_time_leave_convolutions_in_float_and_say_so(begun: Driver) -> None:
    driver = again(begun)
    follow(lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.Int(8, dynamic=True))]), driver)
    for path in ("stem.weight", "wide.weight", "depthwise.weight", "line.weight"):
        assert "calibrated ranges, activations=Int(8)" in driver.told.skipped[path]
    assert rows(driver)["attention.q.weight"]["runs_as"].startswith("int8 kernel")


def net() -> nn.Module:
    torch.manual_seed(0)
    flat = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ConvTranspose2d(8, 8, 3), *flat).eval()


def test_a_reason_lasts_when_the_weight_is_encoded_again() -> None:
    dynamic = lp.Quantize(weights=lp.Int(8), activations=lp.Int(8, dynamic=True))
    steps = [dynamic, lp.Quantize(weights=lp.Int(7), where="2")]
    driver, _ = begin(lp.Task(net(), example=torch.randn(1, 8, 9, 9)), ORT, Store(), silent)
    follow(lp.Recipe(steps), driver)
    assert encoding_of(driver.model, "2.weight").bits == 7 and "stays float" in driver.told.skipped["2.weight"]  # type: ignore[union-attr]


def test_a_later_step_leaves_the_values_of_an_earlier_one() -> None:
    steps = [
        lp.Quantize(weights=lp.Int(4, group=8), activations=lp.Int(8, dynamic=True), where="0"),
        lp.Quantize(weights=lp.Int(8), activations=lp.Int(4, dynamic=True), where="6"),
    ]
    driver, _ = begin(lp.Task(net(), example=torch.randn(1, 8, 9, 9)), ORT, Store(), silent)
    follow(lp.Recipe(steps), driver)
    found = rows(driver)
    assert found["0.weight"]["activations"].startswith("uint8 ")
    assert found["6.weight"]["activations"].startswith("uint4 ")


@pytest.mark.parametrize(
    ("target", "weights", "values"),
    [
        (ORT, lp.Int(4), lp.Int(8)),  # int8 kernels
        (ORT, lp.Int(4, group=8), lp.Int(8)),
        (ORT, lp.formats.Codebook(16), lp.Int(4, dynamic=True)),
        (OPENVINO, lp.Int(4, group=8), lp.Int(8)),
        (OPENVINO, lp.Int(4, group=8), lp.Int(8, dynamic=True)),
    ],
    ids=repr,
)
def test_the_target_computes_what_was_asked_for(
    target: lp.Target, weights: Encoding, values: Encoding, tmp_path: Path
) -> None:
    """The right value: each layer by hand, of decoded weights and of its input rounded as asked."""
    made = torch.Generator().manual_seed(3)
    batches = [torch.randn(2, 8, 9, 9, generator=made) for _ in range(2)]
    driver, _ = begin(lp.Task(net(), calibrate=batches), target, Store(), silent)
    follow(lp.Recipe([lp.Quantize(weights=weights, activations=values)]), driver)
    built = build(driver, driver.model, "net", tmp_path / "net.onnx")
    assert built.departure["sqnr_db"] > 40, "the file rounds something that the module does not, or less than it"
    encoders = _encoders(driver.model)
    x = batches[1]
    for i, layer in enumerate(driver.model):
        if i < 7:
            x = encoders[f"{i}"](x) if f"{i}" in encoders else x
            x = type(layer).forward(layer, x)
    with torch.no_grad():
        expected = driver.model(batches[1])
    close(x, expected)
    if weights == lp.Int(4):  # two codes a byte in the file, whatever kernel reads them
        held = {tensor.data_type for tensor in onnx.load(built.path).graph.initializer if len(tensor.dims) == 4}
        assert onnx.TensorProto.INT4 in held and onnx.TensorProto.INT8 not in held


def _encoders(model: nn.Module) -> dict[str, Any]:
    """What each layer rounds its input by, under the name of the layer."""
    return {name.partition(":")[0]: one for name, one in value_encodings(model).items() if name.endswith("@0")}
