"""Weights of 4 bits in ONNX Runtime: multiplied as they lie packed, beside floats, int8, and decoded on loading.

A block of MiniLM's size, the gated layers of SmolLM2's, both with random weights, and MiniLM itself. All files of one
network are timed in turns, at one token and at 64, on one thread; each is also loaded by itself in a fresh process. The
SQNR is that of the built file's answers to the 64 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from networks import OUT, data, minilm, texts
from table import write
from timings import timed
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.halves import in_float32
from lilliput.external import bytes_of
from lilliput.measure import Noise
from lilliput.measure.loading import loading
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.model.views.signature import Signature
from lilliput.outputs import flatten_outputs

TARGET = lp.targets.OnnxRuntime(threads=1)
STANDARD = replace(TARGET, profile="ort-cpu")  # operators of the standard: decoded when the file is loaded
GROUPS, RUN_TIME = lp.Int(4, group=32), lp.Int(8, dynamic=True)
SETTINGS: dict[str, tuple[lp.Quantize | None, lp.targets.OnnxRuntime]] = {
    "float": (None, TARGET),
    "int8, ranges at run time": (lp.Quantize(activations=RUN_TIME), TARGET),
    "4 bits in groups of 32, decoded": (lp.Quantize(weights=GROUPS), STANDARD),
    "4 bits in groups of 32, packed": (lp.Quantize(weights=GROUPS), TARGET),
    "4 bits in groups of 32, packed, ranges at run time": (lp.Quantize(weights=GROUPS, activations=RUN_TIME), TARGET),
}
TOKENS = (1, 64)
Given = Callable[[int], Any]  # how many tokens -> the inputs


def block() -> tuple[lp.Task, Given]:
    """One block of MiniLM's size."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    config = BertConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536, attn_implementation="sdpa")
    return _random("a block as MiniLM has six", First(BertLayer(config)), 384)


def gated() -> tuple[lp.Task, Given]:
    """The gated layers of a block of SmolLM2's size, of which there are thirty."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    config = LlamaConfig(hidden_size=576, intermediate_size=1536)
    return _random("the gated layers of a block of SmolLM2-135M", LlamaMLP(config), 576)


def encoder() -> tuple[lp.Task, Given]:
    """MiniLM itself, on one message."""
    (whole,) = texts([" ".join(data.sms().test.texts[:12])], 1, TOKENS[-1])

    def given(tokens: int) -> Any:
        return {name: x[:, :tokens] for name, x in whole.items()}

    return replace(minilm(), name="MiniLM", example=given(TOKENS[-1])), given


class First(nn.Module):
    """A block, answering with what it hands on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out[0] if isinstance(out, tuple) else out


def _random(name: str, net: nn.Module, width: int) -> tuple[lp.Task, Given]:
    def given(tokens: int) -> Tensor:
        return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(tokens))

    example = given(TOKENS[-1])
    axes: dict[str | int, dict[int, str]] = {0: {1: "tokens"}}
    return lp.Task(net.eval(), example=example, calibrate=[example], dynamic=axes, name=name), given


def built(task: lp.Task, step: lp.Quantize | None, target: lp.targets.OnnxRuntime, path: Path) -> Path:
    """The file of one setting."""
    recipe = None if step is None else lp.Recipe([step])
    net = task.model if recipe is None else lp.apply(task, recipe, target=target)
    example = Inputs.of(task.example)
    target.writes.build(path, net, example, dynamic_axes(example, task.dynamic))
    return path


def measure(task: lp.Task, given: Given) -> list[dict[str, Any]]:
    """A row for each setting."""
    task = in_float32(task)
    files = {
        name: built(task, step, target, OUT / f"nbits-{i}.onnx")
        for i, (name, (step, target)) in enumerate(SETTINGS.items())
    }
    many = Inputs.of(given(TOKENS[-1]))
    with torch.no_grad():
        expected = many.call(task.model)
    signature = Signature.of(many, expected, task.model.forward)
    arrays = [x.numpy() for x in signature.arguments(many)]
    taken = {
        tokens: timed(files, TARGET, signature, Inputs.of(given(tokens)), rounds=15, round_s=0.05, settle_s=0.05)
        for tokens in TOKENS
    }
    rows = []
    for name, path in files.items():
        noise, loaded = Noise(), loading("onnxruntime", path, arrays, 1)
        noise.add(flatten_outputs(expected), flatten_outputs(many.call(TARGET.runs.open(path, signature))))
        row = {"network": task.name, "setting": name, "bytes": bytes_of(path), "sqnr_db": noise.db}
        if loaded is not None:
            row |= {"load_s": loaded.seconds, "load_peak_bytes": loaded.peak_bytes, "most_bytes": loaded.most_bytes}
        for tokens, each in taken.items():
            row[f"ms_{tokens}"] = each.ms(name)
            row |= {f"{key}_{tokens}": x for key, x in each.row("faster", "float", name).items()}
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write("nbits", [row for make in (block, gated, encoder) for row in measure(*make())], 1)


if __name__ == "__main__":
    main()
