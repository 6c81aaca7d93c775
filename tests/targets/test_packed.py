"""Linear layers with few bits in groups: ONNX Runtime multiplies by the codes as they lie packed, and says so.

Right is what the module answers; where its activations are rounded at run time, without that rounding, since the kernel
rounds them in blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from compared import close
from subjects import DYNAMIC, Tokens, agree, built, fused, sentences
from torch import Tensor, nn

import lilliput as lp
from lilliput.exporters.nbits import block_of
from lilliput.external import packed_rows, size_of
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.values import unrounded
from lilliput.report.layers import layers
from lilliput.targets.onnxruntime import OrtPreferences
from lilliput.targets.onnxruntime_packed import packed_here
from lilliput.techniques.encode import encode

HALF = lp.formats.Float16()
WEIGHTS = 96 * 192 + 192 * 96 + 96 * 33  # of the perceptron
FORMATS = [
    lp.Int(4, group=16),
    lp.Int(4, group=32, symmetric=False),
    lp.Int(3, group=48, scale=HALF),
    lp.Int(2, group=16, symmetric=False, scale=HALF),
    lp.Int(4, group=16, scale=lp.Int(6, group=2)),
    lp.Int(4, symmetric=False),
    lp.Int(4, per="tensor"),
    lp.formats.Fixed(1, 2),
    lp.formats.Sparse(lp.Int(4, group=32)),
]


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def packed_nodes(path: Path) -> list[dict[str, Any]]:
    """The attributes of each `MatMulNBits`."""
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits"]
    return [{one.name: one.i for one in node.attribute} for node in nodes]


def remarks(driver: Any) -> dict[str, str]:
    return {row["path"]: row["runs_as"] for row in layers(driver, {}, {})}


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 192), nn.GELU(), nn.Linear(192, 96, bias=False), nn.GELU(), nn.Linear(96, 33))


@pytest.mark.parametrize("weights", FORMATS, ids=repr)
@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 96)], ids=["rows", "steps"])
def test_what_the_file_answers_is_what_the_module_answers(tmp_path: Path, weights: Any, shape: Any) -> None:
    inputs = [torch.randn(shape) for _ in range(2)]
    driver, path = built(tmp_path, perceptron(), inputs, [lp.Quantize(weights=weights)])
    agree(driver, path, inputs)
    assert operators(path)["MatMulNBits"] == 3 and not {"MatMul", "Gemm", "Add"} & operators(path).keys()
    assert set(remarks(driver).values()) == {"4-bit kernel, products in float"}
    held = [tensor for tensor in onnx.load(path).graph.initializer if np.prod(tensor.dims) > 96 * 16]
    assert all(tensor.data_type == onnx.TensorProto.UINT8 for tensor in held) and path.stat().st_size < WEIGHTS * 1.1


def bert() -> tuple[nn.Module, list[Tensor], int]:
    """Other people's layers: six products in each, and a pooler."""
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96
    )
    return transformers.BertModel(config), [torch.randint(0, 60, (2, 9)) for _ in range(2)], 7


def llama() -> tuple[nn.Module, list[Tensor], int]:
    """Layers without biases, and a head of its own."""
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96, use_cache=False
    )
    return transformers.LlamaForCausalLM(config), [torch.randint(0, 60, (2, 9)) for _ in range(2)], 8


def encoder() -> tuple[nn.Module, list[Tensor], int]:
    """torch's own, which multiplies by its projections inside a function."""
    return nn.TransformerEncoderLayer(64, 4, 96, batch_first=True), [torch.randn(2, 5, 64) for _ in range(2)], 2


@pytest.mark.parametrize("make", [bert, llama, encoder], ids=lambda make: make.__name__)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_networks_of_others(tmp_path: Path, make: Callable[[], Any], symmetric: bool) -> None:
    torch.manual_seed(0)
    net, inputs, least = make()
    driver, path = built(tmp_path, net.eval(), inputs, [lp.Quantize(weights=lp.Int(4, group=32, symmetric=symmetric))])
    expected, signature = driver.example.call(driver.model), None
    with torch.no_grad():
        signature = Signature.of(driver.example, expected, driver.model.forward)
        found = driver.example.call(driver.target.runs.open(path, signature))
    first = found if isinstance(found, Tensor) else found[next(iter(found.keys()))]
    right = expected if isinstance(expected, Tensor) else expected[0]
    close(first, right.detach(), share=1e-3)
    assert operators(path)["MatMulNBits"] >= least


