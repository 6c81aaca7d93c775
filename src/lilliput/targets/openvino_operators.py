"""OpenVINO's own account of where the time of a call goes: its performance counts, in the graph that it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lilliput.targets.operators import Operator, Owners


def operators(path: Path, compiled: Any) -> list[Operator]:
    """The operators of the file at `path` as `compiled`, which counts and was called, runs them."""
    owners, places = Owners(path), dict[str, int]()
    found: list[Operator] = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = node.get_rt_info()
        kind, took = _text(told, "layerType"), _text(told, "execTimeMcs")
        sources = (value.get_source_output().get_node().get_friendly_name() for value in node.inputs())
        reads = tuple(dict.fromkeys(places[name] for name in sources if name in places))
        if kind in ("Const", "Input", "Output") or not took.replace(".", "", 1).isdigit():
            continue
        name = node.get_friendly_name()
        layer = owners.of((*_text(told, "originalLayersNames").split(","), name))
        if layer is None:
            layer = next((found[i].layer for i in reads), "")
        places[name] = len(found)
        integers = any(kind in _text(told, "outputPrecisions").lower() for kind in ("u8", "i8"))
        found.append(Operator(name, kind, float(took) / 1e3, layer, integers, reads))
    return found


def _text(told: Any, key: str) -> str:
    if key not in told:
        return ""
    value = told[key]
    return str(value.astype(str) if hasattr(value, "astype") else value)
