"""Networks compressed a block at a time, `lp.stream`: memory, time and bytes.

A decoder of 3 billion random weights, written here as shards in bfloat16, becomes a `.lil` of 4 bits without data, its
scales by the largest weights, which takes a seventh of the time of the default fit and no less memory. And
SmolLM2-135M by GPTQ as it was published, at 4 bits, streamed from a file and whole in memory: whether both give the
same numbers. Each runs in a process of its own, whose peak memory is told. `benchmarks/llm.py` says where SmolLM2 and
the book come from:

    MOBY_DICK=package/data/data.txt make bench NAME=stream              both; ARGS='decoder' or 'smollm2' is one
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

OUT = Path("out") / "bench" / "stream"
SHARDS, SMOL = OUT / "shards", OUT / "smol"
SHARD_BYTES = 500_000_000
SEQUENCES = 32
DECODER = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}


def decoder() -> Any:
    """The decoder without numbers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**DECODER)).eval()


def write_shards() -> None:
    """Random weights as shards with an index, as checkpoints are laid out; one shard is in memory at a time."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    drawn = (torch.randn(1 << 24) * 0.02).bfloat16()  # all weights repeat these, for drawing 3 billion takes long
    SHARDS.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    for i, shard in enumerate(_shards(decoder())):
        name = f"model-{i + 1:05}.safetensors"
        made = {key: _random(x, drawn) for key, x in shard.items()}
        save_file(made, SHARDS / name)
        where |= dict.fromkeys(made, name)
    index = {"metadata": {}, "weight_map": where}
    (SHARDS / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(model: Any) -> Iterator[dict[str, Any]]:
    shard: dict[str, Any] = {}
    for name, x in model.named_parameters():
        if shard and sum(2 * held.numel() for held in shard.values()) + 2 * x.numel() > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = x
    yield shard


def _random(x: Any, drawn: Any) -> Any:
    import torch

    if x.dim() < 2:
        return torch.ones(x.shape, dtype=drawn.dtype)
    return drawn.repeat(-(-x.numel() // drawn.numel()))[: x.numel()].reshape(x.shape)


def billions() -> None:
    """The decoder, from its shards to a file of 4 bits."""
    import lilliput as lp

    weights = lp.Int(4, group=64, scale=lp.formats.Float16())
    model = decoder()
    began = perf_counter()
    recipe = lp.Recipe([lp.Quantize(weights=weights, fit=lp.ranges.MinMax())])
    told = lp.stream(OUT / "decoder.lil", model, SHARDS, recipe)
    print("seconds", perf_counter() - began)
    print("parameters", sum(x.numel() for x in model.parameters()))
    print("bytes_before", sum(path.stat().st_size for path in SHARDS.glob("*.safetensors")))
    print("bytes_after", sum(told.sizes.values()))


def prepare_smol() -> None:
    """SmolLM2 as a safetensors file, in float32."""
    from llm import network
    from safetensors.torch import save_file

    net, tokens = network()
    SMOL.mkdir(parents=True, exist_ok=True)
    state = {name: x for name, x in net.state_dict().items() if name != "net.lm_head.weight"}  # which is tied
    save_file({name: x.contiguous() for name, x in state.items()}, SMOL / "model.safetensors")
    net.net.config.save_pretrained(SMOL)
    save_file({"tokens": tokens}, SMOL / "tokens.st")


def _smol() -> tuple[Any, Any]:
    import torch
    from llm import Logits, sequences
    from safetensors.torch import load_file
    from transformers import AutoConfig, LlamaForCausalLM

    torch.set_float32_matmul_precision("medium")
    config = AutoConfig.from_pretrained(SMOL)
    batches, _ = sequences(load_file(SMOL / "tokens.st")["tokens"], SEQUENCES)
    return lambda: Logits(LlamaForCausalLM(config)).eval(), list(batches.split(1))


def smol_streamed() -> None:
    import torch
    from llm import steps

    import lilliput as lp

    make, batches = _smol()
    with torch.device("meta"):
        model = make()
    began = perf_counter()
    recipe, source = lp.Recipe(steps("GPTQ, plain", 4)), SMOL / "model.safetensors"
    told = lp.stream(OUT / "streamed.lil", model, source, recipe, calibrate=batches)
    print("seconds", perf_counter() - began)
    print("bytes_after", sum(told.sizes.values()))


def smol_whole() -> None:
    from llm import steps
    from safetensors.torch import load_file

    import lilliput as lp

    make, batches = _smol()
    model = make()
    model.load_state_dict(load_file(SMOL / "model.safetensors"), strict=False)
    began = perf_counter()
    small = lp.apply(model, lp.Recipe(steps("GPTQ, plain", 4)), calibrate=batches, target="eager")
    sizes = lp.save(OUT / "whole.lil", small)
    print("seconds", perf_counter() - began)
    print("bytes_after", sum(sizes.values()))


def differing() -> float:
    """The share of elements, of codes and of all else, that the two files of SmolLM2 do not have alike."""
    from lilliput.file.sources import source

    one, other = source(OUT / "streamed.lil"), source(OUT / "whole.lil")
    assert set(one.names()) == set(other.names())
    pairs = [(one.read(name), other.read(name)) for name in one.names()]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)


JOBS = {
    "shards": write_shards,
    "billions": billions,
    "smol": prepare_smol,
    "streamed": smol_streamed,
    "whole": smol_whole,
}


def _measured(job: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, job], check=True, stdout=subprocess.PIPE, text=True)
    found = (line.split() for line in done.stdout.splitlines())
    return {line[0]: float(line[1]) for line in found if len(line) == 2 and line[0] in _TOLD}


_TOLD = ("seconds", "parameters", "bytes_before", "bytes_after", "peak_mb")


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def decoder_rows() -> list[dict[str, Any]]:
    _measured("shards")
    return [{"what": "decoder, 4 bits without data, streamed", **_measured("billions")}]


def smollm2_rows() -> list[dict[str, Any]]:
    _measured("smol")
    streamed = {"what": "SmolLM2-135M, plain GPTQ at 4 bits, streamed", **_measured("streamed")}
    whole = {"what": "SmolLM2-135M, plain GPTQ at 4 bits, whole", **_measured("whole")}
    return [{**streamed, "share_unlike_whole": differing()}, whole]


ROWS = {"decoder": decoder_rows, "smollm2": smollm2_rows}


def main() -> None:
    asked = sys.argv[1:]
    if asked and asked[0] in JOBS:
        JOBS[asked[0]]()
        print("peak_mb", _peak_mb())
        return
    from table import write

    OUT.mkdir(parents=True, exist_ok=True)
    try:
        rows = [row for name in asked or ROWS for row in ROWS[name]()]
        for row in rows:
            print(row)
        new = {row["what"] for row in rows}
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        write("stream", rows, threads, keep=lambda row: row["what"] not in new)
    finally:
        for left in (SHARDS, SMOL):
            shutil.rmtree(left, ignore_errors=True)
        for file in OUT.glob("*.lil"):
            file.unlink()


if __name__ == "__main__":
    main()
