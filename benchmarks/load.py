"""What is told of a speed while other work keeps the machine busy: the ratio, its interval, or neither.

EfficientNet-Lite0 in float and by the default recipe, timed in turns beside processes that do nothing but run, or that
read memory. Each row tells what a user would see of one timing in one process, and both kinds of time that it was made
of. `quiet` means that this script keeps nothing busy: what others did meanwhile is in `others_cores`.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS, OUT
from table import write

import lilliput as lp
from lilliput.measure import Latencies, cpu, interleaved, median_ratio
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.report.speed import speed

REPEATS = 5
BUSY = "while True: pass"
HOG = "import numpy as np\na = np.ones(2 ** 25)\nwhile True: a += 1.0"
LOADS = {"quiet": [], "1 busy": [BUSY], "2 busy": [BUSY] * 2, "4 busy": [BUSY] * 4, "memory": [HOG]}


def main() -> None:
    task, folder, rows = NETWORKS["lite0"](), OUT / "load", []
    if not (folder / "net.onnx").exists():
        target = lp.targets.OnnxRuntime(seconds=0, safe=cpu().may_saturate)
        lp.compress(task, target=target, folder=folder)
    for threads in sorted({1, os.cpu_count() or 1}):
        for load in LOADS:
            for repeat in range(REPEATS):
                with kept_busy(LOADS[load]):
                    taken = timed(folder, task, threads)
                rows.append({"run_threads": threads, "load": load, "repeat": repeat, **told(taken)})
                print(rows[-1], flush=True)
    write("load", rows, os.cpu_count() or 1)


@contextmanager
def kept_busy(programs: list[str]) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    time.sleep(0.5 if others else 0.0)
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def timed(folder: Path, task: lp.Task, threads: int) -> Latencies:
    target, example = lp.targets.OnnxRuntime(threads=threads), Inputs.of(task.example)
    with torch.no_grad():
        signature = Signature.of(example, example.call(task.model))
    paths = {"before": folder / "work" / "original.onnx", "after": folder / "net.onnx"}
    runs = {name: functools.partial(example.call, target.runs.open(path, signature)) for name, path in paths.items()}
    return interleaved(runs, threads=threads)


def told(taken: Latencies) -> dict[str, Any]:
    found = speed(taken, [], [])
    faster = found.faster
    ratios = (median_ratio(held["before"], held["after"]).value for held in (taken.rounds_ms, taken.processor_ms))
    return {
        "ratio": faster and faster.value,
        "ratio_low": None if faster is None or faster.open else faster.low,
        "ratio_high": None if faster is None or faster.open else faster.high,
        "told": found.told,
        "wall_ratio": next(ratios),
        "processor_ratio": next(ratios),
        "rounds": taken.rounds,
        "others_cores": taken.others_cores,
    }


if __name__ == "__main__":
    main()
