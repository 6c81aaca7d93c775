"""torch-pruning on every architecture of the zoo, each in the setting that brings it furthest; one line of JSON each.

Run by a Python of its own, since the package is no dependency of Lilliput's:

    python3 -m venv peers && peers/bin/pip install -c constraints.txt torch==2.13.0 torch-pruning==1.6.1 \
        transformers onnx onnxscript onnxruntime
    peers/bin/python benchmarks/pruning_peers.py [NETWORK …]

The settings are those of its examples: local pruning by magnitude, half of the width, the final layers left alone,
heads told to it, whole heads or parts of them, widths rounded, the residual stream left as it is; the modules' numbers
of heads are put right afterwards, and its example's function for Swin's merged patches is given, as is one for the
transposed linear layers of GPT-2. The first setting in which a network runs forward and backward counts.
"""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from shrunk import Refused, Row, Trial, alone, figures, flat, kept_by_values, put_through, runs, said, trains, warm
from torch import Tensor, nn
from transformers.models.swin.modeling_swin import SwinPatchMerging
from transformers.pytorch_utils import Conv1D
from zoo import ZOO, subject

SECONDS, SECONDS_A_SETTING = 240, 30
LINEAR = (nn.Linear, Conv1D)
ROOTS = (nn.modules.conv._ConvNd, *LINEAR, nn.LSTM, SwinPatchMerging)
WHOLE = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
SETTINGS: dict[str, dict[str, Any]] = {
    "parts of heads": {},
    "whole heads": {**WHOLE, "round_to": 4},
    "parts of heads, rounded": {"round_to": 4},
    "parts of heads, residual stream kept": {"inside": True},
    "whole heads, residual stream kept": {"inside": True, **WHOLE},
}
Inputs = tuple[Tensor, ...]


def main() -> None:
    torch.set_num_threads(1)
    warm()
    for name in sys.argv[1:] or [known.name for known in ZOO]:
        print(json.dumps({"tool": "torch-pruning", **alone(one, load, name, SECONDS)}), flush=True)


def one(trial: Trial) -> None:
    with trial.step("build"):
        original, inputs = subject(trial.name).build()
        trial.row |= figures(original, inputs, "before")
    with trial.step("shrink"):
        best, small = furthest(trial.name)
    trial.row |= best
    if small is not None:
        put_through(
            trial,
            original,
            small,
            inputs,
            kept_by_values(original, small),
            save=lambda path: torch.save(small, path),
            export=lambda path: torch.onnx.export(small, inputs, str(path), dynamo=True, verbose=False),
        )


def load(name: str, file: str) -> Any:
    inputs = subject(name).build()[1]
    return torch.load(file, weights_only=False)(*inputs)


def furthest(name: str) -> tuple[Row, nn.Module | None]:
    """The first setting in which the network runs forward and backward, or the one nearest to that."""
    original, inputs = subject(name).build()
    with torch.no_grad():
        wanted = original(*inputs)
    told: list[tuple[int, Row]] = []
    for called, setting in SETTINGS.items():
        if "whole" in called and not list(attentions(original)):
            continue
        model, row = subject(name).build()[0], {"setting": called}
        acts: dict[str, Callable[[], Any]] = {
            "shrink": functools.partial(shrink, model, inputs, **setting),
            "forward": functools.partial(runs, model, inputs, wanted),
            "backward": functools.partial(trains, model, inputs),
        }
        for reached, (at, act) in enumerate(acts.items()):
            try:
                with limited(SECONDS_A_SETTING):
                    act()
            except TimeoutError as error:  # in following dependencies, which all settings have in common
                return row | {"failed": at, "error": said(error)}, None
            except Exception as error:
                told.append((reached, row | {"failed": at, "error": said(error)}))
                break
        else:
            return row | figures(model, inputs, "after"), model
    return max(told, key=lambda pair: pair[0])[1], None


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"took over {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def shrink(model: nn.Module, inputs: Inputs, inside: bool = False, **setting: Any) -> None:
    """Half of every width, in place."""
    before = sum(x.numel() for x in model.parameters())
    ignored, found = final_layers(model, inputs), list(attentions(model))
    given: dict[str, Any] = {
        "example_inputs": inputs,
        "output_transform": lambda out: sum(x.sum() for x in flat(out)),
        "customized_pruners": {SwinPatchMerging: MergedPatches(), Conv1D: Transposed()},
    }
    if inside:
        ignored += residual_stream(tp.DependencyGraph().build_dependency(model, **given), ignored)
    pruner = tp.pruner.MetaPruner(
        model,
        importance=tp.importance.MagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=0.5,
        ignored_layers=ignored,
        num_heads={part: heads for attention in found for part, heads in attention.heads.items()},
        in_channel_groups={},
        out_channel_groups={m.gate_up_proj: 2 for m in model.modules() if hasattr(m, "gate_up_proj")},
        root_module_types=ROOTS,
        **given,
        **setting,
    )
    for group in pruner.step(interactive=True):
        group.prune()
    for attention in found:
        attention.put_right(pruner.num_heads)
    if sum(x.numel() for x in model.parameters()) == before:
        raise Refused("it removed nothing")


