"""Rescaling changes no network's function, finds what can be rescaled, says why where not, and helps what it is for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from compared import close
from networks import TOPOLOGIES
from torch import Tensor, nn
from torch.nn import functional as F

import lilliput as lp
from lilliput.encodings import Float16, Int
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import InputError, RecipeError
from lilliput.feeding import Batches
from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.parameters import encoding_of, read, shapes
from lilliput.model.rescaling.pairs import find_pairs
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.outputs import flatten_outputs
from lilliput.recipe import Recipe
from lilliput.targets import OnnxRuntime
from lilliput.techniques.equalize import Equalize
from lilliput.techniques.prune import Prune
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.scalings import AWQ, CrossLayer, Scaling, SmoothQuant

WAYS: tuple[Scaling, ...] = (CrossLayer(), SmoothQuant(), AWQ(Int(4), steps=4))


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(model: nn.Module, batches: list[Any] | None, example: Any = None, store: Store | None = None) -> Driver:
    inputs = Inputs.of(batches[0] if example is None else example)  # type: ignore[index]
    dynamic = dynamic_axes(inputs, None)
    return Driver.start(
        model.eval(),
        example=inputs,
        dynamic=dynamic,
        calibrate=None if batches is None else Batches.checked(batches, "calibrate", inputs, dynamic),
        target=OnnxRuntime(),
        store=store or Store(),
        environment="a test",
    )


def outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    with torch.no_grad():
        return flatten_outputs(Inputs.of(batch).call(model))


def departure(model: nn.Module, other: nn.Module, batch: Any) -> float:
    pairs = zip(outputs(model, batch), outputs(other, batch), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def sqnr(exact: nn.Module, other: nn.Module, batch: Any) -> float:
    a, b = outputs(exact, batch)[0].double(), outputs(other, batch)[0].double()
    return 10 * math.log10(float(a.square().sum() / (a - b).square().sum()))


def uneven(model: nn.Module) -> nn.Module:
    """Weights whose channels differ widely, so that there is something to equalize."""
    with torch.no_grad():
        for x in model.parameters():
            x.mul_(torch.exp(torch.randn(len(x), *[1] * (x.dim() - 1))))
    return model


class Llama(nn.Module):
    """The one of `transformers`, whose RMSNorm is written out in torch, with gated layers and rotary attention."""

    def __init__(self, key_heads: int = 4) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        self.net = LlamaModel(
            LlamaConfig(
                **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
                **{"num_attention_heads": 4, "num_key_value_heads": key_heads, "use_cache": False},
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens).last_hidden_state  # type: ignore[no-any-return]


def words() -> Tensor:
    return torch.randint(0, 30, (2, 6))


class Chain(nn.Module):
    """conv - relu - depthwise - relu - conv, pooled, flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1, groups=2)
        self.d = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.d(F.max_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


class Norms(nn.Module):
    """Each normalisation, before what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.group, self.conv = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)
        self.batch, self.up = nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 8, 2, groups=2)
        self.rms, self.first, self.second = nn.RMSNorm(8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.layer, self.last = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.batch(torch.tanh(self.conv(self.group(x)))))
        x = self.rms(x.mean((2, 3)))
        return self.last(self.layer(self.first(x) * torch.sigmoid(self.second(x))))  # type: ignore[no-any-return]


class Several(nn.Module):
    """A transposed convolution in groups before convolutions of one and two groups, beside each other; slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.slope = nn.ConvTranspose2d(4, 8, 3, groups=2), nn.PReLU(8)
        self.left, self.right = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.slope(self.up(x)), (1, 1, 1, 1))
        return self.left(x) + self.right(x)  # type: ignore[no-any-return]


OWN = {
    "llama": (Llama, words, 4),
    "llama, shared keys": (lambda: Llama(2), words, 3),
    "chain": (Chain, lambda: torch.randn(4, 3, 8, 8), 3),
    "norms": (Norms, lambda: torch.randn(4, 8, 3, 3), 4),
    "several": (Several, lambda: torch.randn(4, 4, 3, 3), 1),
}
ALL = {**{name: (one.make, one.batch) for name, one in TOPOLOGIES.items()}, **{name: OWN[name][:2] for name in OWN}}


@pytest.mark.parametrize("by", WAYS, ids=lambda by: type(by).__name__)
@pytest.mark.parametrize("name", ALL)
def test_the_function_stays(name: str, by: Scaling) -> None:
    make, batch = ALL[name]
    model = uneven(make()).eval()
    driver = start(model, [batch() for _ in range(2)])
    Equalize(by).apply(driver)
    assert departure(model, driver.model, batch()) < 1e-4
    assert not [reason for reason in driver.told.skipped.values() if "would change" in reason]


@pytest.mark.parametrize("name", OWN)
def test_what_can_be_rescaled_is_found(name: str) -> None:
    make, batch, wanted = OWN[name]
    driver = start(make(), [batch()])
    found, apart = find_pairs(driver.view(), shapes(driver.model))
    assert len(found) == wanted, apart
    layers = {path for pair in found for path in (part.path for part in pair.multiplied)}
    assert not layers & apart.keys()
    assert layers | apart.keys() == {
        path for path, calls in driver.view().weights.items() if calls[0].op != "embedding"
    }


