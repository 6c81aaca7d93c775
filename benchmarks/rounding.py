"""How much of the damage that rounding does to logits is undone by rounding by what flows: 4-bit weights.

ResNet-20 on Fashion-MNIST, calibrated on 512 training pictures and judged on the test set; EfficientNet-Lite0,
calibrated on 64 crops of 8 photographs, a batch each, and judged on crops of 20 others, and on other crops of the 8.
The rest of the network is in float; all rows have the same number format, and rounding to the nearest has scales of
least squared error and corrected biases too. Arguments: names of networks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
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
    "GPTQ, nothing taken for chance": lp.GPTQ(shrink=0.0),
    "GPTQ": lp.GPTQ(),
    "GPTQ without sweeps, each layer for itself": lp.GPTQ(sweeps=0, correct=False),
    "AdaRound": lp.AdaRound(),
    "BRECQ, 300 steps": lp.BRECQ(steps=300),
}
QUICK = 3  # of them, for the larger network
Judged = dict[str, tuple[Tensor, Tensor | None]]  # inputs, and the class of each where it is known


def resnet20() -> tuple[lp.Task, Judged]:
    pictures, _ = fashion.read("train")
    chosen = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:512]
    task = lp.Task(fashion.resnet20(), calibrate=list(pictures[chosen].split(64)))
    return task, {"resnet20": fashion.read("t10k")}


def lite0() -> tuple[lp.Task, Judged]:
    task = networks.lite0()
    crops = networks.data.calibration(16)  # one of each photograph, then the next of each
    seen, others = crops[:64], crops[64:]
    judged: Judged = {
        "lite0": (torch.cat(list(task.evaluate or ()))[::4], None),
        "lite0, other crops of the calibration photographs": (others, None),
    }
    return replace(task, calibrate=[seen[i::8] for i in range(8)]), judged


NETWORKS = {"resnet20": resnet20, "lite0": lite0}


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for name in sys.argv[1:] or NETWORKS for row in judged(name)]
    write("rounding", rows, 1)


def judged(name: str) -> list[dict[str, Any]]:
    task, by = NETWORKS[name]()
    exact = {called: logits(task.model.eval(), x) for called, (x, _) in by.items()}
    rows: dict[str, list[dict[str, Any]]] = {called: [] for called in by}
    roundings = list(ROUNDINGS.items())
    for how, rounding in roundings if name == "resnet20" else roundings[:QUICK]:
        began = perf_counter()
        driver, _ = begin(task, lp.OnnxRuntime(threads=1), Store(), silent)
        follow(lp.Recipe([lp.Quantize(weights=lp.Int(4), rounding=rounding)]), driver)
        seconds = perf_counter() - began
        for called, (x, labels) in by.items():
            row = {"network": called, "weights": "int4 per channel", "rounding": how, "seconds": seconds}
            row |= compared(exact[called], logits(driver.model, x), labels)
            row["recovered"] = 1 - row["damage"] / (rows[called][0] if rows[called] else row)["damage"]
            rows[called].append(row)
            print({key: row[key] for key in ("network", "rounding", "recovered", "sqnr_db", "seconds")}, flush=True)
    return [row for part in rows.values() for row in part]


def compared(exact: Tensor, out: Tensor, labels: Tensor | None) -> dict[str, Any]:
    damage = float((out - exact).square().sum())
    return {
        "recovered": 0.0,
        "sqnr_db": float(10 * torch.log10(exact.square().sum() / damage)),
        "agreement_percent": 100 * mean((out.argmax(1) == exact.argmax(1)).float().numpy()).value,
        "samples": len(exact),
        "damage": damage,
        **({} if labels is None else accuracy(exact, out, labels)),
    }


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
