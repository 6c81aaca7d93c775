"""A folder belongs to one run: the same recipe, model, data and conditions, or a clear refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lilliput.errors import ResumeError
from lilliput.file.container import whole_file


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
