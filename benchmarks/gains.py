"""What the gains of normalisations are worth when channels go: left as they are, by width, or by what flows.

Residual networks of five blocks (width 64) with RMS or layer norms, trained on MNIST's digits, lose the channels of
their residual stream that are smallest; nothing is trained afterwards. *By width* is the root of the ratio of widths,
what `Prune` does: for RMS norms, the divisor of all channels with those that went zero. *By what
flows* is the root of the ratio of the mean squares (variances, for layer norms) over the channels that stay and over
all, on the training pictures. Differences to gains left as they are, paired over the seeds, with intervals of 95 %.

SmolLM2-135M (as in `llm.py`) likewise, on 8 sequences of 256 tokens: its channels go by how little flows in them, for
those of small weights carry so much that without 2 % of them nothing is left to compare.

    make bench NAME=gains                          three minutes on one core
    … make bench NAME=gains ARGS=--language        and the rows of SmolLM2, with what llm.py needs; ten more
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import llm
import torch
from table import write
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.model.surgery.coupling import Coupling, Shrinking, coupling
from lilliput.model.views.inputs import Inputs
from lilliput.techniques.slices import scored

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from data import digits

WIDTH, SEEDS, AMOUNTS = 64, 10, (0.125, 0.25, 0.375, 0.5)
NORMS = {"rms": lambda: nn.RMSNorm(WIDTH, eps=1e-6), "layer": lambda: nn.LayerNorm(WIDTH)}
T95 = {10: 2.262, 8: 2.365}  # Student's, by the number of seeds or sequences


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.up, self.down = norm, nn.Linear(WIDTH, 128), nn.Linear(128, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))  # type: ignore[no-any-return]


def network(norm: str) -> nn.Sequential:
    blocks = (Block(NORMS[norm]()) for _ in range(5))
    return nn.Sequential(nn.Flatten(), nn.Linear(784, WIDTH), *blocks, NORMS[norm](), nn.Linear(WIDTH, 10))


def trained(norm: str, seed: int, x: Tensor, labels: Tensor) -> nn.Sequential:
    torch.manual_seed(seed)
    net = network(norm)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def judged(net: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, float]:
    """Loss and accuracy, in per cent."""
    out = net(x)
    return float(F.cross_entropy(out, labels)), 100 * float((out.argmax(1) == labels).double().mean())


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.RMSNorm | nn.LayerNorm) or type(module).__name__ == "LlamaRMSNorm"


def flows(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What flows into each norm, [samples, channels]; of layer norms without the mean."""
    seen: dict[str, Tensor] = {}

    def see(path: str, y: Tensor) -> None:
        y = y.flatten(0, -2)
        seen[path] = y - y.mean(-1, keepdim=True) if isinstance(net.get_submodule(path), nn.LayerNorm) else y

    hooks = [
        module.register_forward_pre_hook(lambda _, given, path=path: see(path, given[0]))
        for path, module in net.named_modules()
        if is_norm(module)
    ]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return seen


def ways(
    net: nn.Module, coupled: Coupling, given: Inputs, going: list[int], kept: Tensor, x: Tensor
) -> Iterator[tuple[str, nn.Module]]:
    """The network without these atoms, where `kept` channels stay, its gains set in each of the ways."""
    small = copy.deepcopy(net)
    for edit, tensors in Shrinking(net, coupled, given).checked(going):
        edit.apply(small, tensors)
    before = {path: (y, net.get_submodule(path).weight.data) for path, y in flows(net, x).items()}
    for way in ("as they are", "by width", "by what flows"):
        for path, (y, gains) in before.items():
            part = y[:, kept] - y[:, kept].mean(-1, keepdim=True) * isinstance(net.get_submodule(path), nn.LayerNorm)
            measured = float(part.square().mean()) / float(y.square().mean())
            factor = {"by width": len(kept) / int(kept.sum()), "by what flows": measured}.get(way, 1.0)
            small.get_submodule(path).weight.data = gains[kept] * math.sqrt(factor)
        yield way, small


Found = dict[tuple[float, str], list[tuple[float, ...]]]


def residual(norm: str) -> Found:
    """Loss and accuracy of each seed."""
    held, found = digits(), Found()
    for seed in range(SEEDS):
        net = trained(norm, seed, held.train.inputs, held.train.labels)
        found.setdefault((0.0, "dense"), []).append(judged(net, *held.test))
        given = Inputs.of(held.train.inputs[:2])
        coupled = coupling(net, given)
        (stream,) = (group for group in coupled.groups if group.size == WIDTH)
        order = scored(stream, coupled.tensors.__getitem__, lambda path, x: x.double().square(), 2).argsort()
        for amount in AMOUNTS:
            going = [stream.atoms[i] for i in order[: int(amount * WIDTH)]]
            kept = torch.from_numpy(coupled.left(coupled.held["1.bias"][0], going))
            for way, made in ways(net, coupled, given, going, kept, held.train.inputs[:512]):
                found.setdefault((amount, way), []).append(judged(made, *held.test))
    return found


def language() -> Found:
    """The loss of each sequence."""
    net, tokens = llm.network()
    calibration, test = (part[:: len(part) // 8][:8, :256] for part in llm.sequences(tokens))
    found = {(0.0, "dense"): [(loss,) for loss in llm.losses(net, test)]}
    given = Inputs.of(calibration[:1, :16])
    coupled = coupling(net, given)
    embedding = next(path for path in coupled.held if path.endswith("embed_tokens.weight"))
    axis = coupled.held[embedding][1]
    sizes = [y.square().mean(0) for y in flows(net, calibration).values()]
    order = torch.stack([size / size.mean() for size in sizes]).sum(0).argsort()
    parts = coupled.atoms.parts(axis)[:, 0]
    for amount in (0.02, 0.05, 0.1):
        going = [int(parts[i]) for i in order[: int(amount * len(order))]]
        kept = torch.from_numpy(coupled.left(axis, going))
        for way, made in ways(net, coupled, given, going, kept, calibration):
            found[amount, way] = [(loss,) for loss in llm.losses(made, test)]
            print(amount, way, math.exp(fmean(loss for (loss,) in found[amount, way])), flush=True)
    return found


def table(network: str, found: Found) -> list[dict[str, Any]]:
    rows = []
    for (amount, way), each in found.items():
        row: dict[str, Any] = {"network": network, "removed": amount, "gains": way, "seeds_or_sequences": len(each)}
        plain = found.get((amount, "as they are"), each)
        for k, name in enumerate(("loss", "accuracy_percent")[: len(each[0])]):
            apart = [one[k] - other[k] for one, other in zip(each, plain, strict=True)]
            row[name] = fmean(one[k] for one in each)
            interval = T95[len(each)] * stdev(apart) / math.sqrt(len(each))
            row |= {f"{name}_change": fmean(apart), f"{name}_interval": interval}
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--language", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for norm in NORMS for row in table(f"{norm} norms, MNIST", residual(norm))]
    rows += table("SmolLM2-135M", language()) if asked.language else []
    write("gains", rows, 1, keep=lambda row: row["network"] == "SmolLM2-135M" and not asked.language)


if __name__ == "__main__":
    main()
