"""EfficientNet-Lite0, MiniLM and ResNet-18 by the default recipe, run on one thread and on all cores.

    make bench NAME=demo ARGS=minilm    one of them again; the rows of the others stay, each of its own commit

What they gain in speed is measured here and nowhere else, in several processes (timings.py).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch
from networks import NETWORKS, OUT
from table import agreed, cost, write
from timings import Taken, timed

import lilliput as lp
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature


def main() -> None:
    rows, names = [], sys.argv[1:] or list(NETWORKS)
    for name in names:
        task = NETWORKS[name]()
        for threads in sorted({1, os.cpu_count() or 1}):
            folder = OUT / f"demo-{name}-{threads}"
            shutil.rmtree(folder, ignore_errors=True)  # latency is remembered in a folder; here it is to be measured
            target = lp.targets.OnnxRuntime(threads=threads)
            data, taken = lp.compress(task, target=target, folder=folder).data, speed(task, target, folder)
            sizes = {artifact["format"]: artifact["bytes"] for artifact in data["after"]["artifacts"]}
            change = data["metric"]
            rows.append(
                {
                    "network": name,
                    "run_threads": threads,
                    "onnx_smaller": data["ratio"]["smaller"],
                    "lil_smaller": data["ratio"]["smaller_file"],
                    "onnx_bytes": sizes["onnx"],
                    "lil_bytes": sizes["lil"],
                    **taken.row("faster", "before", "after"),
                    "before_ms": taken.ms("before"),
                    "after_ms": taken.ms("after"),
                    **agreed(data),
                    **cost(data),
                    "metric": change and change["name"],
                    "metric_change": change and change["change"]["value"],
                    "metric_change_low": change and change["change"]["low"],
                    "metric_change_high": change and change["change"]["high"],
                }
            )
            print(rows[-1], flush=True)
    order = list(NETWORKS)
    write(
        "demo",
        rows,
        os.cpu_count() or 1,
        keep=lambda row: row["network"] not in names,
        order=lambda row: order.index(row["network"]),
    )


def speed(task: lp.Task, target: lp.targets.OnnxRuntime, folder: Path) -> Taken:
    """What a run left in its folder, beside the network as it was."""
    example = Inputs.of(task.example)
    with torch.no_grad():
        signature = Signature.of(example, example.call(task.model))
    files = {"before": folder / "work" / "original.onnx", "after": folder / "net.onnx"}
    return timed(files, target, signature, example)


if __name__ == "__main__":
    main()
