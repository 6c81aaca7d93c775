"""Figures in the text that no mark gives a source.

A figure is a number with a decimal point, a number with a unit of something measured, or a number alone in the cell of
a table. What is meant otherwise (a setting, a threshold of the code, a version, a published figure) stands in
`exceptions.toml` with its reason.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from marks.pages import Place, fenced

_WHOLE = r"(?<![\w.])[-+±]?\d+(?:,\d{3})*"
_PART = r"(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+)"  # after a whole number: decimals, a power of ten
_NUMBER = rf"{_WHOLE}{_PART}?"
_WORDS = r"dB|ms|µs|s|[kKMGT]i?B(?:/s)?|seconds?|minutes?|hours?|points?|bytes?|nats|million|times"
_UNIT = rf"(?:×(?! ?\d)|(?: |\n\s*)?(?:%|(?:{_WORDS})\b))"  # 3 × 3 is a size
_FIGURE = re.compile(rf"{_NUMBER}{_UNIT}|{_WHOLE}{_PART}(?![\w.]*\.\d)")
_LONE = re.compile(rf"(?<=\|) *({_NUMBER}) *(?=\|)")
_NO_PROSE = re.compile(r"<!--.*?-->|(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)|\]\([^)\s]*\)", re.DOTALL)


@dataclass(frozen=True)
class Exceptions:
    """What may stand without a source: texts of a page, and patterns in all of them, each with its reason."""

    pages: dict[str, dict[str, str]]  # of a page, the text and why
    patterns: dict[str, str]
    whole: dict[str, str]  # pages without anything measured

    @classmethod
    def read(cls, path: Path) -> Exceptions:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
        return cls(held.get("pages", {}), held.get("patterns", {}), held.get("whole", {}))


@dataclass(frozen=True)
class Unsourced:
    """A figure, or an exception that nothing needs any more, and where it stands."""

    start: int
    text: str


def unsourced(page: str, text: str, covered: Iterable[Place], exceptions: Exceptions) -> Iterator[Unsourced]:
    """Figures of a page outside marks and code that no exception names."""
    if page in exceptions.whole:
        return
    bare = _blank(_NO_PROSE, fenced(_without(text, covered)))
    for pattern in exceptions.patterns:
        bare = _blank(re.compile(pattern), bare)
    for excepted in exceptions.pages.get(page, {}):
        words = re.compile(r"\s+".join(map(re.escape, excepted.split())))
        if not words.search(text):
            yield Unsourced(0, f"the exception {excepted!r} stands nowhere in {page}: take it out")
        for found in words.finditer(text):
            bare = bare[: found.start()] + _spaces(bare[found.start() : found.end()]) + bare[found.end() :]
    figures = {found.start(): found[0] for found in _FIGURE.finditer(bare)}
    figures |= {found.start(1): found[1] for found in _LONE.finditer(bare)}
    for start, figure in sorted(figures.items()):
        yield Unsourced(start, f"{' '.join(figure.split())!r} has no source: mark it, or reword")


def _without(text: str, covered: Iterable[Place]) -> str:
    for place in covered:
        text = text[: place.start] + _spaces(text[place.start : place.end]) + text[place.end :]
    return text


def _blank(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda found: _spaces(found[0]), text)


def _spaces(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)
