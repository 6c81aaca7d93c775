"""A network of transformers as a folder: `from_pretrained` of transformers gives a network that answers the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import lilliput as lp
from lilliput.errors import ExportError, InputError
from lilliput.formats import NF4, Float16, Int, save_pretrained

AUTO = AutoModelForCausalLM
LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = LLAMA | {"vocab_size": 320}
OPT = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
NETWORKS: dict[str, tuple[Any, Any, Any]] = {
    "llama, tied": (LlamaConfig(**LLAMA, vocab_size=320, tie_word_embeddings=True), LlamaForCausalLM, AUTO),
    "bert": (BertConfig(**BERT), BertForSequenceClassification, AutoModelForSequenceClassification),
    "opt": (OPTConfig(**OPT, vocab_size=320), OPTForCausalLM, AUTO),
}
WEIGHTS = {
    "float": None,
    "4 bits, groups": Int(4, group=32, scale=Float16()),
    "4 bits, float32 scales": Int(4, group=16),
    "4 bits, channels": Int(4),
    "8 bits, channels": Int(8),
    "8 bits, a tensor": Int(8, per="tensor"),
}
IDS = torch.arange(20)[None] + 3


def network(kind: str = "llama, tied") -> Any:
    config, model, _ = NETWORKS[kind]
    torch.manual_seed(0)
    return model(config).eval()


def encoded(net: nn.Module, weights: Any, where: Any = ("*", "!*embed*", "!lm_head")) -> nn.Module:
    task = lp.Task(net, example={"input_ids": IDS}, dynamic={"input_ids": {}})
    return lp.apply(task, lp.Recipe([lp.Quantize(weights=weights, where=where)]))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_transformers_loads_a_network_of_the_same_answers(kind: str, weights: str, tmp_path: Path) -> None:
    net = network(kind)
    small = net if WEIGHTS[weights] is None else encoded(net, WEIGHTS[weights])
    save_pretrained(tmp_path / "net", small)
    back = NETWORKS[kind][2].from_pretrained(tmp_path / "net", dtype=torch.float32).eval()
    with torch.no_grad():
        ours, theirs, floats = (one(input_ids=IDS).logits for one in (small, back, net))
    assert torch.equal(ours, theirs)
    assert weights == "float" or not torch.equal(ours, floats)
    assert type(back) is type(net)


def test_codes_are_stored_and_no_floats_beside_them(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "float", network())
    save_pretrained(tmp_path / "codes", encoded(network(), Int(4, group=32, scale=Float16())))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("float", "codes")]
    layers = sum(4 * one.weight.numel() for path, one in network().named_modules()
                 if isinstance(one, nn.Linear) and path != "lm_head")  # fmt: skip
    assert sizes[0] - sizes[1] == pytest.approx(layers * (1 - 4.5 / 32), rel=0.02)


def test_layers_of_several_formats_and_those_left_out(tmp_path: Path) -> None:
    table = {"model.layers.0.mlp.down_proj": Int(8), "model.layers.1.self_attn.q_proj": Int(4, group=16)}
    small = encoded(network(), table)
    save_pretrained(tmp_path / "net", small)
    told = json.loads((tmp_path / "net" / "config.json").read_text())["quantization_config"]
    groups = {tuple(one["targets"]): one["weights"]["num_bits"] for one in told["config_groups"].values()}
    assert groups == {("model.layers.0.mlp.down_proj",): 8, ("model.layers.1.self_attn.q_proj",): 4}
    assert "model.layers.1.mlp.down_proj" in told["ignore"] and "lm_head" in told["ignore"]
    back = AUTO.from_pretrained(tmp_path / "net", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(small(input_ids=IDS).logits, back(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("weights", "where"),
    [(Int(3), "*q_proj"), (Int(4, symmetric=False), "*q_proj"), (NF4(group=32), "*q_proj"), (Int(8), "*embed_tokens")],
)
def test_what_the_format_has_no_words_for_is_refused(weights: Any, where: str, tmp_path: Path) -> None:
    small = encoded(network(), weights, where)
    with pytest.raises(ExportError, match=r"(q_proj|embed_tokens|lm_head)\.weight: is held as .*no words for"):
        save_pretrained(tmp_path / "net", small)
    assert not (tmp_path / "net").exists()


def test_values_that_are_rounded_are_refused(tmp_path: Path) -> None:
    task = lp.Task(
        network("bert"), example={"input_ids": IDS}, calibrate=[{"input_ids": IDS}], dynamic={"input_ids": {}}
    )
    small = lp.apply(
        task, lp.Recipe([lp.Quantize(weights=Int(8), activations=Int(8), where="*dense")]), target="openvino"
    )
    with pytest.raises(ExportError, match=r"rounded as it flows.*activations=None"):
        save_pretrained(tmp_path / "net", small)


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "mine").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        save_pretrained(tmp_path / "net", network())
    assert [one.name for one in (tmp_path / "net").iterdir()] == ["mine"]


def test_what_is_no_network_of_transformers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Linear: is no network of transformers.*lilliput\.save"):
        save_pretrained(tmp_path / "net", nn.Linear(2, 2))


@pytest.mark.parametrize("recipe", ["codes", "default"])
def test_a_result_leaves_as_a_folder_with_its_card(recipe: str, tmp_path: Path) -> None:
    """By codes where the format has words for them; else by floats, and the file beside loads what is not in them."""
    net, batches = network("bert"), [{"input_ids": IDS}, {"input_ids": IDS + 40}]
    weights = lp.Recipe([lp.Quantize(weights=Int(8), where=("*", "!*embed*"))])
    quick = lp.targets.OnnxRuntime(threads=1, seconds=0)
    result = lp.compress(net, weights if recipe == "codes" else None, calibrate=batches, target=quick, measure=False)
    folder = result.save_pretrained(tmp_path / "net")
    text = (folder / "README.md").read_text()
    before, after = (sum(one["bytes"] for one in result.data[side]["artifacts"][:1]) for side in ("before", "after"))
    assert f"{before / 1000:,.0f}".split(",")[0] in text and f"{after / 1000:,.0f}".split(",")[0] in text
    assert 'kind = "Quantize"' in text and str(result) in text and "base_model" not in text
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        right = result.model if recipe == "codes" else lp.formats.to_dense(result.model)
        close(loaded(IDS).logits, right(IDS).logits)
    assert (folder / "net.lil").exists() == (recipe == "default")
    if recipe == "default":
        assert "rounded as it flows" in text
        with torch.no_grad():
            close(lp.load(folder / "net.lil", network("bert"))(IDS).logits, result.model(IDS).logits)
    with pytest.raises(InputError, match="is there already"):
        result.save_pretrained(folder)
