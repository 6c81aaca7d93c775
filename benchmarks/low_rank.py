"""Layers as products of two factors: what they take beside the originals, at several ranks.

Linear layers as in a transformer (widths 512 and 2,048, 128 tokens) and convolutions of 3×3 (128 channels, 28×28
places), with random weights: what is lost says nothing here, and what is gained does not depend on the numbers. All
files of a network are timed in turns, in several processes, on one thread and on all. And MiniLM, not trained after it:
what is lost by factors near to its weights, and by those whose answers are near for what flows.

Convolutions are divided too, in each form by shares of their numbers, beside products of as many.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networks
import torch
from table import write
from timings import timed
from torch import Tensor, nn

import lilliput as lp
from lilliput.external import bytes_of
from lilliput.measure import Noise, macs
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.model.views.signature import Signature
from lilliput.training.teachers import first_output

RANKS = (96, 64, 32)
AMOUNTS = (0.5, 0.75)  # of the numbers of convolutions that are divided
FORMS = ("spatial", "tucker", "separable")
INT8 = lp.Int(8, dynamic=True)


class Block(nn.Module):
    """The linear layers of a transformer's block: four of its width, and two of four times that."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.square = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.square:
            x = x + torch.relu(layer(x))
        return x + self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def convolutions(channels: int = 128) -> nn.Module:
    layers = [nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(*layers)


NETWORKS = {
    "linear layers": (Block, (1, 128, 512)),
    "convolutions of 3x3": (convolutions, (1, 128, 28, 28)),
}


def recipes(convolutions: bool) -> Iterator[tuple[str, int | None, list[Any]]]:
    """A name, the rank, and the steps."""
    yield "float", None, []
    for rank in RANKS:
        yield f"rank {rank}", rank, [lp.techniques.Factorize(rank)]
    yield "int8", None, [lp.Quantize(weights=lp.Int(8), activations=INT8)]
    yield "rank 64, int8", 64, [lp.techniques.Factorize(64), lp.Quantize(weights=lp.Int(8), activations=INT8)]
    for form, amount in itertools.product(FORMS, AMOUNTS) if convolutions else ():
        yield f"{form}, {amount} less", None, [lp.techniques.Factorize(amount=amount, form=form)]
    for amount in AMOUNTS if convolutions else ():
        yield f"product, {amount} less", None, [lp.techniques.Factorize(amount=amount)]


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    every = os.cpu_count() or 1
    for name, (make, shape) in NETWORKS.items():
        torch.manual_seed(0)
        net, example = make().eval(), Inputs.of(torch.randn(shape))
        files, costs = {}, {}
        for setting, rank, steps in recipes(name.startswith("convolutions")):
            module = lp.apply(lp.Task(net, *example.args), lp.Recipe(steps)) if steps else net
            files[setting] = folder / f"{len(files)}-{name.split()[0]}.onnx"
            lp.targets.OnnxRuntime().writes.build(files[setting], module, example, dynamic_axes(example, None))
            costs[setting] = rank, macs(module, example.args).total, _error(net, module, example)
        with torch.no_grad():
            signature = Signature.of(example, example.call(net))
        for threads in sorted({1, every}):
            taken = timed(files, lp.targets.OnnxRuntime(threads=threads), signature, example, rounds=5)
            for setting, (rank, products, _) in costs.items():
                yield {
                    "network": name,
                    "setting": setting,
                    "rank": rank,
                    "threads_used": threads,
                    "bytes": bytes_of(files[setting]),
                    "macs": products,
                    "fewer_macs": costs["float"][1] / products,
                    "error": costs[setting][2],
                    "ms": taken.ms(setting),
                    **taken.row("faster", "float", setting),
                }


def _error(net: nn.Module, module: nn.Module, example: Inputs) -> float:
    """The length of what answers are moved by, over theirs; of random weights, which are the hardest."""
    with torch.no_grad():
        exact, found = (first_output(example.call(one)) for one in (net, module))
    return float((found - exact).norm() / exact.norm())


def nearness() -> Iterator[dict[str, Any]]:
    """How near MiniLM's embeddings of texts not calibrated with stay, by what the factors are near to."""
    task = networks.NETWORKS["minilm"]()
    texts = list(task.evaluate or ())
    with torch.no_grad():
        exact = [first_output(Inputs.of(x).call(task.model.eval())) for x in texts]
        for amount in (0.3, 0.5):
            for by in ("weights", "inputs"):
                net = lp.apply(task, lp.Recipe([lp.techniques.Factorize(amount=amount, by=by, where="*layer*")]))
                noise = Noise()
                for x, before in zip(texts, exact, strict=True):
                    noise.add([before], [first_output(Inputs.of(x).call(net))])
                yield {
                    "network": "minilm",
                    "setting": f"{amount} of the weights, by {by}",
                    "sqnr_db": -10 * math.log10(noise.ratio),
                }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = [*nearness(), *rows(Path(folder))]
    write("low_rank", found, threads=os.cpu_count() or 1)


if __name__ == "__main__":
    main()
