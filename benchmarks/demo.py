"""EfficientNet-Lite0, MiniLM and ResNet-18 by the default recipe, run on one thread and on all cores."""

from __future__ import annotations

import os
import shutil
import sys

from networks import NETWORKS, OUT
from table import agreed, told, write

import lilliput as lp


def main() -> None:
    rows = []
    for name in sys.argv[1:] or NETWORKS:
        task = NETWORKS[name]()
        for threads in sorted({1, os.cpu_count() or 1}):
            folder = OUT / f"demo-{name}-{threads}"
            shutil.rmtree(folder, ignore_errors=True)  # latency is remembered in a folder; here it is to be measured
            data = lp.compress(task, target=lp.OnnxRuntime(threads=threads), folder=folder).data
            sizes = {artifact["format"]: artifact["bytes"] for artifact in data["after"]["artifacts"]}
            faster, change = told(data["ratio"]["faster"]), data["metric"]
            rows.append(
                {
                    "network": name,
                    "run_threads": threads,
                    "onnx_smaller": data["ratio"]["smaller"],
                    "lil_smaller": data["ratio"]["smaller_file"],
                    "onnx_bytes": sizes["onnx"],
                    "lil_bytes": sizes["lil"],
                    "faster": faster["value"],
                    "faster_low": faster["low"],
                    "faster_high": faster["high"],
                    "before_ms": told(data["before"]["latency_ms"])["value"],
                    "after_ms": told(data["after"]["latency_ms"])["value"],
                    **agreed(data),
                    "metric": change and change["name"],
                    "metric_change": change and change["change"]["value"],
                    "metric_change_low": change and change["change"]["low"],
                    "metric_change_high": change and change["change"]["high"],
                    "others_cores": data["environment"]["others_cores"],
                }
            )
            print(rows[-1], flush=True)
    write("demo", rows, os.cpu_count() or 1)


if __name__ == "__main__":
    main()
