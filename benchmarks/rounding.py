"""How much of the damage that rounding does to logits is undone by rounding by what flows: 4-bit weights.

ResNet-20 on Fashion-MNIST, calibrated on 512 training pictures and judged on the test set; EfficientNet-Lite0,
calibrated on crops of 8 photographs and judged on crops of 20 others. The rest of the network is in float; all rows
have the same number format, and rounding to the nearest has scales of least squared error and corrected biases too.
Arguments: names of networks.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

import fashion
import networks
import torch
from table import write
from torch import Tensor

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.measure import mean, paired_difference
from lilliput.progress import silent

ROUNDINGS: dict[str, Any] = {
    "to the nearest": None,
    "GPTQ without sweeps, each layer for itself": lp.GPTQ(sweeps=0, correct=False),
    "GPTQ without correction of earlier layers": lp.GPTQ(correct=False),
    "GPTQ": lp.GPTQ(),
    "GPTQ, damp 0.1": lp.GPTQ(damp=0.1),
    "AdaRound": lp.AdaRound(),
}


def resnet20() -> tuple[lp.Task, Tensor, Tensor | None]:
    pictures, _ = fashion.read("train")
    chosen = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:512]
    return lp.Task(fashion.resnet20(), calibrate=list(pictures[chosen].split(64))), *fashion.read("t10k")


def lite0() -> tuple[lp.Task, Tensor, Tensor | None]:
    task = networks.lite0()
    return task, torch.cat(list(task.evaluate or ()))[::4], None


NETWORKS = {"resnet20": resnet20, "lite0": lite0}


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for name in sys.argv[1:] or NETWORKS for row in judged(name)]
    write("rounding", rows, 1)


def judged(name: str) -> list[dict[str, Any]]:
    task, x, labels = NETWORKS[name]()
    exact = logits(task.model.eval(), x)
    rows: list[dict[str, Any]] = []
    for called, rounding in ROUNDINGS.items():
        began = perf_counter()
        driver, _ = begin(task, lp.OnnxRuntime(threads=1), Store(), silent)
        follow(lp.Recipe([lp.Quantize(weights=lp.Int(4), rounding=rounding)]), driver)
        seconds = perf_counter() - began
        out = logits(driver.model, x)
        damage = float((out - exact).square().sum())
        rows.append(
            {
                "network": name,
                "weights": "int4 per channel",
                "rounding": called,
                "recovered": 1 - damage / (rows[0]["damage"] if rows else damage),
                "sqnr_db": float(10 * torch.log10(exact.square().sum() / damage)),
                "agreement_percent": 100 * mean((out.argmax(1) == exact.argmax(1)).float().numpy()).value,
                "samples": len(x),
                "seconds": seconds,
                "damage": damage,
                **({} if labels is None else accuracy(exact, out, labels)),
            }
        )
        print({key: rows[-1][key] for key in ("network", "rounding", "recovered", "sqnr_db", "seconds")}, flush=True)
    return rows


@torch.no_grad()
def logits(model: Any, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(250)])


def accuracy(exact: Tensor, out: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, and the change of it with an interval, in percent."""
    before, after = ((found.argmax(1) == labels).float().numpy() for found in (exact, out))
    change = paired_difference(before, after)
    return {
        "accuracy_percent": 100 * mean(after).value,
        "change": 100 * change.value,
        "change_low": 100 * change.low,
        "change_high": 100 * change.high,
    }


if __name__ == "__main__":
    main()
