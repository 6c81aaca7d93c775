"""Single layers in onnxruntime-web: float32 against what we export, in Node.js on one thread; as kernels.py.

docs/web.md quotes these figures.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import table
import torch
from kernels import INT8, Case, cases, conv, encoded
from table import write
from timings import PROCESSES, Taken
from torch import nn

import lilliput as lp
from lilliput.model.views.inputs import Inputs

_SECONDS = 6.0


def more() -> Iterator[Case]:
    """What the others lack: late layers of a network for pictures, wide and small."""
    wide, narrow = (1, 1152, 7, 7), (1, 144, 56, 56)
    yield Case(
        "convolution 1×1, 320 to 1280 channels at 7×7", "static", conv(320, 1280, 1), (1, 320, 7, 7), INT8, "static"
    )
    yield Case("depthwise 5×5, 1152 channels at 7×7", "static", conv(1152, 1152, 5, 1152), wide, INT8, "static")
    yield Case("depthwise 3×3, 144 channels at 56×56", "static", conv(144, 144, 3, 144), narrow, INT8, "static")
    row = (1, 1, 384)
    yield Case("linear 384 to 1536, 1 token", "dynamic", lambda: nn.Linear(384, 1536), row, INT8, "dynamic", "linear")


def measure(case: Case) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randint(0, 30522, case.inputs) if case.op == "embedding" else torch.randn(case.inputs)
    net, example = nn.Sequential(case.make()).eval(), Inputs.of(x)
    subjects = {"float": net, "ours": encoded(case, copy.deepcopy(net), x)}
    target = lp.targets.Web(seconds=_SECONDS)
    taken = Taken(tuple(target.timed(subjects, example, {}) for _ in range(1 if table.DRY else PROCESSES)))
    return {
        "layer": case.layer,
        "variant": case.variant,
        **taken.row("faster", "float", "ours"),
        "float_ms": taken.ms("float"),
        "ours_ms": taken.ms("ours"),
    }


if __name__ == "__main__":
    rows = []
    for one in (*cases(), *more()):
        rows.append(measure(one))
        print(rows[-1], flush=True)
    write("kernels_web", rows, 1)
