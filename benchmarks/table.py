"""Results as CSV, each row with the conditions it was measured under.

Whoever runs a CSV's command at its commit must get its figures, so none is written from a tree with changes. Importing
this module, which every benchmark does before it works, stops a benchmark there. `DRY=1` lets it run and print its
rows; nothing is written then.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lilliput.measure import environment

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DRY = os.environ.get("DRY", "") not in ("", "0")
CODE = ("src/", "benchmarks/", "examples/", "tests/")  # where a file that git does not know changes what is measured


def write(
    name: str,
    rows: Iterable[Mapping[str, Any]],
    threads: int,
    keep: Callable[[Mapping[str, str]], bool] = lambda row: False,
    order: Callable[[Mapping[str, Any]], Any] = lambda row: 0,
) -> Path:
    """Write `results/<name>.csv`; every row ends with commit, processor, threads and versions.

    Rows of the file as it is that `keep` wants stay, before the new ones where `order` does not say otherwise. In a dry
    run, and where the tree has changed meanwhile, the rows are printed instead.
    """
    found = environment(threads)
    conditions = {
        "command": f"make bench NAME={name}",
        "commit": COMMIT,
        **{key: found[key] for key in ("cpu", "logical_cores", "threads", "torch", "onnxruntime", "openvino")},
        "flags": " ".join(found["flags"]),  # type: ignore[arg-type]
    }
    path = RESULTS / f"{name}.csv"
    full: list[Mapping[str, Any]] = [*_kept(path, keep), *({**row, **conditions} for row in rows)]
    full.sort(key=order)
    columns = list(dict.fromkeys(key for row in full for key in row))
    if DRY or changes():
        _write(sys.stdout, columns, full)
        if not DRY:
            sys.exit(f"results/{name}.csv is not written: {_told(changes())}")
        print(f"not written, for DRY is set: results/{name}.csv")
        return path
    RESULTS.mkdir(exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        _write(file, columns, full)
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}")
    return path


def agreed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Columns that tell how far the first output of a report agrees with the original's, by what it is."""
    first = data["agreement"]["outputs"][0]
    named = next(iter(first["figures"]), "relative_error")
    figure = first["figures"].get(named) or first["relative_error"]
    return {
        "agreement_kind": named,
        "agreement": figure["value"],
        "agreement_low": figure["low"],
        "agreement_high": figure["high"],
        "agreement_samples": figure["samples"],
        "norm_ratio": first["figures"].get("norm_ratio", {}).get("value"),
        "worst_error": first["worst_error"],
        "sqnr_db": first["sqnr_db"],
    }


def cost(data: Mapping[str, Any]) -> dict[str, Any]:
    """Columns with what else a report measured on both sides, and what became of the weights."""
    sides = {f"{side}_{name}": _at(data[side], path) for side in ("before", "after") for name, path in _COSTS.items()}
    weights = {name: data["ratio"][name] for name in ("nonzero", "shared", "weight_error")}
    return {**sides, "batch": _at(data, ("batches", "samples")), **weights}


_COSTS = {
    "p95_ms": ("calls", "p95_ms"),
    "p99_ms": ("calls", "p99_ms"),
    "samples_a_second": ("throughput", "value"),
    "joules": ("joules",),
    "load_cpu_s": ("loading", "seconds"),
    "load_peak_bytes": ("loading", "peak_bytes"),
    "first_call_cpu_s": ("loading", "call_s"),
    "call_peak_bytes": ("loading", "call_peak_bytes"),
}


def _at(held: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        held = None if held is None else held.get(key)
    return held


def changes() -> list[str]:
    """Files in which the tree differs from its commit: those that git knows, and code that it does not.

    The CSVs do not count, for a benchmark writes them, nor does what lies in out/.
    """
    given = ("--porcelain", "--untracked-files=all", "--", ":/", ":(top,exclude)benchmarks/results")
    found = [(line[:2], line[3:]) for line in _git("status", *given).splitlines()]
    return [path for state, path in found if state != "??" or path.startswith(CODE)]


def _told(changed: list[str]) -> str:
    shown = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
    return (
        f"the tree differs from its commit in {shown}. Commit it first, for a CSV names the commit that made it; "
        "or run with DRY=1, which prints the rows and writes nothing"
    )


def _write(file: Any, columns: list[str], rows: list[Mapping[str, Any]]) -> None:
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)


def _kept(path: Path, keep: Callable[[Mapping[str, str]], bool]) -> list[Mapping[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if keep(row)]


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=HERE, check=False)
    if done.returncode and not DRY:
        sys.exit(f"git {command[0]} fails in {HERE.name}/, so no commit can be told: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")


COMMIT = _git("describe", "--always")  # when the benchmark began: its code is that of this commit
if not DRY and Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve().parent == HERE and changes():
    sys.exit(f"nothing is measured: {_told(changes())}")
