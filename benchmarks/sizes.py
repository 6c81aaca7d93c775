"""What a `.lil` weighs against the entropy of its codes, and how near the graph inside comes to the module.

Speeds are not told here: demo.py measures them.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import NETWORKS, OUT
from table import agreed, write

import lilliput as lp
from lilliput.file.container import Reader
from lilliput.file.inspect import inside
from lilliput.model.views.inputs import Inputs
from lilliput.outputs import flatten_outputs

SMALL = ("*_depthwise_conv*", "_conv_stem*", "_fc*")  # of EfficientNet-Lite0: few weights, and errors that show
SIX = lp.Recipe(
    [
        lp.Quantize(weights=lp.Int(6), where=("*", *(f"!{pattern}" for pattern in SMALL))),
        lp.Quantize(weights=lp.Int(8), activations=lp.Int(8), where=SMALL),
    ]
)
CASES: list[tuple[str, str, lp.Recipe | None]] = [
    ("lite0", "default, 8 bits", None),
    ("lite0", "6 bits, depthwise 8, int8 kernels", SIX),
    ("lite0", "4 bits, weights alone", lp.Recipe([lp.Quantize(weights=lp.Int(4))])),
    ("lite0", "bfloat16", lp.Recipe([lp.Quantize(weights=lp.formats.BFloat16())])),
    ("minilm", "default, 8 bits", None),
    ("resnet18", "default, 8 bits", None),
]


def main() -> None:
    rows = []
    for network, name, recipe in CASES:
        if sys.argv[1:] and network not in sys.argv[1:]:
            continue
        task, folder = NETWORKS[network](), OUT / f"sizes-{network}-{len(rows)}"
        shutil.rmtree(folder, ignore_errors=True)
        small = lp.compress(task, recipe, target=lp.targets.OnnxRuntime(threads=1, seconds=20), folder=folder)
        rows.append(
            {
                "network": network,
                "recipe": name,
                **weighed(folder / "net.lil", small),
                **compared(folder / "net.lil", small, task),
                **agreed(small.data),
            }
        )
        print(rows[-1], flush=True)
    write("sizes", rows, os.cpu_count() or 1)


def weighed(path: Path, small: lp.results.Result) -> dict[str, Any]:
    """Bytes by kind, and the bound: 1.01 × entropy of the codes, what else is coded, 64 a tensor, 4 KB, the graph."""
    reader, sizes = Reader(path), inside(path)["sizes"]
    codes = [
        name for name in reader.entries if name.endswith(".codes") and reader.entries[name].dtype in ("int8", "uint8")
    ]
    entropy = sum(order0(reader.read(name)) for name in codes)
    held = sum(reader.entries[name].stored_bytes for name in codes)
    rest = sizes["encoded tensors"] + sizes["other tensors"] - held
    bound = 1.01 * entropy + rest + 64 * len(codes) + 4096 + sizes["graph"]
    fast = path.with_name("fast.lil")
    lp.save(fast, small.model, coder="fast")
    fast_codes = sum(Reader(fast).entries[name].stored_bytes for name in codes)
    plain = next(item["bytes"] for item in small.data["before"]["artifacts"] if item["format"] == "tensors")
    return {
        "tensors_bytes": plain,
        "lil_bytes": reader.size,
        "smaller": plain / reader.size,
        "codes_entropy_bytes": round(entropy),
        "codes_bytes": held,
        "codes_over_entropy": held / entropy if entropy else None,
        "fast_over_dense": fast_codes / held if held else None,
        "other_tensors_bytes": rest,
        "graph_bytes": sizes["graph"],
        "index_bytes": sizes["index"],
        "encoded_tensors": len(codes),
        "bound_bytes": round(bound) if codes else None,
        "of_bound": reader.size / bound if codes else None,
    }


def order0(codes: np.ndarray) -> float:
    """Bytes of codes whose every value costs what its share of them tells."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def compared(path: Path, small: lp.results.Result, task: lp.Task) -> dict[str, Any]:
    """How far the graph inside, as it runs, is from the module, on inputs to judge by."""
    run, largest, scale, same, count = lp.open(path, threads=1), 0.0, 0.0, 0, 0
    assert task.evaluate is not None
    for given in list(task.evaluate)[:4]:
        inputs = Inputs.of(given)
        with torch.no_grad():
            opened, module = (flatten_outputs(inputs.call(by))[0] for by in (run, small.model))
        largest = max(largest, float((opened - module).abs().max()))
        scale = max(scale, float(module.abs().max()))
        same += int((opened.argmax(-1) == module.argmax(-1)).sum())
        count += module.argmax(-1).numel()
    return {"opened_largest_error": largest, "opened_largest_output": scale, "opened_top1": same / count}


if __name__ == "__main__":
    main()
