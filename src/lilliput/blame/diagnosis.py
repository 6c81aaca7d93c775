"""The answer to "where does it lose?": rows worst first, with the likely causes and what to try."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lilliput.blame.causes import Cause
from lilliput.disk import whole_file
from lilliput.errors import InputError
from lilliput.report.blame import advised, blame_page, decibels_shown, share_shown


@dataclass(frozen=True)
class Row:
    """What one place loses. All dB are 10 · log10(signal / noise): the lower, the worse; None where nothing differs, or
    where it was not measured.
    """

    name: str  # path of a weight, or name of a value that no layer gives
    pattern: str  # what `where` calls it
    op: str
    weight: str  # how it is represented
    values: str
    own_db: float | None  # of the network's output, with this place encoded and no other
    own_on: str  # what that was measured on: "target", "module", or "" where it was not
    share: float | None  # of the noise that all places make alone
    reached_db: float | None  # of what it gives, with everything encoded: the noise that has arrived by then
    without_db: float | None  # of the output with all encoded but this, on the target
    causes: tuple[Cause, ...]  # the likeliest first


@dataclass(frozen=True)
class Diagnosis:
    """Where a compressed network loses, worst first."""

    name: str
    target: str
    on: str  # what `output_db` and `reached_db` were measured on: "target" or "module"
    judged_on: str
    samples: int
    output_db: float | None  # of the network's output, with everything encoded
    rows: tuple[Row, ...]
    notes: tuple[str, ...]  # what was not done, and why

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def save(self, path: str | Path) -> Path:
        """Write it as data (`.json`) or as a page (`.html`)."""
        path = Path(path)
        check_ending(path)
        data = json.loads(json.dumps(self.to_json()))
        text = json.dumps(data, indent=1, allow_nan=False) if path.suffix == ".json" else blame_page(data)
        with whole_file(path) as file:
            file.write(text.encode())
        return path

    def __str__(self) -> str:
        return "\n".join(lines(json.loads(json.dumps(self.to_json()))))


def check_ending(path: Path) -> None:
    """Refuse a file that a diagnosis is not written as."""
    if path.suffix not in (".json", ".html"):
        ending = path.suffix or "a file without an ending"
        raise InputError(f"a diagnosis as {ending}", where=str(path), next="write .html or .json")


def lines(data: Mapping[str, Any], most: int = 10) -> list[str]:
    """A diagnosis as text: a table of the worst rows, then the causes of those that have some."""
    where = data["target"] if data["on"] == "target" else "its module"
    told = [
        f"{data['name']} in {where}, {data['samples']} samples of the {data['judged_on']}: "
        f"its output keeps {decibels_shown(data['output_db'])} dB"
    ]
    if data["rows"]:
        told += ["", *_table(data["rows"][:most])]
        if len(data["rows"]) > most:
            told.append(f"… and {len(data['rows']) - most} that lose less")
    for i, row in enumerate(row for row in data["rows"][:most] if row["causes"]):
        told += ["", f"{i + 1}. {row['name']}"]
        for cause in row["causes"]:
            told += [f"   {cause['kind']}: {cause['says']}", *(f"   {advised(remedy)}" for remedy in cause["remedies"])]
    return [*told, *(["", *data["notes"]] if data["notes"] else [])]


def _table(rows: list[Mapping[str, Any]]) -> list[str]:
    heads = ("layer", "op", "weight", "values", "alone, dB", "share", "reached, dB")
    cells = [
        (
            row["name"],
            row["op"],
            row["weight"],
            row["values"],
            decibels_shown(row["own_db"]) + ("*" if row["own_on"] == "module" else ""),
            "–" if row["share"] is None else share_shown(row["share"]),
            decibels_shown(row["reached_db"]),
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (heads, *cells)) for i in range(len(heads))]
    told = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (heads, *cells)
    ]
    estimated = any(row["own_on"] == "module" for row in rows)
    return [*told, "* found with the module, not on the target"] if estimated else told
