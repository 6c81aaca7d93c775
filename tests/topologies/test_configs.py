"""Configs of transformers follow what is left of a network: what the library saves, it loads again."""

from __future__ import annotations

import copy
import functools
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from test_shrink import answers, driven
from torch import Tensor, nn
from zoo import enliven, subject
from zoo_hub import LLAMA, decoder

import lilliput as lp
from lilliput.engine.begin import begin
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.model.edits.structure import KeepChildren, LeaveOut
from lilliput.model.surgery.config_fit import solutions
from lilliput.model.surgery.depth import Dispensable, relied_on
from lilliput.model.views.inputs import Inputs
from lilliput.progress import silent
from lilliput.techniques.surgery import drop

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

WHOLE = ("*", "!*inv_freq")  # frequencies of rotary positions, which a config can only tell all of
CHANNELS = lp.Prune("channels", 0.5, multiple=1, where=WHOLE)
LAYERS = lp.Prune("layers", 0.5)
STEPS: dict[str, tuple[str, Any, dict[str, int]]] = {
    "bert, channels": ("bert", CHANNELS, {"hidden_size": 24, "intermediate_size": 40}),
    "gpt2, channels": ("gpt2", CHANNELS, {"n_embd": 24, "n_inner": 40}),
    "llama, channels": ("llama", CHANNELS, {"hidden_size": 24, "intermediate_size": 40}),
    "t5, channels": ("t5", CHANNELS, {"d_model": 24, "d_kv": 7, "d_ff": 40}),
    "llama, heads": ("llama", lp.Prune("heads", 0.5), {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "bert, layers": ("bert", LAYERS, {"num_hidden_layers": 1}),
    "gpt2, layers": ("gpt2", LAYERS, {"n_layer": 1}),
    "qwen2, layers": ("qwen2", LAYERS, {"num_hidden_layers": 1}),
}
every = pytest.mark.parametrize("name", STEPS)


def numbers(model: nn.Module) -> dict[str, int]:
    return {key: n for key, n in vars(model.model.config).items() if type(n) is int}


@functools.cache
def pruned(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Driver]:
    model, inputs = subject(STEPS[name][0]).build()
    return model, inputs, driven(model, inputs, STEPS[name][1])


def loaded_again(model: nn.Module, folder: Path) -> nn.Module:
    """What the library makes of the files that it writes."""
    model.model.save_pretrained(folder)
    again = copy.deepcopy(model)
    again.model = type(model.model).from_pretrained(folder)
    return again.eval()


@every
def test_what_the_library_saves_it_loads_again(name: str, tmp_path: Path) -> None:
    model, inputs, driver = pruned(name)
    before = numbers(model)
    after = numbers(driver.model)
    assert {key: n for key, n in after.items() if n != before[key]} == STEPS[name][2]
    assert "config" not in driver.told.skipped
    for one, other in zip(
        answers(loaded_again(driver.model, tmp_path), inputs), answers(driver.model, inputs), strict=True
    ):
        close(one, other)


@every
def test_the_users_config_is_not_touched(name: str, tmp_path: Path) -> None:
    model, inputs, driver = pruned(name)
    into = subject(STEPS[name][0]).build(seed=1)[0]
    config = into.model.config
    before = config.to_dict()
    lp.save(tmp_path / "net.lil", driver.model)
    again = lp.load(tmp_path / "net.lil", into=into)
    assert config.to_dict() == before == model.model.config.to_dict() and config is not again.model.config
    assert numbers(again) == numbers(driver.model)
    held = {id(module.config) for module in again.modules() if type(getattr(module, "config", None)) is type(config)}
    assert len(held) == len({id(m.config) for m in model.modules() if type(getattr(m, "config", None)) is type(config)})
    for one, other in zip(answers(again, inputs), answers(driver.model, inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["llama, channels", "llama, heads", "gpt2, layers", "qwen2, layers", "t5, channels"])
def test_a_cache_gives_the_same_tokens(name: str) -> None:
    _, inputs, driver = pruned(name)
    generated = [
        driver.model.model.generate(
            inputs[0][:1], max_new_tokens=6, do_sample=False, use_cache=cache, eos_token_id=None
        )
        for cache in (True, False)
    ]
    assert torch.equal(*generated)


def layers(*paths: str) -> list[Dispensable]:
    return [Dispensable(path, 0.0) for path in paths]


def test_layers_that_moved_up_have_the_number_of_their_place() -> None:
    model, inputs = decoder("Llama", **{**LLAMA, "num_hidden_layers": 4})
    driver = started(model, inputs)
    assert not drop(driver, layers("model.model.layers.0", "model.model.layers.2"))
    assert [layer.self_attn.layer_idx for layer in driver.model.model.model.layers] == [0, 1]
    assert driver.model.model.config.num_hidden_layers == 2 and model.model.config.num_hidden_layers == 4


def test_kinds_of_layers_stay_with_their_layers(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    sizes = {**LLAMA, "num_hidden_layers": 4, "layer_types": kinds, "sliding_window": 4, "use_sliding_window": True}
    model, inputs = decoder("Qwen3", **sizes)
    enliven(model, inputs)
    driver = started(model, inputs)
    assert not drop(driver, layers("model.model.layers.0", "model.model.layers.1"))
    assert driver.model.model.config.layer_types == kinds[2:] and model.model.config.layer_types == kinds
    again = loaded_again(driver.model, tmp_path)
    close(answers(again, inputs), answers(driver.model, inputs))
    lp.save(tmp_path / "net.lil", driver.model)
    into = lp.load(tmp_path / "net.lil", into=decoder("Qwen3", **sizes)[0])
    assert torch.equal(answers(into, inputs)[0], answers(driver.model, inputs)[0])
    assert into.model.config.layer_types == kinds[2:]


def test_a_layer_that_makes_what_all_others_read_stays() -> None:
    model, inputs = subject("t5").build()
    needed = relied_on(model, Inputs.of(inputs))
    assert set(needed) == {"model.encoder.block.0", "model.decoder.block.0"}
    driver = started(model, inputs)
    refused = drop(driver, layers("model.encoder.block.0", "model.decoder.block.1"))
    assert refused == {"model.encoder.block.0": "model.encoder.block.1 reads something else that it makes"}
    assert numbers(driver.model)["num_decoder_layers"] == 1 and numbers(driver.model)["num_layers"] == 2


@pytest.mark.parametrize(
    ("name", "step", "why"),
    [
        ("bert", lp.Prune("channels", 0.3, scope="global", multiple=1), "hidden_size stands for both|all these widths"),
        ("bert", lp.Prune("heads", 0.5), "is 24 of 48, and hidden_size stands for both"),
        ("llama", lp.Prune("channels", 0.5, multiple=1), r"where=\('\*', '!model.model.rotary_emb.inv_freq'\)"),
    ],
)
def test_what_a_config_cannot_tell_is_told(name: str, step: lp.Prune, why: str) -> None:
    model, inputs = subject(name).build()
    driver = driven(model, inputs, step)
    assert re.search(why, driver.told.skipped["config"]) and "lilliput.save" in driver.told.skipped["config"]
    assert driver.model.model.config.to_dict() == model.model.config.to_dict()


def test_a_module_of_the_users_that_keeps_a_config_is_passed_by(tmp_path: Path) -> None:
    model, inputs = subject("bert").build()
    model.config = model.model.config
    driver = driven(model, inputs, LAYERS)
    assert driver.model.config is driver.model.model.config and driver.model.config.num_hidden_layers == 1
    assert model.config.num_hidden_layers == 2
    close(answers(loaded_again(driver.model, tmp_path), inputs), answers(driver.model, inputs))


def test_a_config_that_makes_no_module_is_told() -> None:
    class Attention(nn.Module):
        def __init__(self, config: Any, layer_idx: int) -> None:
            super().__init__()
            self.config, self.layer_idx = config, layer_idx
            self.up, self.down = nn.Linear(8, config.hidden_size), nn.Linear(config.hidden_size, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]

    config = subject("bert").build()[0].model.config
    net = nn.Sequential(nn.Linear(4, 8), *(Attention(config, i) for i in range(3))).eval()
    driver = driven(net, (torch.randn(2, 4),), CHANNELS)
    assert "Attention is not made by its config alone" in driver.told.skipped["config"]
    assert not drop(started(net, (torch.randn(2, 4),)), layers("1"))


def test_a_network_pruned_again_loads_again(tmp_path: Path) -> None:
    _, inputs, driver = pruned("bert, layers")
    small = driven(driver.model, inputs, CHANNELS).model
    assert numbers(small)["num_hidden_layers"] == 1 and numbers(small)["hidden_size"] == 24
    close(answers(loaded_again(small, tmp_path), inputs), answers(small, inputs))
    lp.save(tmp_path / "net.lil", small)
    again = lp.load(tmp_path / "net.lil", into=subject("bert").build(seed=1)[0])
    assert numbers(again) == numbers(small)


def test_numbers_of_places_follow_and_others_do_not() -> None:
    class Layer(nn.Module):
        def __init__(self, i: int) -> None:
            super().__init__()
            self.layer_id, self.shift, self.group_idx = i, i, i // 2

    net = nn.ModuleList(Layer(i) for i in range(3))
    KeepChildren("", 3, (1, 2)).apply(net, {})
    assert [(x.layer_id, x.shift, x.group_idx) for x in net] == [(0, 1, 0), (1, 2, 1)]


def test_of_two_unknown_numbers_either_may_have_changed() -> None:
    heads, width = ("heads",), ("width",)
    rows = {("q", "[0]"): {heads: True, width: True}}
    found = list(solutions({("q", "[0]"): Fraction(1, 2)}, rows, {heads: 4, width: 12}))
    assert {heads: 4, width: 6} in found and {heads: 2, width: 12} in found


def started(model: nn.Module, inputs: tuple[Tensor, ...]) -> Driver:
    return begin(lp.Task(model.eval(), example=inputs), lp.targets.OnnxRuntime(), Store(), silent)[0]


def test_layers_are_numbered_anew_beside_blocks_that_were_left_out() -> None:
    model, inputs = decoder("Llama", **{**LLAMA, "num_hidden_layers": 4})
    small = started(model, inputs)
    drop(
        small, [Dispensable("model.model.layers.1.self_attn", 0.0, LeaveOut("model.model.layers.1.self_attn", True, 2))]
    )
    drop(small, layers("model.model.layers.0"))
    held = [getattr(layer.self_attn, "layer_idx", None) for layer in small.model.model.model.layers]
    assert held == [None, 1, 2]
