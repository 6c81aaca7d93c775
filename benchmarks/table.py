"""Results as CSV, each row with the conditions it was measured under."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lilliput.measure import environment

RESULTS = Path(__file__).parent / "results"


def write(
    name: str,
    rows: Iterable[Mapping[str, Any]],
    threads: int,
    keep: Callable[[Mapping[str, str]], bool] = lambda row: False,
    order: Callable[[Mapping[str, Any]], Any] = lambda row: 0,
) -> Path:
    """Write `results/<name>.csv`; every row ends with commit, processor, threads and versions.

    Rows of the file as it is that `keep` wants stay, before the new ones where `order` does not say otherwise.
    """
    found = environment(threads)
    conditions = {
        "command": f"make bench NAME={name}",
        "commit": _commit(),
        **{key: found[key] for key in ("cpu", "logical_cores", "threads", "torch", "onnxruntime", "openvino")},
        "flags": " ".join(found["flags"]),  # type: ignore[arg-type]
    }
    path = RESULTS / f"{name}.csv"
    full: list[Mapping[str, Any]] = [*_kept(path, keep), *({**row, **conditions} for row in rows)]
    full.sort(key=order)
    columns = list(dict.fromkeys(key for row in full for key in row))
    RESULTS.mkdir(exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in full)
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}")
    return path


def told(measured: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A measured figure of a report; without its numbers where other work left none to tell."""
    return measured or dict.fromkeys(("value", "low", "high"))


def _kept(path: Path, keep: Callable[[Mapping[str, str]], bool]) -> list[Mapping[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if keep(row)]


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    return told.stdout.strip()
