"""What learnt scales, offsets and levels (LSQ) add to training through a quantizer whose ranges stay.

A small convolutional network on handwritten digits: trained in floats, quantized to few bits, and trained on twice from
the same start, with the encodings as calibration found them and with `learn_encodings=True`. Paired over seeds, each a
network of its own; 95 % intervals of Student's t. A row a setting; about two minutes.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scipy.stats
import torch
from table import write
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import Encoding

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import data  # type: ignore[import-not-found]

SEEDS = range(6)
SETTINGS: dict[str, tuple[Encoding, Encoding | None]] = {
    "weights and values of 2 bits": (lp.Int(2), lp.Int(2)),
    "weights and values of 3 bits": (lp.Int(3), lp.Int(3)),
    "weights and values of 4 bits": (lp.Int(4), lp.Int(4)),
    "weights of 2 bits": (lp.Int(2), None),
    "weights share 4 levels": (lp.formats.Codebook(4), None),
}
STEP = lp.Finetune(epochs=6, lr=1e-3, schedule="cosine")


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def accuracy(net: nn.Module, held: Any) -> float:
    return 100 * float((net.eval()(held.inputs).argmax(1) == held.labels).float().mean())


def task(net: nn.Module, held: Any) -> lp.Task:
    rows = torch.utils.data.TensorDataset(held.inputs, held.labels)
    loader = torch.utils.data.DataLoader(rows, batch_size=64, shuffle=True)
    return lp.Task(net, calibrate=list(held.inputs[:512].split(64)), train=loader, loss=loss)


def rows() -> Iterator[dict[str, Any]]:
    digits = data.digits()
    floats = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        given = task(network(), digits.train)
        floats.append(lp.train(given, lp.Finetune(epochs=8, lr=2e-3, schedule="cosine", seed=seed)).model.eval())
    for name, (weights, values) in SETTINGS.items():
        found: dict[str, list[float]] = {"before": [], "fixed": [], "learnt": []}
        for seed, net in zip(SEEDS, floats, strict=True):
            small = lp.apply(task(net, digits.train), lp.Recipe([lp.Quantize(weights=weights, activations=values)]))
            found["before"].append(accuracy(small, digits.test))
            for way, learn in (("fixed", False), ("learnt", True)):
                step = lp.Finetune(**{**vars(STEP), "learn_encodings": learn, "seed": seed})
                found[way].append(accuracy(lp.train(task(small, digits.train), step).model, digits.test))
        gain = [a - b for a, b in zip(found["learnt"], found["fixed"], strict=True)]
        low, high = scipy.stats.ttest_1samp(gain, 0).confidence_interval(0.95)
        means = {way: statistics.mean(each) for way, each in found.items()}
        row = {"setting": name, "floats": statistics.mean(accuracy(net, digits.test) for net in floats), **means}
        yield {
            **row,
            "gain": statistics.mean(gain),
            "gain_low": float(low),
            "gain_high": float(high),
            "seeds": len(SEEDS),
        }


def main() -> None:
    torch.set_num_threads(1)
    found = []
    for row in rows():
        print(row, flush=True)
        found.append(row)
    write("learned", found, 1)


if __name__ == "__main__":
    main()
