"""Marks in a page, and what they are rendered to.

In prose the mark stands before the figure, and `<!--/-->` ends it:

    runs <!--{demo[lite0, run_threads=1].faster: 0.00×}-->2.04×<!--/--> faster

Before a table stands what its columns show, and below that which row of a CSV each line is; `*` is that row. A column
may be said anew between two rows. Cells that are empty stay so, and so does a line without a row (`-` alone):

    <!-- table
    2: {demo[*, run_threads=1].onnx_smaller: 0.00×} smaller
    - lite0
    - minilm
    -->
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from marks.csvs import Results, Wrong
from marks.expressions import evaluate
from marks.pictures import written

_INLINE = re.compile(r"<!--\{(?P<mark>[^{}]*)\}-->(?P<text>.*?)<!--/-->", re.DOTALL)
_TABLE = re.compile(r"^<!-- table\n(?P<mark>.*?)^-->\n(?P<text>(?:\|[^\n]*(?:\n|\Z))+)", re.DOTALL | re.MULTILINE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_BEGINS = re.compile(r"[ \t]*(?:[*+-] +|\d+\. +|> *)?")
_BLOCK = re.compile(r"\n[ \t]*(?:[*+#>|-]|\d+[.)] )")
_ROW = re.compile(r"(?<=[\[ ])\*(?=[\],])")
_CELL = re.compile(r"(?<!\\)\|")
FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1[`~]* *$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """What a mark covers in a page, and what it should be."""

    start: int
    end: int
    says: str
    rendered: str | Wrong

    @property
    def drifted(self) -> bool:
        return isinstance(self.rendered, Wrong) or self.says.split() != self.rendered.split()


def fenced(text: str) -> str:
    """The page with blocks of code as spaces, so that every place stays where it is."""
    return FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)


def places(text: str, results: Results) -> list[Place]:
    """Everything that marks cover, in the order of the page."""
    bare = fenced(text)
    found = [*_inline(bare, results)]
    for table in _TABLE.finditer(bare):
        found += _table(table, results)
    found += _strays(bare)
    return sorted(found, key=lambda place: place.start)


def rendered(text: str, found: list[Place]) -> str:
    """The page with every figure as its CSV has it."""
    for place in reversed(found):
        if place.drifted and isinstance(place.rendered, str):
            text = text[: place.start] + place.rendered + text[place.end :]
    return text


def figure(mark: str, results: Results, row: str = "") -> str | Wrong:
    """What `expression: picture` comes to, or why it does not; `*` in a selector is the row."""
    expression, _, picture = " ".join(mark.split()).rpartition(": ")
    if not expression:
        expression, picture = picture, ""
    try:
        return written(evaluate(_ROW.sub(lambda _: row, expression), results), picture)
    except Wrong as wrong:
        return wrong


def _inline(text: str, results: Results) -> Iterator[Place]:
    for found in _INLINE.finditer(text):
        shown: str | Wrong = figure(found["mark"], results)
        if _BEGINS.fullmatch(text[: found.start()].rpartition("\n")[2]) or _BLOCK.search(found["mark"]):
            shown = Wrong("Markdown ends the paragraph where a line begins with a mark, or with a sign like * in one")
        yield Place(*found.span("text"), found["text"], shown)


@dataclass(frozen=True)
class Line:
    """What a line of a table shows: the row of its CSV, and the template of each column that has one."""

    row: str
    columns: dict[int, str]


def lines_asked(mark: str) -> list[Line]:
    """What a table's mark asks of each line."""
    lines: list[Line] = []
    columns: dict[int, str] = {}
    for text in filter(None, map(str.strip, mark.splitlines())):
        number, colon, template = text.partition(":")
        if text.startswith("-"):
            lines.append(Line(text[1:].strip(), dict(columns)))
        elif colon and number.isdigit():
            columns[int(number)] = template.strip()
        else:
            raise Wrong(f"{text!r} in a table's mark is no row (- …) and no column (2: …)")
    return lines


def _table(table: re.Match[str], results: Results) -> Iterator[Place]:
    """The cells of one table, line by line."""
    texts, at = table["text"].splitlines(keepends=True), table.start("text")
    try:
        asked = lines_asked(table["mark"])
        if len(asked) != len(texts) - 2:
            raise Wrong(f"this table has {len(texts) - 2} lines, and its mark {len(asked)} rows")
    except Wrong as wrong:
        yield Place(table.start(), table.start(), "", wrong)
        return
    at += sum(map(len, texts[:2]))
    for line, text in zip(asked, texts[2:], strict=True):
        for start, end, column in _cells(text) if line.row else ():
            template, says = line.columns.get(column, ""), text[start:end]
            if template and says:
                yield Place(at + start, at + end, says, _filled(template, results, line.row))
        at += len(text)


def _cells(line: str) -> Iterator[tuple[int, int, int]]:
    """Where the cells of a line begin and end, without the spaces around them, and their numbers from 1."""
    bars = [found.start() for found in _CELL.finditer(line)]
    for number, (left, right) in enumerate(itertools.pairwise(bars), 1):
        inner = line[left + 1 : right]
        start = left + 1 + len(inner) - len(inner.lstrip())
        yield start, max(start, left + 1 + len(inner.rstrip())), number


def _filled(template: str, results: Results, row: str) -> str | Wrong:
    shown = [figure(mark, results, row) for mark in _BRACES.findall(template)]
    wrong = next((one for one in shown if isinstance(one, Wrong)), None)
    if wrong is not None:
        return wrong
    texts = iter(shown)
    return _BRACES.sub(lambda _: str(next(texts)), template)


def _strays(text: str) -> Iterator[Place]:
    """What looks like a mark and is none, which would render nothing and be believed."""
    left = _TABLE.sub(lambda found: " " * len(found[0]), _INLINE.sub(lambda found: " " * len(found[0]), text))
    for stray in re.finditer(r"<!--(?:\{|/-->| *table\b)", left):
        yield Place(stray.start(), stray.start(), "", Wrong("a mark that is not closed, or has no table behind it"))