@pytest.mark.parametrize("weights", [lp.Int(4, group=16), lp.Int(8, group=48, symmetric=False)], ids=repr)
def test_beside_ranges_at_run_time_both_are_integers(tmp_path: Path, weights: lp.Int) -> None:
    inputs = [torch.randn(7, 96) for _ in range(2)]
    net = nn.Sequential(nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 48))
    driver, path = built(tmp_path, net, inputs, [lp.Quantize(weights=weights, activations=DYNAMIC)])
    assert [(node["accuracy_level"], node["bits"]) for node in packed_nodes(path)] == [(4, weights.bits)] * 2
    assert set(remarks(driver).values()) == {f"{weights.bits}-bit kernel, integers, ranges of blocks found at each run"}
    agree(driver, path, inputs, share=0.03)
    signature = Signature.of(driver.example, driver.model(inputs[0]).detach())
    exact = driver.target.writes.reference(path, signature, rounded=False)
    with unrounded(driver.model) as able, torch.no_grad():
        assert able and exact is not None
        close(exact(inputs[0]), driver.model(inputs[0]))


def test_eight_bits_alone_are_decoded_since_their_kernel_would_be_slower(tmp_path: Path) -> None:
    driver, path = built(tmp_path, perceptron(), [torch.randn(5, 96)], [lp.Quantize(weights=lp.Int(8, group=16))])
    assert not packed_nodes(path)
    assert set(remarks(driver).values()) == {"size only: decoded to float when the runtime loads it"}


