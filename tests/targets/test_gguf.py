"""llama.cpp as a target: what it is given, what it is not, and, where it is installed, what it answers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import lilliput as lp
from lilliput.errors import InputError
from lilliput.formats import Float16, Int
from lilliput.model.carrier.carrier import encoded_tensors
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.targets import Gguf
from lilliput.techniques.run import Wanted

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
installed = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed: PyPI has no wheel of it",
)


def decoder(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    net = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=320, use_cache=False, tie_word_embeddings=tied)).eval()
    for x in net.parameters():
        if x.dim() > 1:
            torch.nn.init.normal_(x, std=0.15)  # logits that differ, where a new network's are all alike
    return net


def tokens(count: int = 2, length: int = 24) -> Tensor:
    return torch.randint(0, 320, (count, length), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("tied", [True, False])
def test_linear_layers_are_blocks_of_four_bits_and_the_ends_of_eight(tied: bool, tmp_path: Path) -> None:
    net, target = decoder(tied), Gguf(threads=1)
    view = capture(net, Inputs.of({"input_ids": tokens()}), {})
    task = lp.Task(net, example={"input_ids": tokens()}, dynamic={"input_ids": {}})
    small = lp.apply(task, target.prefers.recipe(view, False))
    bits = {paths[0].rpartition(".")[0]: held.encoding.bits for paths, held in encoded_tensors(small)}
    ends = {"model.embed_tokens"} | (set() if tied else {"lm_head"})
    assert {path for path, count in bits.items() if count == 8} == ends
    assert {count for path, count in bits.items() if path not in ends} == {4}
    path = tmp_path / "net.gguf"
    target.writes.build(path, small, Inputs.of({"input_ids": tokens()}), {})
    assert path.stat().st_size < 0.25 * sum(4 * x.numel() for x in net.parameters())


def test_values_that_flow_are_left_with_the_reason() -> None:
    view = capture(decoder(), Inputs.of({"input_ids": tokens()}), {})
    paths = list(view.weights)
    placed = Gguf(threads=1).prefers.place(view, Wanted(dict.fromkeys(paths, Int(8)), {}))
    assert not placed.values and placed.left.keys() == set(paths)
    assert all("no place for ranges" in why for why in placed.left.values())


def test_remarks_tell_what_is_integers() -> None:
    view, prefers = capture(decoder(), Inputs.of({"input_ids": tokens()}), {}), Gguf(threads=1).prefers
    calls = {path.rpartition(".")[0]: used[0] for path, used in view.weights.items()}
    block = Int(4, group=32, scale=Float16())
    assert "integer blocks" in prefers.remark(calls["model.layers.0.mlp.down_proj"], block, None)
    assert "rows are decoded" in prefers.remark(calls["model.embed_tokens"], block, None)
    assert prefers.remark(calls["model.layers.0.mlp.down_proj"], Float16(), None) == "float"


def test_without_llama_cpp_it_says_so_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(InputError, match=r"llama-cpp-python is not installed.*save_gguf"):
        lp.compress(lp.Task(decoder(), example={"input_ids": tokens()}), target="gguf")


@installed
@pytest.mark.parametrize("length", [5, 24, 300])
def test_it_answers_as_the_module(length: int, tmp_path: Path) -> None:
    net, target = decoder(), Gguf(threads=1)
    example = Inputs.of({"input_ids": tokens(2, length)})
    path = tmp_path / "net.gguf"
    target.writes.build(path, net, example, {})
    with torch.no_grad():
        right = net(input_ids=tokens(2, length))
    run = target.opened(path, Signature.of(example, right, net.forward))
    found = run(input_ids=tokens(2, length))
    close(found["logits"], right.logits, share=0.01)
    masked = Inputs.of({"input_ids": tokens(), "attention_mask": torch.tensor([[1] * 24, [1] * 20 + [0] * 4])})
    with torch.no_grad():
        run = target.opened(path, Signature.of(masked, masked.call(net), net.forward))
    with pytest.raises(InputError, match="leaves tokens out"):
        masked.call(run)


@installed
def test_a_network_is_compressed_for_it_judged_and_timed_there(tmp_path: Path) -> None:
    batches = [{"input_ids": tokens(2)}, {"input_ids": tokens(3)[:2]}]
    task = lp.Task(decoder(), example=batches[0], evaluate=batches, output="tokens", dynamic={"input_ids": {}})
    small = lp.compress(task, target=Gguf(threads=1, seconds=1), folder=tmp_path)
    assert small.built.name == "net.gguf" and small.data["ratio"]["smaller"] > 5
    assert 15 < small.data["export"]["after"]["sqnr_db"] < 100
    assert small.data["agreement"]["outputs"][0]["kind"] == "tokens"
