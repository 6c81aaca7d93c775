"""The CSVs that figures come from, and how one of their rows is named."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

Row = dict[str, str]

_ITEM = re.compile(r"\s*(?:(?P<column>\w+)\s*(?P<sign>!?=)\s*)?(?P<value>\"[^\"]*\"|[^,\"]*?)\s*(?:,|$)")


class Wrong(Exception):
    """A mark that cannot be rendered; the text says what is wrong, and the nearest name that would do."""


def unknown(what: str, name: str, known: Iterable[str]) -> Wrong:
    """An error for a name that is not there.

    >>> print(unknown("a column of demo.csv", "fastr", ["faster", "smaller"]))
    no 'fastr' is a column of demo.csv; nearest: 'faster'
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return Wrong(f"no {name!r} is {what}" + (f"; nearest: {near[0]!r}" if near else ""))


@dataclass(frozen=True)
class Condition:
    """What a row must have in a column, or must not."""

    column: str
    value: str
    equal: bool = True

    def __str__(self) -> str:
        return f"{self.column}{'=' if self.equal else '!='}{self.value}"


@dataclass
class Results:
    """A folder of CSVs, each read once."""

    folder: Path
    _read: dict[str, list[Row]] = field(default_factory=dict)

    def rows(self, name: str) -> list[Row]:
        """All rows of `<name>.csv`."""
        if name not in self._read:
            path = self.folder / f"{name}.csv"
            if not path.is_file():
                raise unknown(f"a CSV of {self.folder.name}/", name, (file.stem for file in self.folder.glob("*.csv")))
            with open(path, newline="", encoding="utf-8") as file:
                self._read[name] = list(csv.DictReader(file))
        return self._read[name]

    def select(self, name: str, selector: str) -> list[Row]:
        """The rows that a selector names, one at least: `lite0, run_threads=1`.

        A value alone is that of the first column; `"…"` holds values with commas; `!=` takes all others.
        """
        found = self.rows(name)
        for condition in conditions(selector, next(iter(found[0]))):
            self.check_column(name, condition.column)
            kept = [row for row in found if (row[condition.column] == condition.value) == condition.equal]
            if not kept:
                known = {row[condition.column]: None for row in found}
                raise unknown(f"{condition.column} of a row of {name}.csv [{selector}]", condition.value, known)
            found = kept
        return found

    def one(self, name: str, selector: str) -> Row:
        """The row that a selector names."""
        found = self.select(name, selector)
        if len(found) > 1:
            differ = [key for key in found[0] if len({row[key] for row in found}) == len(found)]
            told = f", which differ in {' or '.join(differ[:3])}" if differ else ""
            raise Wrong(f"{len(found)} rows of {name}.csv are [{selector}]{told}: name one")
        return found[0]

    def check_column(self, name: str, column: str) -> None:
        known = self.rows(name)[0]
        if column not in known:
            raise unknown(f"a column of {name}.csv", column, known)

    @property
    def doubtful(self) -> dict[str, list[str]]:
        """CSVs read so far that are to be made again, by the reason."""
        reasons = {
            "from a tree with changes": lambda row: row.get("commit", "").endswith("-dirty"),
            "speeds of fewer than three processes": lambda row: _is_speed(row) and int(row.get("processes") or 1) < 3,
        }
        read = sorted(self._read.items())
        found = {why: [name for name, rows in read if any(map(so, rows))] for why, so in reasons.items()}
        return {why: names for why, names in found.items() if names}


def _is_speed(row: Row) -> bool:
    return any("faster" in column and value for column, value in row.items())


def conditions(selector: str, first: str) -> list[Condition]:
    """What a selector asks for.

    >>> [str(one) for one in conditions('lite0, recipe="6 bits, int8", run_threads!=1', "network")]
    ['network=lite0', 'recipe=6 bits, int8', 'run_threads!=1']
    """
    found, at = [], 0
    while at < len(selector.rstrip()):
        item = _ITEM.match(selector, at)
        if item is None or item.end() == at:
            raise Wrong(f"[{selector}] is no list of values: write column=value, with quotes around a comma")
        found.append(Condition(item["column"] or first, item["value"].strip('"'), item["sign"] != "!="))
        at = item.end()
    return found
