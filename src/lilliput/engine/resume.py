"""A folder belongs to one run: the same recipe, model, data and conditions, or a clear refusal."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lilliput.disk import whole_file
from lilliput.errors import InputError, ResumeError
from lilliput.measure import environment
from lilliput.plain import digest
from lilliput.registry import additions
from lilliput.targets import Target

_WRITERS = ("constriction", "onnx-ir", "onnxscript", "zstandard")  # their versions decide bytes of what is written
RECORD = "run.json"  # in the folder of work: what the run is made of
_TOLD = 4  # differences; on another machine there are many


def conditions(target: Target) -> dict[str, Any]:
    """What results may depend on besides what they are made of: processor, threads, versions, the target's fields."""
    fields = [field.name for field in dataclasses.fields(target) if field.name != "threads"]  # counted: threads_used
    added = additions(target)
    return {
        **environment(target.threads_used),
        "torch_threads": torch.get_num_threads(),
        **{package: _version(package) for package in _WRITERS},
        "target": target.name,
        **({"registered": digest(added)} if added else {}),
        **{f"target_{name}": repr(getattr(target, name)) for name in fields},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_same(record: Path, run: Mapping[str, Any]) -> None:
    """Note what the run is made of, or compare it with what the folder's earlier run was made of.

    Plain data; where it is a table, the refusal tells the entries that differ.
    """
    if not record.exists():
        with whole_file(record) as file:
            file.write(json.dumps(dict(run), indent=1).encode())
        return
    earlier = _earlier(record)
    changed = [name for name, value in run.items() if earlier.get(name) != value]
    if changed:
        tables = [(earlier.get(name), run[name]) for name in changed if isinstance(run[name], Mapping)]
        told = [line for there, here in tables for line in _differences(there, here)]
        more = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
        again = "run under the same conditions again, " if tables else ""
        raise ResumeError(
            f"holds a run with another {' and '.join(changed)}",
            where=str(record.parent.parent),
            why="; ".join(told[:_TOLD] + more),
            next=f"{again}choose another folder, or delete this one to start afresh",
        )


def clean(folder: Path, *, unfinished: bool = False) -> int:
    """Remove what the run in `folder` has remembered, its results aside; the bytes that this gives back.

    Raises InputError for a folder without a run, and, unless `unfinished`, for one whose run has not ended.
    """
    work = folder / "work"
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), next="name the folder that a run wrote into")
    if not work.exists():
        return 0
    if not (work / RECORD).exists():
        why = f"work/{RECORD} is not in it"
        raise InputError("is no folder of a run", where=str(folder), why=why, next="name the one that --out named")
    if not (folder / "report.json").exists() and not unfinished:
        raise InputError(
            "holds a run that was cut off, which goes on where it was when it is begun again",
            where=str(folder),
            next="let it end, or give --unfinished to begin anew",
        )
    freed = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    shutil.rmtree(work)
    return freed


def _earlier(record: Path) -> dict[str, Any]:
    try:
        earlier = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    if not isinstance(earlier, dict):
        raise ResumeError(
            "holds a run of which nothing is known",
            where=str(record.parent.parent),
            why=f"{record.name} cannot be read",
            next="choose another folder, or delete this one to start afresh",
        )
    return earlier


def _differences(there: Any, here: Mapping[str, Any]) -> Iterator[str]:
    """What differs between an earlier table and this one, in words."""
    earlier = there if isinstance(there, dict) else {}
    for name in [*here, *sorted(earlier.keys() - here.keys())]:
        one, other = earlier.get(name), here.get(name)
        if one != other:
            yield f"{name.replace('_', ' ')} {_difference(one, other)}"


def _difference(there: Any, here: Any) -> str:
    if isinstance(there, list) and isinstance(here, list):
        then, now = set(map(str, there)), set(map(str, here))
        only = (("there", then - now), ("here", now - then))
        return " and ".join(f"{' '.join(sorted(names))} only {side}" for side, names in only if names)
    return f"{_shown(there)} there, {_shown(here)} here"


def _shown(value: Any) -> str:
    return "unknown" if value in (None, "") else str(value)
