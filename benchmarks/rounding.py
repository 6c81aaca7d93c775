"""How much of the damage that rounding does to logits is undone by rounding by what flows: 4-bit weights.

ResNet-20 on Fashion-MNIST, calibrated on 512 training pictures and judged on the test set; EfficientNet-Lite0,
calibrated on 64 crops of 8 photographs, a batch each, and judged on crops of 20 others, and on other crops of the 8.
The rest of the network is in float, and all rows have the same number format, with scales of least squared error.

The damage is the sum of squares by which logits change. `recovered` is the share of it that is undone, beside rounding
to the nearest with the biases as they are; `beyond_biases` beside rounding to the nearest with biases that take up what
changes on average, which is a technique of its own. Arguments: names of networks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from math import nan
from time import process_time
from typing import Any, NamedTuple

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


class Setting(NamedTuple):
    name: str
    rounding: Any
    correct_biases: bool = True


SETTINGS = (
    Setting("to the nearest", None, correct_biases=False),
    Setting("to the nearest", None),
    Setting("GPTQ", lp.rounding.GPTQ(), correct_biases=False),
    Setting("GPTQ", lp.rounding.GPTQ()),
    Setting("GPTQ, nothing taken for chance", lp.rounding.GPTQ(shrink=0.0)),
    Setting("GPTQ without sweeps, each layer for itself", lp.rounding.GPTQ(sweeps=0, correct=False)),
    Setting("AdaRound", lp.rounding.AdaRound(), correct_biases=False),
    Setting("AdaRound", lp.rounding.AdaRound()),
    Setting("BRECQ, 300 steps", lp.rounding.BRECQ(steps=300)),
)
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
    for name in sys.argv[1:] or NETWORKS:
        rows = judged(name)
        fresh = {row["network"] for row in rows}
        write("rounding", rows, 1, keep=lambda row, fresh=fresh: row["network"] not in fresh)


def judged(name: str) -> list[dict[str, Any]]:
    task, by = NETWORKS[name]()
    exact = {called: logits(task.model.eval(), x) for called, (x, _) in by.items()}
    rows: dict[str, list[dict[str, Any]]] = {called: [] for called in by}
    for how in SETTINGS:
        began = process_time()
        driver, _ = begin(task, lp.targets.OnnxRuntime(threads=1), Store(), silent)
        step = lp.Quantize(weights=lp.Int(4), rounding=how.rounding, bias_correction=how.correct_biases)
        follow(lp.Recipe([step]), driver)
        seconds = process_time() - began
        for called, (x, labels) in by.items():
            row: dict[str, Any] = {"network": called, "weights": "int4 per channel", "rounding": how.name}
            row |= {"biases_corrected": how.correct_biases, "processor_seconds": seconds}
            row |= compared(exact[called], logits(driver.model, x), labels)
            rows[called].append(row)
            print(row, flush=True)
    for found in rows.values():
        plain, biased = (row["damage"] for row in found[:2])
        for row in found:
            row |= {"recovered": 1 - row["damage"] / plain, "beyond_biases": 1 - row["damage"] / biased}
    return [row for found in rows.values() for row in found]


def compared(exact: Tensor, out: Tensor, labels: Tensor | None) -> dict[str, Any]:
    damage = float((out - exact).square().sum())
    return {
        "recovered": nan,
        "beyond_biases": nan,
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