def final_layers(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """The layers behind which there is no other: what they give is the answer, and keeps its width."""
    owners = {id(x): m for m in model.modules() if isinstance(m, ROOTS) for x in m.parameters(recurse=False)}
    found: dict[nn.Module, None] = {}
    waiting, seen = [x.grad_fn for x in flat(model(*inputs))], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        behind = [following for following, _ in node.next_functions]
        near = {owners[id(x)]: None for x in map(leaf, behind) if id(x) in owners}
        found |= near
        waiting += [] if near else behind
    return list(found)


def leaf(node: Any) -> Any:
    """The parameter that the node is, or looks at from another side."""
    while node is not None and not hasattr(node, "variable"):
        if node.name() not in ("TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0"):
            return None
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)


def residual_stream(graph: Any, finals: list[nn.Module]) -> list[nn.Module]:
    """All layers that give what the final layers read."""
    groups = [graph.get_pruning_group(m, graph.get_pruner_of_module(m).prune_in_channels, [0]) for m in finals]
    pairs = [(dep.target.module, dep.handler) for group in groups for dep, _ in group]
    return [m for m, handler in pairs if isinstance(m, nn.Module) and graph.is_out_channel_pruning_fn(handler)]


@dataclass
class Attention:
    """A module that attends, and the layers that give its queries, keys and values with their numbers of heads."""

    module: nn.Module
    heads: dict[nn.Module, int]
    width: int  # of the queries

    def put_right(self, now: dict[nn.Module, int]) -> None:
        """Write into the module's attributes what is left, as torch-pruning's examples do."""
        module, (first, *rest) = self.module, self.heads
        if isinstance(module, nn.MultiheadAttention):
            return
        heads, shared = now[first], now[rest[0]] if rest else now[first]
        width = first.nf if isinstance(first, Conv1D) else first.out_features
        size = width // heads if rest else width // (heads * 3)
        new = dict.fromkeys(("num_attention_heads", "num_heads", "n_heads", "heads"), heads)
        new |= dict.fromkeys(("attention_head_size", "head_dim", "size", "head_size", "key_value_proj_dim"), size)
        new |= {"num_key_value_groups": heads // shared, "num_key_value_heads": shared, "shared": shared}
        for name in ("all_head_size", "embed_dim", "inner_dim", "split_size", "hidden_size", "dim"):
            if getattr(module, name, None) == self.width:
                new[name] = heads * size
        for name, value in new.items():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value)


PARTS = (
    *(("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), ("q_lin", "k_lin", "v_lin")),
    *(("query_proj", "key_proj", "value_proj"), ("qkv",), ("qkv_proj",), ("query_key_value",), ("c_attn",)),
)


def attentions(model: nn.Module) -> Iterator[Attention]:
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            yield Attention(module, {module: module.num_heads}, module.embed_dim)
        for names in PARTS:
            parts = [getattr(module, name, None) for name in names]
            heads = number(module, "num_attention_heads", "num_heads", "n_heads", "heads", "n_head")
            if heads is None or not all(isinstance(part, LINEAR) for part in parts):
                continue
            shared = number(module, "num_key_value_heads", "shared") or heads
            width = parts[0].nf if isinstance(parts[0], Conv1D) else parts[0].out_features
            told = dict(zip(parts, (heads, shared, shared), strict=False))
            yield Attention(module, told, width if len(parts) > 1 else width // 3)


def number(module: nn.Module, *names: str) -> int | None:
    places = (module, getattr(module, "config", None))
    found = (getattr(place, name, None) for place in places for name in names)
    return next((n for n in found if isinstance(n, int)), None)


class MergedPatches(tp.BasePruningFunc):
    """Swin's patches of 2 × 2, one beside the other: removing a channel removes four inputs."""

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        tp.prune_linear_out_channels(layer.reduction, idxs)
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        every = [i + part * self.get_in_channels(layer) for part in range(4) for i in idxs]
        tp.prune_linear_in_channels(layer.reduction, every)
        tp.prune_layernorm_out_channels(layer.norm, every)
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        return layer.reduction.out_features

    def get_in_channels(self, layer: nn.Module) -> int:
        return layer.reduction.in_features // 4


class Transposed(tp.BasePruningFunc):
    """A linear layer whose weight is [inputs, outputs]."""

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        kept = sorted(set(range(layer.nf)) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 1)
        layer.bias = self._prune_parameter_and_grad(layer.bias, kept, 0)
        layer.nf = len(kept)
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        kept = sorted(set(range(layer.nx)) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 0)
        layer.nx = len(kept)
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        return layer.nf

    def get_in_channels(self, layer: nn.Module) -> int:
        return layer.nx


if __name__ == "__main__":
    main()
