"""The plan of a dry run, for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lilliput.blame.diagnosis import lines

_WIDE = 200  # columns where stdout is no terminal


def show(plan: Mapping[str, Any], out: Path) -> None:
    """Print which layers become what, what is left as it is and why, and what it would all take."""
    console = Console(file=sys.stdout, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    console.print(_layers(plan["layers"]))
    for gone in plan["removed"]:
        console.print(f"removed {gone['path']}: {gone['parameters']:,} parameters, {gone['told']}", soft_wrap=True)
    for step, why in plan["undecided"].items():
        console.print(f"{step}: {why}; the layers are told without it", soft_wrap=True)
    for skipped in plan["skipped"]:
        console.print(f"skipped {skipped['path']}: {skipped['reason']}", soft_wrap=True)
    console.print(_estimate(plan["estimate"], out), soft_wrap=True)


def show_diagnosis(found: Mapping[str, Any]) -> None:
    """Print where it loses, worst first, then the likely causes."""
    console = Console(file=sys.stdout, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    for line in lines(found):
        console.print(line, soft_wrap=True)


def _layers(rows: list[dict[str, Any]]) -> Table:
    table = Table("layer", "op", "shape", "weights", "values read", "bits", "in the target", box=None)
    for row in rows:
        shape = "×".join(map(str, row["shape"]))
        if (row.get("shape_before") or row["shape"]) != row["shape"]:
            shape += f" of {'×'.join(map(str, row['shape_before']))}"
        bits = f"{row['nominal_bits']:.2f}"
        table.add_row(
            row["path"],
            row["op"],
            shape,
            row["encoding"],
            row["activations"],
            bits,
            "; ".join(filter(None, [row["runs_as"], row.get("note")])),
        )
    return table


def _estimate(estimate: Mapping[str, Any], out: Path) -> str:
    parts = ", ".join(f"{stage} {_time(seconds)}" for stage, seconds in estimate["stages_s"].items())
    more = [f"what {step} tries" for step in estimate["apart"]]
    more += ["your metric"] if estimate["metric"] == "not included" else []
    besides = f"; {' and '.join(more)} comes on top" if more else ""
    return (
        f"\nEstimates, from one calibration batch, right to about a factor of two:\n"
        f"  time    {_time(estimate['seconds'])} ({parts}{besides})\n"
        f"  memory  {_size(estimate['memory_bytes'])} at the peak\n"
        f"  disk    {_size(estimate['disk_bytes'])} in {out}\n"
        "Nothing was written."
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
