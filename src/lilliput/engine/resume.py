"""A folder belongs to one run: the same recipe, model, data and conditions, or a clear refusal."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from lilliput.disk import whole_file
from lilliput.errors import ResumeError


def check_same(record: Path, run: Mapping[str, str]) -> None:
    """Note what the run is made of, or compare it with what the folder's earlier run was made of."""
    if record.exists():
        try:
            earlier = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = {}
        changed = [name for name, value in run.items() if earlier.get(name) != value]
        if changed:
            raise ResumeError(
                f"holds a run with another {' and '.join(changed)}",
                where=str(record.parent.parent),
                next="choose another folder, or delete this one to start afresh",
            )
    with whole_file(record) as file:
        file.write(json.dumps(dict(run), sort_keys=True, indent=1).encode())


_PART = re.compile(r"\..+\.(\d+)\.part")  # of `whole_file`: the name, the process that writes it


def clear_parts(*folders: Path) -> None:
    """Remove the unfinished files that killed runs left in `folders`; those of processes still alive stay."""
    for folder in folders:
        for path in folder.glob(".*.part") if folder.is_dir() else ():
            written_by = _PART.fullmatch(path.name)
            if written_by and not _alive(int(written_by[1])):
                path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return process != os.getpid()  # this process has begun no file yet
