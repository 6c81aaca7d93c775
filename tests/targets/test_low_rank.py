"""Weights of low rank are two products to the runtime, and compute what the module computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from subjects import AT_RUN_TIME, CALIBRATED, EXACT, Convolutions, Tokens, agree, built, fused, images, sentences
from torch import Tensor, nn

import lilliput as lp
from lilliput.report.layers import layers
from lilliput.techniques.technique import Technique


def shapes(path: Path) -> list[tuple[int, ...]]:
    """Of all constants with two axes and more."""
    held = [tuple(one.dims) for one in onnx.load(path).graph.initializer]
    return sorted(shape for shape in held if len(shape) > 1)


def remarks(driver: Any) -> dict[str, str]:
    return {row["path"]: row["runs_as"] for row in layers(driver, {}, {})}


@pytest.mark.parametrize("lay", ["rows", "steps"])
def test_a_linear_layer_becomes_two(tmp_path: Path, lay: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 24, bias=False))
    inputs = [torch.randn(3, 40) if lay == "rows" else torch.randn(3, 5, 40) for _ in range(2)]
    driver, path = built(tmp_path, net, inputs, [lp.techniques.Factorize(6)])
    agree(driver, path, inputs, atol=1e-5)
    assert shapes(path) == [(6, 32), (6, 40), (24, 6), (32, 6)]
    ops = fused(path)
    assert ops["Gemm"] + ops["FusedGemm"] + ops["MatMul"] == 4 and not ops["Transpose"]
    assert set(remarks(driver).values()) == {"two float products in place of one"}


def test_a_convolution_becomes_two_and_keeps_how_it_goes_over_its_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 16, 3, stride=2, padding=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(16, 16, (3, 2), dilation=(2, 1), bias=False),
        nn.Flatten(2),
        nn.Conv1d(16, 8, 5, padding="same"),
        nn.Unflatten(2, (-1, 3, 1)),
        nn.Conv3d(8, 8, (2, 1, 1)),
    )
    inputs = [torch.randn(2, 4, 15, 23) for _ in range(2)]
    with torch.no_grad():
        assert net[:4](inputs[0]).shape[2] % 3 == 0
    driver, path = built(tmp_path, net, inputs, [lp.techniques.Factorize(3)])
    agree(driver, path, inputs, atol=1e-5)
    assert [shape for shape in shapes(path) if shape[0] == 3] == [
        *((3, 4, 3, 3), (3, 8, 2, 1, 1), (3, 16, 3, 2), (3, 16, 5)),
    ]
    assert sum(n for op, n in fused(path).items() if op in ("Conv", "FusedConv")) == 8


def test_a_table_is_looked_up_in_its_left_factor_and_a_tied_head_multiplies_by_both(tmp_path: Path) -> None:
    torch.manual_seed(0)
    driver, path = built(tmp_path, Tokens(), sentences(), [lp.techniques.Factorize(8)])
    agree(driver, path, sentences(), atol=1e-5)
    assert shapes(path).count((50, 8)) == 1 and (50, 32) not in shapes(path)


def test_layers_that_cannot_be_divided_get_the_product_when_they_are_loaded(tmp_path: Path) -> None:
    """In groups, transposed, and of a rank at which two products are more."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(2), nn.Linear(49, 12))
    inputs = [torch.randn(2, 8, 8, 8) for _ in range(2)]
    recipe = [
        lp.Quantize(weights={"0": lp.formats.LowRank(2), "1": lp.formats.LowRank(2), "3": lp.formats.LowRank(11)})
    ]
    driver, path = built(tmp_path, net, inputs, recipe)
    agree(driver, path, inputs, atol=1e-5)
    ops = fused(path)
    assert ops["Conv"] == 1 and ops["ConvTranspose"] == 1 and ops["MatMul"] == 1
    assert set(remarks(driver).values()) == {"size only: decoded to float when the runtime loads it"}


FACTORS = [
    lp.Int(8),
    lp.Int(4, group=4),
    lp.Int(4),
    lp.formats.Float16(),
    lp.formats.BFloat16(),
    lp.formats.Codebook(16),
    lp.formats.NF4(),
    lp.formats.PowerOfTwo(5),
]


@pytest.mark.parametrize("factors", FACTORS, ids=repr)
def test_factors_in_every_format(tmp_path: Path, factors: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 4), nn.ReLU(), nn.Flatten(2), nn.Linear(25, 16))
    inputs = [torch.randn(2, 4, 8, 8) for _ in range(2)]
    driver, path = built(tmp_path, net, inputs, [lp.techniques.Factorize(4), lp.Quantize(weights=factors)])
    agree(driver, path, inputs, atol=1e-5)
    ops = fused(path)
    assert ops["Conv"] + ops["FusedConv"] == 2 and ops["MatMul"] == 2


@pytest.mark.parametrize(
    ("net", "inputs", "step"),
    [
        (Convolutions, images, CALIBRATED),
        (Tokens, sentences, AT_RUN_TIME),
        (Tokens, sentences, CALIBRATED),
        (Convolutions, images, lp.Quantize(weights=lp.formats.Float16(), activations=lp.Int(8))),
    ],
)
def test_beside_integers_the_first_product_runs_on_them(
    tmp_path: Path, net: type[nn.Module], inputs: Any, step: Technique
) -> None:
    torch.manual_seed(0)
    driver, path = built(tmp_path, net(), inputs(), [lp.techniques.Factorize(8), step])
    agree(driver, path, inputs(), share=0.02)
    told, whole = set(remarks(driver).values()), step.weights == EXACT  # type: ignore[attr-defined]
    assert ("two products in place of one, integers where a kernel takes them" in told) is whole
    ops = fused(path)
    assert (sum(n for op, n in ops.items() if op.startswith("QLinear") or "Integer" in op) > 0) is whole


def test_openvino_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    net, inputs = Convolutions(), images()
    driver, path = built(tmp_path, net, inputs, [lp.techniques.Factorize(8)], target=lp.targets.OpenVino(threads=1))
    agree(driver, path, inputs, atol=1e-4)


def test_a_weight_that_is_read_otherwise_too_is_whole_there(tmp_path: Path) -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(24, 24, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) / self.layer.weight.norm(dim=1)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    inputs = [torch.randn(2, 24) for _ in range(2)]
    driver, path = built(tmp_path, Norm(), inputs, [lp.techniques.Factorize(4)])
    agree(driver, path, inputs, atol=1e-5)
