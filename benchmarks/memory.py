"""Peak memory and time of calibration on 32 to 1,024 samples, of MiniLM by the default recipe, and of large layers.

Each runs in a process of its own.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from table import write

COUNTS = (32, 128, 512, 1024)


class Noise:
    """`count` images in batches of 16, made as they are read, so that the data itself takes no memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        import torch

        for i in range(0, self.count, 16):
            yield torch.randn(16, 3, 112, 112, generator=torch.Generator().manual_seed(i))


def calibrate(count: int) -> None:
    """Quantize ResNet-18 with `count` calibration samples."""
    import torch
    from networks import ResNet18

    import lilliput as lp
    from lilliput.engine.begin import begin
    from lilliput.engine.store import Store
    from lilliput.progress import silent

    torch.manual_seed(0)
    task = lp.Task(ResNet18().eval(), calibrate=Noise(count))
    driver, _ = begin(task, lp.targets.OnnxRuntime(), Store(), silent)
    lp.Quantize(weights=lp.Int(8), activations=lp.Int(8)).apply(driver)


def minilm() -> None:
    """MiniLM, from the package to the report."""
    from networks import NETWORKS

    import lilliput as lp

    lp.compress(NETWORKS["minilm"]())


def large() -> None:
    """Four linear layers of 4,096, from the module to the report; prints how much of memory is the model's."""
    import torch
    from torch import nn

    import lilliput as lp

    def network(width: int) -> nn.Module:
        return nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(width, width), nn.ReLU()))).eval()

    target = lp.targets.OnnxRuntime(threads=1, seconds=1)
    lp.compress(network(64), calibrate=[torch.randn(4, 64)], target=target)  # imports what is imported late
    net = network(4096)
    print("weights_mb", sum(4 * p.numel() for p in net.parameters()) / 2**20)
    print("before_mb", _now_mb())
    lp.compress(net, calibrate=[torch.randn(4, 4096)], target=target)


def _now_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def _measured(*arguments: str) -> dict[str, float]:
    """Peak memory and wall time of this file run with `arguments`."""
    began = time.perf_counter()
    told = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    found = dict(line.split() for line in told.stdout.splitlines() if line.partition(" ")[0].endswith("_mb"))
    row = {"peak_mb": float(found["peak_mb"]), "seconds": time.perf_counter() - began}
    if "weights_mb" in found:
        beyond = row["peak_mb"] - float(found["before_mb"])
        row |= {"weights_mb": float(found["weights_mb"]), "beyond_times_weights": beyond / float(found["weights_mb"])}
    return row


def main() -> None:
    if sys.argv[1:2] == ["calibrate"]:
        calibrate(int(sys.argv[2]))
    elif sys.argv[1:2] == ["minilm"]:
        minilm()
    elif sys.argv[1:2] == ["large"]:
        large()
    else:
        rows = [{"what": "calibrate ResNet-18", "samples": n, **_measured("calibrate", str(n))} for n in COUNTS]
        rows.append({"what": "compress MiniLM", "samples": 64, **_measured("minilm")})
        rows.append({"what": "compress four layers of 4,096", "samples": 4, **_measured("large")})
        for row in rows:
            print(row)
        write("memory", rows, os.cpu_count() or 1)
        return
    print("peak_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
