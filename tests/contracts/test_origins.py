"""Where the constants of a built file come from: the exporter says it, and a `.lil` refers only to what is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import lilliput as lp
from lilliput.disk import origins_of
from lilliput.file.container import Reader
from lilliput.file.graph import Graph, restored
from lilliput.file.lil import save
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature

DYNAMIC = lp.Int(8, dynamic=True)
RECIPES: dict[str, list[lp.Quantize]] = {
    "float": [],
    "static": [lp.Quantize(weights=lp.Int(7), activations=lp.Int(8))],
    "at run time": [lp.Quantize(weights=lp.Int(7), activations=DYNAMIC)],
    "groups of four bits": [lp.Quantize(weights=lp.Int(4, group=8, symmetric=False))],
    "packed": [lp.Quantize(weights=lp.Int(4, group=16, symmetric=False))],
    "packed, in other blocks": [lp.Quantize(weights=lp.Int(3, group=16, scale=lp.formats.Float16()))],
    "packed, beside integers": [lp.Quantize(weights=lp.Int(4, group=16), activations=DYNAMIC)],
    "levels": [lp.Quantize(weights=lp.formats.Codebook(16))],
    "half": [lp.Quantize(weights=lp.formats.Float16())],
    "tiles": [lp.Quantize(weights=lp.formats.Blockwise(channels=2, group=8))],
}


class Net(nn.Module):
    """A table, four linear layers, one of them without a bias and so turned, and a list that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.second = nn.Embedding(40, 32), nn.Linear(32, 48), nn.Linear(48, 32, bias=False)
        self.third, self.fourth = nn.Linear(32, 64), nn.Linear(64, 64)
        self.shifts = [torch.randn(32)]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(self.table(ids)))[None])[0] * self.shifts[0]
        return self.fourth(torch.relu(self.third(x)))


def built(folder: Path, kind: str) -> tuple[nn.Module, Graph]:
    """The network after a recipe, and the graph that is to travel in its file."""
    torch.manual_seed(0)
    net, ids = Net().eval(), torch.randint(0, 40, (5,))
    if RECIPES[kind]:
        net = lp.apply(lp.Task(net, calibrate=[ids]), lp.Recipe(RECIPES[kind]))
    target, example = lp.targets.OnnxRuntime(), Inputs.of(ids)
    target.writes.build(folder / "net.onnx", net, example, {})
    called = Signature.of(example, net(ids), net.forward).to_plain()
    return net, Graph(folder / "net.onnx", "onnxruntime", called)


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def held(folder: Path, net: nn.Module, graph: Graph) -> tuple[dict[str, Any], list[str]]:
    """The references of a file, which gives back what was built, bit for bit; and the tensors of the graph alone."""
    save(folder / "net.lil", net, graph=graph)
    reader = Reader(folder / "net.lil")
    again, first = arrays(onnx.load_from_string(restored(reader))), arrays(onnx.load(graph.path))
    assert again.keys() == first.keys()
    assert all(again[name].tobytes() == first[name].tobytes() for name in first)
    return reader.header["graph"]["initializers"], [name for name in reader.entries if name.startswith(":graph:")]


@pytest.mark.parametrize("kind", RECIPES)
def test_no_tensor_is_stored_for_the_graph_alone(kind: str, tmp_path: Path) -> None:
    net, graph = built(tmp_path, kind)
    references, alone = held(tmp_path, net, graph)
    assert not alone
    numbers = {name for name, x in arrays(onnx.load(graph.path)).items() if x.nbytes >= 128 and np.any(x != 0)}
    assert numbers and numbers <= references.keys()


def test_biases_and_their_scales_are_quotients_and_products_of_their_own_layer(tmp_path: Path) -> None:
    net, graph = built(tmp_path, "static")
    references, _ = held(tmp_path, net, graph)
    quotients = {one["quotient"][0]: one["quotient"] for one in references.values() if "quotient" in one}
    assert set(quotients) == {"first.bias", "third.bias", "fourth.bias"}
    for bias, (_, step, scale) in quotients.items():
        assert scale == f"{bias.removesuffix('.bias')}.weight_encoded.scale"
        assert {"product": [step, scale]} in references.values()


def test_a_tensor_that_is_turned_and_one_that_is_an_attribute_are_found(tmp_path: Path) -> None:
    net, graph = built(tmp_path, "float")
    references, _ = held(tmp_path, net, graph)
    assert references["fourth.weight"] == {"tensor": "fourth.weight"}
    assert {"tensor": ":attribute::shifts:0"} in references.values()
    assert {"transposed": "second.weight"} in references.values()


@pytest.mark.parametrize(
    "claim",
    [
        {"tensor": "fourth.weight"},  # of the same shape
        {"tensor": "first.weight"},  # of another
        {"tensor": "nothing"},
        {"transposed": "third.bias"},
        {"product": ["third.bias", "first.weight"]},
        {"quotient": ["third.weight", "third.bias", "third.bias"]},
        {"packed": [{"tensor": "fourth.weight"}, 4]},  # of no codes
        {"packed": [{"packed": [{"tensor": "fourth.weight"}, 4]}, 4]},
    ],
    ids=str,
)
def test_a_claim_that_is_wrong_is_not_believed(claim: dict[str, Any], tmp_path: Path) -> None:
    net, graph = built(tmp_path, "float")
    beside = origins_of(graph.path)
    told = json.loads(beside.read_text())
    beside.write_text(json.dumps({**told, "third.weight": claim}))
    references, alone = held(tmp_path, net, graph)
    assert references["third.weight"] == {"tensor": ":graph:third.weight"}
    assert alone == [":graph:third.weight"]


def test_what_is_delivered_does_not_hold_the_claims(tmp_path: Path) -> None:
    path = lp.export(tmp_path / "out" / "net.onnx", Net(), torch.randint(0, 40, (3, 5)))
    assert [one.name for one in path.parent.iterdir()] == ["net.onnx"]
