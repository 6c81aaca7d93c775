"""What rescaling before rounding, and the half-quadratic fit, add to outputs: SQNR in dB on the evaluation batches.

The module is asked as it would run on its target; nothing is built or timed. Arguments: names of networks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from networks import NETWORKS
from table import write

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.measure import DistanceSoFar, furthest
from lilliput.model.views.inputs import Inputs
from lilliput.progress import silent
from lilliput.techniques.technique import Technique

STATIC = lp.Quantize(weights=lp.Int(8), activations=lp.Int(8))
FOUR, TENSOR = lp.Int(4, group=64), lp.Quantize(weights=lp.Int(8, per="tensor"))
CASES: dict[str, dict[str, Sequence[Technique]]] = {
    "minilm": {
        "int8, ranges at run time": [lp.Quantize(weights=lp.Int(8), activations=lp.Int(8, dynamic=True))],
        "int8, calibrated": [STATIC],
        **{
            f"SmoothQuant({alpha}), int8, calibrated": [lp.techniques.Equalize(lp.rescaling.SmoothQuant(alpha)), STATIC]
            for alpha in (0.3, 0.5, 0.7)
        },
        "int4 in groups of 64": [lp.Quantize(weights=FOUR)],
        "AWQ, int4 in groups of 64": [lp.techniques.Equalize(lp.rescaling.AWQ(FOUR)), lp.Quantize(weights=FOUR)],
        "int4 in groups of 64, MinMax": [lp.Quantize(weights=FOUR, fit=lp.ranges.MinMax())],
        "int4 in groups of 64, HQQ": [lp.Quantize(weights=FOUR, fit=lp.ranges.HQQ())],
        "int4 in groups of 64, HQQ(bound=inf)": [lp.Quantize(weights=FOUR, fit=lp.ranges.HQQ(bound=math.inf))],
    },
    "lite0": {
        "int8, one scale a tensor": [TENSOR],
        "Ranges, int8, one scale a tensor": [lp.techniques.Equalize(lp.rescaling.CrossLayer()), TENSOR],
    },
}


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for network in sys.argv[1:] or CASES:
        task, store = NETWORKS[network](), Store()
        with torch.no_grad():
            exact = [Inputs.of(batch).call(task.model.eval()) for batch in task.evaluate or ()]
        for name, steps in CASES[network].items():
            driver, _ = begin(task, lp.targets.OnnxRuntime(threads=1), store, silent)
            follow(lp.Recipe(steps), driver)
            row = {"network": network, "recipe": name, **measured(task, exact, driver)}
            print(row, flush=True)
            rows.append(row)
    write("equalize", rows, threads=1)


def measured(task: lp.Task, exact: Sequence[Any], driver: Driver) -> dict[str, Any]:
    """The distance of outputs, and how many layers were rescaled."""
    so_far = DistanceSoFar()
    with torch.no_grad():
        for batch, wanted in zip(task.evaluate or (), exact, strict=True):
            so_far.add(wanted, Inputs.of(batch).call(driver.model))
    found = furthest(so_far.distances())
    scaled = [path for path in driver.view().weights if path in driver.factors]
    return {
        "sqnr_db": found.sqnr_db,
        "weights_rescaled": len(scaled),
        "weights": len(driver.view().weights),
        "samples": found.samples,
    }


if __name__ == "__main__":
    main()
