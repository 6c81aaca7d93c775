"""The size of what is delivered."""

from __future__ import annotations

from pathlib import Path

from lilliput.errors import MeasureError
from lilliput.external import bytes_of


def artifact(path: str | Path, format: str, runs_on: str) -> dict[str, str | int]:
    """What a delivered file, or folder of files, weighs: `format`, `bytes`, and what it `runs_on`.

    What lies beside an ONNX file (`net.onnx.data`) counts.

    >>> artifact(__file__, format="source", runs_on="python")["format"]
    'source'
    """
    place = Path(path)
    if not place.exists():
        raise MeasureError("there is no such file to weigh", where=place.name)
    inside = (part.stat().st_size for part in place.rglob("*") if part.is_file())
    size = sum(inside) if place.is_dir() else bytes_of(place)
    return {"format": format, "bytes": size, "runs_on": runs_on}
