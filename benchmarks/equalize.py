"""What rescaling before rounding, and the half-quadratic fit, add to outputs: SQNR in dB on the evaluation batches.

The module is asked as it would run on its target; nothing is built or timed. Arguments: names of networks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from networks import NETWORKS
from table import write

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.measure import DistanceSoFar
from lilliput.progress import silent
from lilliput.techniques.technique import Technique

STATIC = lp.Quantize(weights=lp.Int(8), activations=lp.Int(8))
FOUR, TENSOR = lp.Int(4, group=64), lp.Quantize(weights=lp.Int(8, per="tensor"))
CASES: dict[str, dict[str, Sequence[Technique]]] = {
    "minilm": {
        "int8, ranges at run time": [lp.Quantize(weights=lp.Int(8), activations=lp.Int(8, dynamic=True))],
        "int8, calibrated": [STATIC],
        **{f"Smooth({alpha}), int8, calibrated": [lp.Equalize(lp.Smooth(alpha)), STATIC] for alpha in (0.3, 0.5, 0.7)},
        "int4 in groups of 64": [lp.Quantize(weights=FOUR)],
        "AWQ, int4 in groups of 64": [lp.Equalize(lp.AWQ(FOUR)), lp.Quantize(weights=FOUR)],
        "int4 in groups of 64, HQQ": [lp.Quantize(weights=FOUR, fit=lp.HQQ())],
    },
    "lite0": {
        "int8, one scale a tensor": [TENSOR],
        "Ranges, int8, one scale a tensor": [lp.Equalize(lp.Ranges()), TENSOR],
    },
}


def main() -> None:
    torch.set_num_threads(1)
    rows = [
        {"network": network, "recipe": name, **measured(network, steps)}
        for network, cases in CASES.items()
        if network in (sys.argv[1:] or CASES)
        for name, steps in cases.items()
    ]
    write("equalize", rows, threads=1)


def measured(network: str, steps: Sequence[Technique]) -> dict[str, Any]:
    """The distance of outputs, and how many layers were rescaled."""
    task = NETWORKS[network]()
    driver, batches = begin(task, lp.OnnxRuntime(threads=1), Store(), silent)
    follow(lp.Recipe(steps), driver)
    so_far = DistanceSoFar()
    with torch.no_grad():
        for inputs in batches or ():
            so_far.add(inputs.call(task.model), inputs.call(driver.model))
    left = sum("not equalized" in reason for reason in driver.skipped.values())
    rescales = any(isinstance(step, lp.Equalize) for step in steps)
    found = so_far.distance()
    row = {
        "sqnr_db": found.sqnr_db,
        "cosine": found.cosine,
        "layers_rescaled": len(driver.view().weights) - left if rescales else 0,
        "samples": found.samples,
    }
    print(network, lp.Recipe(steps).steps, row, flush=True)
    return row


if __name__ == "__main__":
    main()
