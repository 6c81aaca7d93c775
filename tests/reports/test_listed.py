"""Weights that no step touches and no report names.

Reported: products written as ``addmm`` and ``matmul`` are left in float; regions that a capture does not look into, too
(pytorch#60828 is of that kind). Right: after a run every parameter of two axes or more, and every product whose weight
could not be encoded, stands among the layers with what was done to it, or is skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.carrier.parameters import encoding_of
from lilliput.progress import silent
from lilliput.report.layers import layers
from lilliput.techniques.ranges import MinMax

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = torch.arange(8)[None]
PICTURE = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)


def of(kind: str, *, head: str = "Model", **sizes: Any) -> Callable[[], nn.Module]:
    """A network of transformers, with its default config but for sizes."""

    def make() -> nn.Module:
        config = getattr(transformers, f"{kind}Config")(**sizes)
        return getattr(transformers, f"{kind}{head}")(config)  # type: ignore[no-any-return]

    return make


class Products(nn.Module):
    """Products of all kinds, with parameters, buffers, and tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Parameter(torch.randn(8, 8)) for _ in range(5))
        self.bias, self.unused = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(4, 4))
        self.register_buffer("held", torch.randn(8, 8))
        self.fine = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.bias, x, self.a.t())
        x = torch.matmul(x, self.b) + torch.mm(x, self.held)
        x = torch.einsum("bi,io->bo", x, self.c)
        x = nn.functional.linear(x, self.d + self.e)
        return self.fine(x) @ self.held  # type: ignore[no-any-return]


class Both(nn.Module):
    """A layer of two inputs, whose weight is of three axes, before one that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.head = nn.Bilinear(4, 4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.both(x, y))  # type: ignore[no-any-return]


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor] | tuple[Tensor, ...]]] = {
    "bert": (of("Bert", vocab_size=40, **SMALL), {"input_ids": WORDS}),
    "distilbert": (of("DistilBert", vocab_size=40, dim=32, hidden_dim=48, n_layers=2, n_heads=2), {"input_ids": WORDS}),
    "albert": (of("Albert", vocab_size=40, embedding_size=16, **SMALL), {"input_ids": WORDS}),
    "electra": (of("Electra", vocab_size=40, embedding_size=16, **SMALL), {"input_ids": WORDS}),
    "vit": (of("ViT", image_size=32, patch_size=8, **SMALL), {"pixel_values": PICTURE}),
    "convnext": (of("ConvNext", hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1]), {"pixel_values": PICTURE}),
    "resnet": (
        of("ResNet", embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1] * 4),
        {"pixel_values": PICTURE},
    ),
    "swin": (
        of("Swin", image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
        {"pixel_values": PICTURE},
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2),
        (torch.linspace(-1, 1, 160).reshape(2, 5, 16),),
    ),
    "lstm": (lambda: nn.LSTM(8, 8, 2, batch_first=True, bidirectional=True), (torch.ones(2, 4, 8),)),
    "bilinear": (lambda: Both(), (torch.ones(2, 4), torch.ones(2, 4))),
    "products": (Products, (torch.ones(2, 8),)),
}


STEPS = [lp.Quantize(weights=lp.Int(8), fit=MinMax()), lp.Prune("weights", 0.3)]


def begun(net: nn.Module, inputs: Any) -> Driver:
    return begin(lp.Task(net.eval(), example=inputs), lp.targets.OnnxRuntime(threads=1), Store(), silent)[0]


def run(net: nn.Module, inputs: Any, step: Any) -> Driver:
    driver = begun(net, inputs)
    follow(lp.Recipe([step]), driver)
    return driver


@pytest.mark.parametrize("name", NETS)
def test_every_weight_is_a_row_or_skipped(name: str) -> None:
    torch.manual_seed(0)
    make, inputs = NETS[name]
    first = begun(make(), inputs)
    for step in STEPS:
        driver = first.afresh(first.model)
        driver._views = dict(first._views)  # captured once
        follow(lp.Recipe([step]), driver)
        rows = {row["path"] for row in layers(driver, {}, None)}
        for paths, held in tensors(driver.model).items():
            if len(held.shape) > 1:
                encoded = isinstance(held, EncodedTensor)
                assert paths[0] in driver.told.skipped or (paths[0] in rows and encoded), paths
                assert not (paths[0] in driver.told.skipped and encoded)
        assert all(driver.told.skipped.values())


def test_products_that_are_no_layers_are_listed() -> None:
    driver = run(Products(), (torch.ones(2, 8),), lp.Quantize(weights=lp.Int(8)))
    told = driver.told.skipped
    assert "addmm" in told["a"] or "read by t" in told["a"] or "numpy_T" in told["a"]
    assert "matmul" in told["b"] and "no captured call reads it" in told["unused"]
    assert "buffer that is multiplied by" in told["held"] and "c" in told
    assert any("computed or no parameter" in why for why in told.values())


def test_layers_in_regions_that_are_not_looked_into_are_listed() -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                x = self.a(x)
            return self.b(x)  # type: ignore[no-any-return]

    driver = run(Region(), (torch.ones(2, 8),), lp.Quantize(weights=lp.Int(8)))
    for path in ("a.weight", "b.weight"):
        assert encoding_of(driver.model, path) is not None or driver.told.skipped[path]