@pytest.mark.parametrize(
    ("inputs", "group", "wanted"),
    [(256, 256, 256), (512, 512, 256), (96, 48, 16), (384, 384, 128), (384, None, 128), (40, None, 0), (64, 8, 0)],
)
def test_blocks_are_the_longest_of_which_groups_are_made(inputs: int, group: int | None, wanted: int) -> None:
    assert block_of(inputs, group) == wanted


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_rows_are_packed_by_themselves(bits: int, signed: bool) -> None:
    """Against bits written one by one."""
    rng, low = np.random.default_rng(0), -(2 ** (bits - 1)) if signed else 0
    rows = rng.integers(low, low + 2**bits, (3, 7)).astype(np.int8 if signed else np.uint8)
    for row, found in zip(rows, packed_rows(rows, bits), strict=True):
        whole = sum((int(code) - low) << bits * i for i, code in enumerate(row))
        assert bytes(found) == whole.to_bytes(-(-7 * bits // 8), "little")


class Turned(nn.Module):
    """Weights that lie as [inputs, outputs], as GPT-2 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Parameter(torch.randn(n, m) / 8) for n, m in ((64, 48), (48, 33)))
        self.bias = nn.Parameter(torch.randn(48))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first + self.bias) @ self.last


@pytest.mark.parametrize("shape", [(5, 64), (2, 3, 64)], ids=["rows", "steps"])
def test_weights_that_lie_the_other_way(tmp_path: Path, shape: Any) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for _ in range(2)]
    driver, path = built(tmp_path, Turned(), inputs, [])
    for name in ("first", "last"):
        encode(driver, name, lp.Int(4, group=16, symmetric=False, axis=1))
    driver.target.writes.build(path, driver.model, driver.example, driver.dynamic)
    agree(driver, path, inputs)
    assert len(packed_nodes(path)) == 2


@pytest.mark.parametrize("weights", [lp.Int(4, group=16), lp.Int(4, group=32, symmetric=False), lp.Int(4)], ids=repr)
def test_a_tied_table_is_looked_up_and_multiplied_by_and_is_there_once(tmp_path: Path, weights: lp.Int) -> None:
    torch.manual_seed(0)
    driver, path = built(tmp_path, Tokens(), sentences(), [lp.Quantize(weights=weights)])
    agree(driver, path, sentences(), atol=1e-5)
    assert len(packed_nodes(path)) == 4
    rows = [tensor for tensor in onnx.load(path).graph.initializer if tensor.dims and tensor.dims[0] == 50]
    assert [size_of(tensor) for tensor in rows if size_of(tensor) >= 50 * 32 / 2] == [50 * 32 / 2]
    ran = fused(path)
    assert not ran["BitShift"] and not ran["BitwiseAnd"]


OTHERS = {
    "onnx": lp.targets.OnnxFile(),
    "openvino": lp.targets.OpenVino(threads=1),
    "a profile": lp.targets.OnnxRuntime(threads=1, profile="ort-cpu"),
    "safe": lp.targets.OnnxRuntime(threads=1, safe=True),
}


@pytest.mark.parametrize("target", OTHERS)
def test_for_other_targets_operators_are_the_standards(tmp_path: Path, target: str) -> None:
    inputs = [torch.randn(5, 96)]
    step = lp.Quantize(weights=lp.Int(4, group=16))
    driver, path = built(tmp_path, perceptron(), inputs, [step], target=OTHERS[target])
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    assert all(told.startswith("size only") for told in remarks(driver).values())
    signature = Signature.of(Inputs.of(inputs[0]), driver.model(inputs[0]).detach())
    close(driver.target.opened(path, signature)(inputs[0]), driver.model(inputs[0]).detach())


def test_a_runtime_without_the_operator_gets_the_standards_and_is_told(tmp_path: Path) -> None:
    assert packed_here() == {4, 8}
    inputs = [torch.randn(5, 96)]
    driver, path = built(tmp_path, perceptron(), inputs, [lp.Quantize(weights=lp.Int(4, group=16))])
    lacking = lp.targets.onnx.OnnxWriter(20, None, "onnxruntime", frozenset())
    lacking.build(path, driver.model, driver.example, driver.dynamic)
    assert not packed_nodes(path)
    agree(driver, path, inputs)
    view, weight = driver.view(), lp.Int(4, group=16).for_weight(0)
    told = {OrtPreferences(None, False).remark(call, weight, None) for call in view.calls if call.weights}
    assert told == {"size only: decoded to float when the runtime loads it (this version has no 4-bit kernel)"}


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        (lp.Int(4, group=8), "groups of 16 inputs, 32, 48 …"),
        (lp.Int(4, group=16, symmetric=False, minimum=HALF), "whole offsets"),
    ],
    ids=["short groups", "minima"],
)
def test_what_the_kernel_does_not_take_is_decoded_and_told(tmp_path: Path, weights: lp.Int, why: str) -> None:
    inputs = [torch.randn(5, 96)]
    driver, path = built(tmp_path, perceptron(), inputs, [lp.Quantize(weights=weights)])
    agree(driver, path, inputs)
    assert not packed_nodes(path)
    assert set(remarks(driver).values()) == {
        f"size only: decoded to float when the runtime loads it (the 4-bit kernel wants {why})"
    }


def test_a_file_holds_its_codes_once_and_answers_as_what_was_built(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, batches = perceptron().eval(), [torch.randn(5, 96) for _ in range(2)]
    step = lp.Quantize(weights=lp.Int(4, group=16, symmetric=False))
    small = lp.compress(net, lp.Recipe([step]), calibrate=batches, target=lp.targets.OnnxRuntime(threads=1, seconds=0))
    path = small.save(tmp_path / "net.lil")
    assert path.stat().st_size < WEIGHTS * 0.95  # 4 bits, and 4 + 32 for 16 of them; and the graph
    opened = lp.open(path)
    close(opened(batches[0]), small.model(batches[0]).detach())
    found = lp.targets.check(small.export(tmp_path / "net.onnx"))
    assert not found["ort-cpu"] and "com.microsoft" in str(found["openvino"][0])


@pytest.mark.parametrize("weights", [lp.Int(4, group=16, symmetric=False), lp.Int(4, group=48)], ids=repr)
def test_it_comes_back_as_layers(tmp_path: Path, weights: lp.Int) -> None:
    inputs = [torch.randn(5, 96)]
    driver, path = built(tmp_path, perceptron(), inputs, [lp.Quantize(weights=weights)])
    with pytest.warns(UserWarning, match="3 weights are integers with scales"):
        net = lp.formats.from_onnx(path)
    found = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in found] == [(96, 192), (192, 96), (96, 33)]
    (answer,) = net(inputs[0]).values()
    close(answer, driver.model(inputs[0]).detach())
