"""What the gains of normalisations are worth when channels go: left as they are, by width, or by what flows.

Residual networks of five blocks (width 64) with RMS or layer norms, trained on MNIST's digits, lose the channels of
their residual stream that are smallest; nothing is trained afterwards. *By width* is the root of the ratio of widths,
what `Prune` does: for RMS norms, the divisor of all channels with those that went zero. *By what
flows* is the root of the ratio of the mean squares (variances, for layer norms) over the channels that stay and over
all, on the training pictures. Differences to gains left as they are, paired over the seeds, with intervals of 95 %.

    make bench NAME=gains       a minute on one core
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from table import write
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.model.capture import Inputs
from lilliput.model.coupling import Shrinking, coupling
from lilliput.techniques.slices import magnitude

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from data import digits

WIDTH, SEEDS, AMOUNTS = 64, 10, (0.125, 0.25, 0.375, 0.5)
NORMS = {"rms": lambda: nn.RMSNorm(WIDTH, eps=1e-6), "layer": lambda: nn.LayerNorm(WIDTH)}
T95 = 2.262  # Student's, 9 degrees of freedom


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


def squares(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What flows into each norm, squared, [samples, channels]; for layer norms without the mean."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, given, path=path: seen.__setitem__(path, given[0].double()))
        for path, module in net.named_modules()
        if isinstance(module, nn.RMSNorm | nn.LayerNorm)
    ]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return seen


def ways(net: nn.Module, amount: float, x: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """The network without a share of its residual channels, its gains set in each of the ways."""
    given, norms = Inputs.of(x[:2]), squares(net, x)
    coupled = coupling(net, given)
    (stream,) = (group for group in coupled.groups if group.size == WIDTH)
    going = [stream.atoms[i] for i in magnitude(stream, coupled.tensors.__getitem__).argsort()[: int(amount * WIDTH)]]
    small = copy.deepcopy(net)
    for edit, tensors in Shrinking(net, coupled, given).proven(going):
        edit.apply(small, tensors)
    kept = torch.from_numpy(coupled.left(coupled.held["1.bias"][0], going))
    for way in ("as they are", "by width", "by what flows"):
        made = copy.deepcopy(small)
        for path, flows in norms.items():
            norm = made.get_submodule(path)
            centred = [part - part.mean(-1, keepdim=True) for part in (flows[:, kept], flows)]
            parts = (flows[:, kept], flows) if isinstance(norm, nn.RMSNorm) else centred
            one, other = (float(part.square().mean()) for part in parts)
            factor = {"by width": WIDTH / int(kept.sum()), "by what flows": one / other}.get(way, 1.0)
            norm.weight.data = net.get_submodule(path).weight.data[kept] * math.sqrt(factor)
        yield way, made


def main() -> None:
    torch.set_num_threads(1)
    held = digits()
    rows: list[dict[str, Any]] = []
    for norm in NORMS:
        found: dict[tuple[float, str], list[tuple[float, float]]] = {}
        for seed in range(SEEDS):
            net = trained(norm, seed, held.train.inputs, held.train.labels)
            found.setdefault((0.0, "dense"), []).append(judged(net, *held.test))
            for amount in AMOUNTS:
                for way, made in ways(net, amount, held.train.inputs[:512]):
                    found.setdefault((amount, way), []).append(judged(made, *held.test))
        for (amount, way), each in found.items():
            row: dict[str, Any] = {"norm": norm, "removed": amount, "gains": way, "seeds": SEEDS}
            for k, name in enumerate(("loss", "accuracy_percent")):
                row[name] = fmean(one[k] for one in each)
                plain = found.get((amount, "as they are"), each)
                apart = [one[k] - other[k] for one, other in zip(each, plain, strict=True)]
                row |= {f"{name}_change": fmean(apart), f"{name}_interval": T95 * stdev(apart) / math.sqrt(SEEDS)}
            rows.append(row)
            print(row, flush=True)
    write("gains", rows, 1)


if __name__ == "__main__":
    main()
