"""Decoders of transformers work with their default config, by which they answer with a cache.

Found in use: "an output of type DynamicCache cannot be compared" refused every one of them. Right: the cache is left
out of what is compared and built, which is told; what is left computes what the module does, on other tokens too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.outputs import left_out
from lilliput.progress import silent

transformers = pytest.importorskip("transformers")
TARGET = lp.targets.OnnxRuntime(threads=1, seconds=1)

LLAMA: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
T5: dict[str, Any] = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
MODELS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**LLAMA, "num_attention_heads": 4}, ("input_ids",)),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, ("input_ids", "decoder_input_ids")),
}


def made(name: str) -> tuple[Any, list[dict[str, Tensor]]]:
    kind, config, sizes, takes = MODELS[name]
    torch.manual_seed(0)
    net = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
    return net, [{key: torch.randint(3, 97, (rows, 7)) for key in takes} for rows in (2, 3)]


@pytest.mark.parametrize("name", MODELS)
def test_a_default_decoder_is_saved_and_opened(name: str, tmp_path: Path) -> None:
    net, (example, other) = made(name)
    with torch.no_grad():
        expected = net(**other)
    (place,) = left_out(expected)
    assert net.config.use_cache and place == "past_key_values"
    with pytest.warns(UserWarning, match="output past_key_values: left out of the graph, for a .*Cache is no tensor"):
        lp.save(tmp_path / "net.lil", net, example=example, target=TARGET)
    found = lp.open(tmp_path / "net.lil", threads=1)(**other)
    assert list(found) == [key for key in expected if key != place]
    for key, x in found.items():
        close(x, expected[key], rtol=1e-4, atol=1e-5)


def test_a_default_decoder_shrinks_as_one_without_a_cache() -> None:
    left = []
    for cached in (True, False):
        net, (example, _) = made("llama")
        net.config.use_cache = cached
        driver, _ = begin(lp.Task(net, example=example), TARGET, Store(), silent)
        follow(lp.Recipe([lp.Prune("channels", 0.5, multiple=1, where=("*", "!*inv_freq"))]), driver)
        left.append({key: tuple(x.shape) for key, x in driver.model.state_dict().items()})
        assert sum(p.numel() for p in driver.model.parameters()) < 0.7 * sum(p.numel() for p in net.parameters())
    assert left[0] == left[1]
