"""What is exported is what OpenVINO runs on integers, and computes what the module computes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import openvino
import pytest
import torch
from compared import close
from subjects import EXACT, Convolutions, Tokens, agree, built, images, sentences
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import InputError
from lilliput.file.container import Reader
from lilliput.report.layers import layers

TARGET = lp.targets.OpenVino(threads=1, seconds=2)
STATIC = [lp.Quantize(weights=EXACT, activations=lp.Int(8))]
INTEGERS = ("u8", "i8")


def fused(path: Path) -> Counter[tuple[str, str]]:
    """Kinds of layers that OpenVINO really runs, with the type of what they read."""
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    told = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    return Counter((info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in told)


def integers(path: Path, kind: str) -> int:
    ops = fused(path)
    return sum(ops[kind, whole] for whole in INTEGERS)


def test_static_convolutions_run_on_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    driver, path = built(tmp_path, Convolutions(), images(), STATIC, target=TARGET)
    ops = fused(path)
    assert integers(path, "Convolution") == 4  # wide, depthwise, and twice in two places
    assert ops["Convolution", "f32"] == 1  # the 3-channel stem gains nothing
    assert integers(path, "FullyConnected") == 1
    assert integers(path, "Pooling") == 1  # integers pass through without Q/DQ of its own
    agree(driver, path, images(), share=0.02)


def test_only_what_layers_read_is_encoded(tmp_path: Path) -> None:
    """Of two values that are added, neither that of the depthwise convolution nor the sum's float readers'."""
    torch.manual_seed(0)
    driver, _ = built(tmp_path, Convolutions(), images(), STATIC, target=TARGET)
    names = set(driver.model.get_submodule("value_encodings").by_name())  # type: ignore[operator]
    assert ":add#0" in names and "depthwise:conv2d#0" not in names


@pytest.mark.parametrize("shape", [(6, 24), (2, 5, 24)], ids=["rows", "tokens"])
def test_static_linear_layers_run_on_integers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8)), [torch.randn(shape) for _ in range(3)]
    driver, path = built(tmp_path, net, inputs, STATIC, target=TARGET)
    assert integers(path, "FullyConnected") == 2
    agree(driver, path, inputs, share=0.02)


def test_linear_layers_after_gelu_keep_their_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)), [torch.randn(6, 64)]
    driver, _ = built(tmp_path, net, inputs, STATIC, target=TARGET)
    rows = {row["path"]: row for row in layers(driver, {}, {})}
    assert rows["0.weight"]["runs_as"] == "int8 kernel" and rows["0.weight"]["activations"] == "uint8 per tensor"
    assert "ranges that the runtime finds" in rows["2.weight"]["runs_as"]
    assert rows["2.weight"]["encoding"] == f"int{EXACT.bits} per channel"


def test_layers_that_widen_a_normalised_value_for_gelu_keep_their_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 64))
    driver, _ = built(tmp_path, net, [torch.randn(6, 64)], STATIC, target=TARGET)
    rows = {row["path"]: row for row in layers(driver, {}, {})}
    assert "ranges that the runtime finds" in rows["1.weight"]["runs_as"]
    assert rows["4.weight"]["runs_as"] == "int8 kernel"  # nothing with long tails reads what it gives


@pytest.mark.parametrize("weights", [lp.Int(8), lp.Int(8, symmetric=False)], ids=["symmetric", "asymmetric"])
def test_weights_alone_stay_integers_in_the_kernel(tmp_path: Path, weights: lp.Int) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(256, 256)), [torch.randn(4, 32, 256)]
    driver, path = built(tmp_path, net, inputs, [lp.Quantize(weights=weights)], target=TARGET)
    assert integers(path, "FullyConnected") == 1
    agree(driver, path, inputs, share=0.02)  # of weights with an offset it rounds no values, of those without it may


def test_ranges_at_run_time_are_left_to_the_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    steps = [lp.Quantize(weights=EXACT, activations=lp.Int(8, dynamic=True))]
    driver, path = built(tmp_path, Tokens(), sentences(), steps, {0: {0: "batch", 1: "tokens"}}, TARGET)
    assert "DynamicQuantizeLinear" not in path.read_bytes().decode("latin1")
    agree(driver, path, sentences()[:1], share=0.05)


def test_report_file_and_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(4, 8, 16, 16) for _ in range(3)]
    net = nn.Sequential(
        nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4608, 4)
    )
    small = lp.compress(net, target=TARGET, calibrate=batches, folder=tmp_path / "out")
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["target"] == "openvino" and "In openvino on 1 thread" in data["sentence"]
    assert [row["runs_as"] for row in data["layers"]] == ["int8 kernel"] * 3
    assert data["environment"]["openvino"] == openvino.__version__.split("-")[0]
    assert "which openvino runs" in (tmp_path / "out" / "report.html").read_text()
    assert Reader(tmp_path / "out" / "net.lil").header["graph"]["target"] == "openvino"
    x = torch.cat(batches)
    run = lp.open(tmp_path / "out" / "net.lil", threads=1)
    close(run(x), small.model(x).detach(), share=0.02)
    path = lp.export(tmp_path / "net.onnx", small.model, x[:1], target="openvino")
    assert integers(path, "Convolution") == 2


class Named(nn.Module):
    """Two inputs of different types, and a dict as the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(50, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        rows = self.table(ids) * mask[..., None]
        return {"rows": rows, "out": self.fc(rows)}


def test_inputs_by_name_and_answers_that_last(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Named().eval()
    example = {"ids": torch.randint(0, 50, (2, 7)), "mask": torch.ones(2, 7)}
    lp.save(tmp_path / "net.lil", net, example=example, target=TARGET)
    run = lp.open(tmp_path / "net.lil", threads=1)
    first = run(mask=example["mask"], ids=example["ids"])
    kept = first["out"].clone()
    run(ids=example["ids"], mask=0 * example["mask"])
    assert torch.equal(first["out"], kept)  # the runtime's memory is used again, what was returned is not
    close(first["out"], net(**example)["out"].detach(), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="OpenVINO fails on this input"):
        run(ids=example["ids"], mask=torch.ones(3, 9))


def test_precisions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precision='f31'; did you mean 'f32'"):
        lp.targets.OpenVino(precision="f31")
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(64, 64)), [torch.randn(8, 64)]
    for precision in ("f32", "bf16", None):
        target = lp.targets.OpenVino(threads=1, precision=precision)
        driver, path = built(tmp_path, net, inputs, [], target=target)
        agree(driver, path, inputs, share=1e-5 if precision == "f32" else 0.02)


WITHOUT = """
import sys
class Block:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "openvino":
            raise ImportError("blocked")
sys.meta_path.insert(0, Block())
import torch
import lilliput as lp
lp.targets.OnnxRuntime()
batches = [torch.ones(1, 4)]
for made in (lp.targets.OpenVino, lambda: lp.compress(torch.nn.Linear(4, 4), calibrate=batches, target="openvino")):
    try:
        made()
    except lp.errors.LilliputError as error:
        print(error)
"""


def test_without_the_package() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    told = "openvino is not installed (ImportError: blocked); pip install openvino"
    assert done.stdout.splitlines() == [told, told]
