"""ONNX Runtime's own account of where the time of a call goes, beside the graph that it makes of a file."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lilliput.runtimes.session import session
from lilliput.targets.operators import Operator, Owners, called

_SUFFIX = "_kernel_time"
_FAST = 0.25  # quantile of the times of an operator: other work makes them longer only


def operators(path: Path, arrays: Sequence[np.ndarray], threads: int, seconds: float) -> list[Operator]:
    """The operators of the file at `path` as ONNX Runtime runs them, timed on the inputs `arrays`."""
    with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        held = session(path, threads, optimized=optimized, profile=Path(folder) / "profile")
        feed = {value.name: x for value, x in zip(held.get_inputs(), arrays, strict=True)}
        called(lambda: held.run(None, feed), seconds)
        told = json.loads(Path(held.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(optimized, load_external_data=False).graph
    taken, integers = _times(told)
    owners, makers = Owners(path), dict[str, int]()
    found: list[Operator] = []
    for node in graph.node:
        if node.name not in taken:
            continue
        reads = tuple(dict.fromkeys(makers[name] for name in node.input if name in makers))
        layer = owners.of((node.name, *node.output))
        if layer is None:
            layer = next((found[i].layer for i in reads), "")
        makers.update({name: len(found) for name in node.output})
        found.append(Operator(node.name, node.op_type, taken[node.name], layer, integers[node.name], reads))
    return found


def _times(told: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, bool]]:
    """Milliseconds of each node, and whether it gives integers of 8 bits, by its name."""
    taken: dict[str, list[float]] = defaultdict(list)
    integers: dict[str, bool] = {}
    for event in told:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        name = name.removesuffix(_SUFFIX)
        taken[name].append(event["dur"] / 1e3)
        given = event["args"].get("output_type_shape", [])
        integers[name] = any(kind in ("uint8", "int8") for one in given for kind in one)
    return {name: float(np.quantile(ms, _FAST)) for name, ms in taken.items()}, integers
