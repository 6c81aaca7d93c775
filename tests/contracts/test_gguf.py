"""A decoder as GGUF: the numbers that transformers and llama.cpp's own reader find in the file are the module's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from compared import close
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import lilliput as lp
from lilliput.errors import ExportError, InputError
from lilliput.exporters.gguf import check, write
from lilliput.formats import NF4, BFloat16, Float16, Int

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2, tied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),  # heads wider than their share of what flows
}
HALF = Float16()
WEIGHTS = {
    "float": (None, "F32"),
    "Q4_0": (Int(4, group=32, scale=HALF), "Q4_0"),
    "Q4_0, groups of 64": (Int(4, group=64, scale=HALF), "Q4_0"),
    "Q4_0, a scale a channel": (Int(4, scale=HALF), "Q4_0"),
    "Q4_1": (Int(4, group=32, symmetric=False, scale=HALF, minimum=HALF), "Q4_1"),
    "Q5_0": (Int(5, group=32, scale=HALF), "Q5_0"),
    "Q5_1": (Int(5, group=32, symmetric=False, scale=HALF, minimum=HALF), "Q5_1"),
    "Q8_0": (Int(8, group=32, scale=HALF), "Q8_0"),
    "F16": (Float16(), "F16"),
    "BF16": (BFloat16(), "BF16"),
}


def decoder(kind: str = "llama", **changed: Any) -> Any:
    config, model, own = KINDS[kind]
    torch.manual_seed(0)
    net = model(config(**{**SIZES, **own, **changed})).eval()
    for name, x in net.named_parameters():
        if x.dim() == 1:  # norms are ones and biases zeros, which any mistake would leave so
            nn.init.normal_(x, mean=float("norm" in name), std=0.3)
    return net


def encoded(net: nn.Module, weights: Any) -> nn.Module:
    if weights is None:
        return net
    task = lp.Task(net, example={"input_ids": torch.arange(8)[None]}, dynamic={"input_ids": {}})
    return lp.apply(task, lp.Recipe([lp.Quantize(weights=weights)]))


def numbers(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.detach().float() for name, x in lp.formats.to_dense(net).state_dict().items()}


CASES = [("llama", weights) for weights in WEIGHTS]
CASES += [(kind, weights) for kind in list(KINDS)[1:] for weights in ("float", "Q4_1")]


@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_transformers_reads_the_numbers_of_the_module(kind: str, weights: str, tmp_path: Path) -> None:
    encoding, told = WEIGHTS[weights]
    net = encoded(decoder(kind), encoding)
    write(tmp_path / "net.gguf", net)
    found = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "net.gguf").tensors}
    assert found["blk.0.attn_q.weight"] == found["blk.1.ffn_down.weight"] == told
    assert found["output_norm.weight"] == "F32" and ("output.weight" in found) == ("tied" not in kind)
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="net.gguf", dtype=torch.float32)
    ours, theirs = numbers(net), numbers(back)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    for name in ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings"):
        assert getattr(back.config, name) == pytest.approx(getattr(net.config, name))
    rotary = next(one for one in back.modules() if hasattr(one, "inv_freq"))
    assert torch.equal(rotary.inv_freq, next(one for one in net.modules() if hasattr(one, "inv_freq")).inv_freq)


def test_a_decoder_within_a_module_of_the_users_is_found(tmp_path: Path) -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = decoder()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.net(input_ids=ids, use_cache=False).logits

    write(tmp_path / "a.gguf", Logits())
    write(tmp_path / "b.gguf", decoder())
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_frequencies_that_the_config_stretches_are_written(tmp_path: Path) -> None:
    told = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    told |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    net = decoder(rope_parameters=told)
    write(tmp_path / "net.gguf", net)
    reader = gguf.GGUFReader(tmp_path / "net.gguf")
    (factors,) = (torch.from_numpy(one.data.copy()) for one in reader.tensors if one.name == "rope_freqs.weight")
    base = reader.fields["llama.rope.freq_base"].contents()
    ours = 1 / (base ** (torch.arange(0, 16, 2) / 16)) / factors
    close(ours, net.model.rotary_emb.inv_freq, rtol=1e-5)
    assert float(factors.max()) > 1.5  # where nothing is stretched, there is nothing to be seen


def byte_level(size: int = 320, **more: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the whale and the sea, the ship and the whale"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **more)


def test_the_tokenizer_travels(tmp_path: Path) -> None:
    ours = byte_level(chat_template="{{ messages }}")
    write(tmp_path / "net.gguf", decoder(), ours)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="net.gguf")
    for text in ("the whale", "The ship's 12 sails, né?", "</s> whale"):
        assert theirs(text, add_special_tokens=False).input_ids == ours(text, add_special_tokens=False).input_ids
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "</s>")
    assert theirs.chat_template == "{{ messages }}"
    fields = gguf.GGUFReader(tmp_path / "net.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 320  # those that no text has are filled up


@pytest.mark.parametrize(
    ("weights", "hint"),
    [
        (Int(4, group=32), "scales that half precision does not hold.*scale=Float16"),
        (Int(4, group=16, scale=HALF), "no block of GGUF.*group=32"),
        (Int(3, group=32, scale=HALF), "no block of GGUF"),
        (Int(4, group=32, symmetric=False, scale=HALF), "no block of GGUF"),
        (NF4(group=32), "no block of GGUF"),
    ],
)
def test_what_no_block_holds_exactly_is_refused(weights: Any, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=hint):
        write(tmp_path / "net.gguf", encoded(decoder(), weights))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "hint"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu', which llama.cpp's llama does not compute"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"sliding_window": 16}, "sliding_window=16"),
    ],
)
def test_a_config_that_llama_cpp_would_compute_otherwise_is_refused(
    changed: dict[str, Any], hint: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=hint):
        write(tmp_path / "net.gguf", decoder("mistral" if "sliding_window" in changed else "llama", **changed))


def test_networks_that_the_format_has_no_words_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Linear: is no decoder.*ForCausalLM of llama, mistral"):
        write(tmp_path / "net.gguf", nn.Linear(2, 2))
    small = GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=320)
    with pytest.raises(InputError, match="gpt2: is no decoder"):
        write(tmp_path / "net.gguf", GPT2LMHeadModel(small))
    with pytest.raises(InputError, match="has no head"):
        write(tmp_path / "net.gguf", decoder().model)
    more = decoder()
    more.model.layers[0].adapter = nn.Linear(64, 64)
    with pytest.raises(ExportError, match=r"adapter\.(weight|bias): llama\.cpp's llama has no such tensor"):
        write(tmp_path / "net.gguf", more)


def test_tokenizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    net = decoder(vocab_size=264)
    with pytest.raises(InputError, match=r"tokenizer: has \d+ tokens, where the network has 264"):
        write(tmp_path / "net.gguf", net, byte_level(300))
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    with pytest.raises(InputError, match=r"only byte-level BPE.*leave it out"):
        write(tmp_path / "net.gguf", net, words)
    with pytest.raises(InputError, match=r"is a str.*AutoTokenizer"):
        write(tmp_path / "net.gguf", net, "folder")


def test_another_readers_numbers_decide(tmp_path: Path) -> None:
    net = encoded(decoder(), Int(4, group=32, scale=HALF))
    path = tmp_path / "net.gguf"
    write(path, net)
    held = {"output.weight": (net.lm_head.weight_encoded, None)}
    check(gguf, path, held)
    whole, offset = bytearray(path.read_bytes()), None
    offset = next(one.data_offset for one in gguf.GGUFReader(path).tensors if one.name == "output.weight")
    whole[offset + 2] ^= 0x10  # a code of its first block
    path.write_bytes(whole)
    with pytest.raises(ExportError, match=r"net\.gguf: output\.weight: holds other numbers"):
        check(gguf, path, held)


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"gguf is not installed.*pip install gguf"):
        write(tmp_path / "net.gguf", decoder())