def test_everything_is_rescaled_or_has_a_reason() -> None:
    model, batch = uneven(Llama()), words()
    driver = start(model, [batch])
    Equalize(SmoothQuant()).apply(driver)
    moved = {
        paths[0]
        for paths, x in tensors(driver.model).items()
        if not torch.equal(x, model.get_parameter(paths[0]))  # type: ignore[arg-type]
    }
    layer = "net.layers.0."
    assert moved == {
        f"{layer}{name}.weight"
        for name in (
            *("input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
            *(f"self_attn.{x}_proj" for x in "qkvo"),
        )
    }
    driver = start(TOPOLOGIES["vae"].make(), [TOPOLOGIES["vae"].batch()])
    Equalize(SmoothQuant()).apply(driver)
    assert driver.told.skipped == {
        "encode": "not equalized: it reads an input",
        "mean": "not equalized: it reads what comes out of silu",
        "spread": "not equalized: it reads what comes out of silu",
        "decode.0": "not equalized: it reads what comes out of add",
        "decode.2": "not equalized: it reads what comes out of gelu of decode.1",
    }


def planted(model: nn.Module, norm: str, channels: list[int], factor: float) -> nn.Module:
    """`model` with a normalisation some of whose channels are far larger than the others, as in language models."""
    with torch.no_grad():
        model.get_submodule(norm).weight[channels] *= factor  # type: ignore[index,operator]
    return model.eval()


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k, self.out = nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.out(torch.tanh(self.q(x)) * torch.tanh(self.k(x)))  # type: ignore[no-any-return]


def after(model: nn.Module, steps: list[Any], batches: list[Any]) -> nn.Module:
    driver = start(model, batches)
    for step in Recipe(steps).steps:
        step.apply(driver)
    return driver.model


def test_smoothing_helps_outliers_in_int8() -> None:
    model, batches = planted(Normed(), "norm", [3, 17], 60.0), [torch.randn(16, 32) for _ in range(4)]
    with torch.no_grad():
        for layer in (model.q, model.k):
            layer.weight[:, [3, 17]] /= 60.0  # type: ignore[operator,index]
    static = Quantize(weights=Int(8), activations=Int(8))
    plain, smoothed = after(model, [static], batches), after(model, [Equalize(SmoothQuant()), static], batches)
    x = torch.randn(64, 32)
    assert sqnr(model, smoothed, x) > sqnr(model, plain, x) + 6


def test_awq_helps_four_bits() -> None:
    model, batches = planted(Normed(), "norm", [3, 17], 20.0), [torch.randn(64, 32) for _ in range(4)]
    weights = Int(4, group=16)
    plain = after(model, [Quantize(weights=weights)], batches)
    scaled = after(model, [Equalize(AWQ(weights)), Quantize(weights=weights)], batches)
    x = torch.randn(64, 32)
    assert sqnr(model, scaled, x) > sqnr(model, plain, x) + 3


def test_equal_ranges_help_one_scale_a_tensor() -> None:
    model = Chain().eval()
    with torch.no_grad():  # as a trained network may come: channels blown up here, and shrunk behind
        for layer, following in ((model.a, model.b), (model.b, model.c)):
            s = 10 ** torch.linspace(-1.5, 1.5, 8)
            layer.weight.mul_(s.reshape(-1, 1, 1, 1))
            layer.bias.mul_(s)  # type: ignore[union-attr]
            each = s.reshape(2, 4).repeat_interleave(3, 0) if following is model.c else s[:, None]
            following.weight.div_(each[..., None, None])
    batches = [torch.randn(4, 3, 8, 8)]
    weights = Quantize(weights=Int(8, per="tensor"))
    x = torch.randn(8, 3, 8, 8)
    plain, equal = after(model, [weights], batches), after(model, [Equalize(CrossLayer()), weights], batches)
    assert sqnr(model, equal, x) > sqnr(model, plain, x) + 10
    driver = start(model, None, x)
    Equalize(CrossLayer()).apply(driver)
    for first, second in (("a", 1), ("b", 1)):
        sizes = driver.model.get_submodule(first).weight.abs().amax((1, 2, 3))  # type: ignore[union-attr,operator]
        name = {"a": "b", "b": "c"}[first]
        behind = driver.model.get_submodule(name).weight.abs()  # type: ignore[union-attr,operator]
        taken = behind.amax((1, 2, 3)) if name == "b" else behind.reshape(2, 3, 4).amax(second).flatten()
        close(sizes, taken, rtol=0.005, atol=0)


def test_pruned_weights_stay_pruned_and_encoded_ones_are_left() -> None:
    batches = [torch.randn(4, 3, 8, 8)]
    driver = start(uneven(Chain()), batches)
    Prune("weights", 0.5).apply(driver)
    before = read(driver.model, "b.weight")
    Equalize(SmoothQuant()).apply(driver)
    now = read(driver.model, "b.weight")
    assert bool(((now == 0) == (before == 0)).all()) and not torch.equal(now, before)
    driver = start(Chain(), batches)
    Quantize(weights=Float16(), where="b").apply(driver)
    Equalize(SmoothQuant()).apply(driver)
    assert "b.weight is encoded already: put Equalize before Quantize" in driver.told.skipped["b"]
    assert "b.weight is encoded already" in driver.told.skipped["c"]
    assert encoding_of(driver.model, "b.weight") == Float16()


class Shifted(nn.Module):
    """A network that looks at a weight behind the back of the captured graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))
        return x if torch.compiler.is_exporting() else x + self.b.weight.sum()


def test_the_report_tells_of_rounding_alone() -> None:
    model = planted(Normed(), "norm", [3, 17], 20.0)
    small = lp.compress(
        model,
        Recipe([Equalize(SmoothQuant(), where=("*", "!out")), Quantize(weights=Int(8))]),
        calibrate=[torch.randn(16, 32)],
        target=OnnxRuntime(seconds=1),
    )
    assert all(row["sqnr_db"] > 30 for row in small.data["layers"])
    assert small.data["skipped"] == []


def test_what_would_change_the_function_is_undone() -> None:
    model, batch = uneven(Shifted()).eval(), torch.randn(4, 8)
    driver = start(model, [batch])
    Equalize(CrossLayer()).apply(driver)
    assert departure(model, driver.model, batch) < 1e-4
    assert driver.told.skipped.keys() == {"a", "b", "c"}
    assert all("outputs would change by" in driver.told.skipped[name] for name in "bc")
    assert not torch.equal(read(driver.model, "d.weight"), model.d.weight)


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, store = [words() for _ in range(2)], Store()
    model = uneven(Llama())
    first = start(model, batches, store=store)
    Equalize(AWQ(Int(4), steps=3)).apply(first)

    def never(*_: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("lilliput.techniques.observe.observed", never)
    monkeypatch.setattr(AWQ, "_damages", never)
    again = start(model, batches, store=store)
    Equalize(AWQ(Int(4), steps=3)).apply(again)
    assert again.state.digest == first.state.digest != again.state.base


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_an_alpha_that_is_none(alpha: float) -> None:
    with pytest.raises(RecipeError, match="use 0 to 1"):
        SmoothQuant(alpha)


def test_bad_input_is_answered() -> None:
    with pytest.raises(RecipeError, match="use 2 or more"):
        AWQ(steps=1)
    with pytest.raises(RecipeError, match=r"by.*give what it takes"):
        Recipe([Equalize(lp.ranges.MSE())])  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="after Quantize"):
        Recipe([Quantize(activations=Int(8)), Equalize(SmoothQuant())])
    with pytest.raises(InputError, match=r"Equalize needs calibration batches.*use Equalize\(CrossLayer\(\)\)"):
        lp.compress(lp.Task(Chain(), example=torch.randn(1, 3, 8, 8)), Recipe([Equalize(SmoothQuant()), Quantize()]))
    with pytest.raises(RecipeError, match="matches no layer"):
        Equalize(CrossLayer(), where="e*").apply(start(Chain(), None, torch.randn(1, 3, 8, 8)))
    driver = start(Chain(), [torch.randn(1, 3, 8, 8)])
    Equalize(AWQ(lp.formats.mxfp4())).apply(driver)
    assert "groups of one length, which do not divide its inputs" in driver.told.skipped["b"]
    with pytest.raises(InputError, match="changed no layer"):
        lp.compress(TOPOLOGIES["vae"].make(), Recipe([Equalize(CrossLayer())]), calibrate=[torch.randn(4, 8)])


def test_a_recipe_is_written_and_read() -> None:
    recipe = Recipe([Equalize(AWQ(Int(4, group=32))), Quantize(weights=Int(4, group=32), fit=lp.ranges.HQQ(p=0.6))])
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_products_of_less_precision_hide_nothing() -> None:
    """What the user allows torch to compute in bfloat16 is not mistaken for a change of the function."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    net[0].weight.data[::2] *= 30
    torch.set_float32_matmul_precision("medium")
    try:
        driver = start(net, [torch.randn(32, 64)])
        Equalize(CrossLayer()).apply(driver)
        assert driver.told.facts["rescaled"] and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("way", [SmoothQuant(), AWQ(Int(4, group=4), steps=4)])
def test_a_layer_that_no_batch_reaches_is_skipped_with_the_reason(way: Scaling) -> None:
    class Branch(nn.Module):
        """Takes another way when it runs than when it is captured."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b, self.c = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.other = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_exporting():
                return self.c(self.other(self.a(x)))  # type: ignore[no-any-return]
            return self.b(self.norm(self.a(x)))  # type: ignore[no-any-return]

    driver = start(Branch(), [torch.randn(4, 5, 8)])
    Equalize(way).apply(driver)
    assert driver.told.skipped["b"] == "not equalized: no calibration batch reaches it"
