"""The table of the page that has every figure of cost, before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lilliput.report.figures import digits, percent, size
from lilliput.report.likeness import percent_off
from lilliput.report.markup import Html, cell, el, number, section, table
from lilliput.report.sides import file_sizes

Data = Mapping[str, Any]
Row = tuple[str, Any, Any, Callable[[Any], str]]  # what it is, before, after, how it is written


def exactly(data: Data) -> Html:
    """Whatever was measured on both sides."""
    known = (row for row in _rows(data) if row[1] is not None and row[2] is not None)
    rows = ([cell(name), number(form(before)), number(form(after))] for name, before, after, form in known)
    return section(
        "Exact figures", table(("", "#before", "#after"), rows, "Exact figures"), *(el("p", x) for x in _notes(data))
    )


def _rows(data: Data) -> Iterable[Row]:
    for ending, _, old, new in file_sizes(data):
        yield f".{ending} file, bytes", old, new, _whole
    for key, name in _COUNTS.items():
        yield name, data["before"].get(key), data["after"].get(key), _whole
    for path, (name, form) in _COSTS.items():
        before, after = (_at(data[side], path) for side in ("before", "after"))
        yield name, before, after, form


def _whole(count: int) -> str:
    return f"{count:,}"


def _ms(ms: float) -> str:
    return f"{digits(ms)} ms"


def _seconds(seconds: float) -> str:
    return _ms(1e3 * seconds)


_COUNTS = {
    "parameters": "parameters",
    "nonzero": "parameters that are not zero",
    "distinct": "values that these have",
    "macs": "multiply-adds a call",
}
_COSTS: Mapping[tuple[str, ...], tuple[str, Callable[[Any], str]]] = {
    ("loading", "seconds"): ("processor time to load", _seconds),
    ("loading", "peak_bytes"): ("most memory while loading", size),
    ("loading", "call_s"): ("processor time of the first call", _seconds),
    ("loading", "call_peak_bytes"): ("most memory while running", size),
    ("calls", "p50_ms"): ("calls, median", _ms),
    ("calls", "p95_ms"): ("calls, 95th percentile", _ms),
    ("calls", "p99_ms"): ("calls, 99th percentile", _ms),
    ("throughput", "value"): ("samples a second, in batches", digits),
    ("joules",): ("energy of the processor a call, joules", digits),
}


def _at(held: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        held = None if held is None else held.get(key)
    return held


def _notes(data: Data) -> Iterable[str]:
    """What the table cannot hold."""
    if batches := data.get("batches"):
        untold = f"; nothing is told of it: {batches['untold']}" if batches["untold"] else ""
        yield f"In batches: {batches['samples']} samples a call on {batches['threads']} threads{untold}."
    ratio = data["ratio"]
    if ratio.get("nonzero") is not None:
        left, shared, moved = (ratio[key] for key in ("nonzero", "shared", "weight_error"))
        told = [f"{percent(left)} of the parameters before are left and not zero (r_p)"]
        told += [f"{percent(shared)} of those need no value of their own (r_w)"] if shared else []
        told += [f"weights were moved by {percent_off(moved)} of their length (ε_q)"] if moved else []
        yield f"{'; '.join(told)}."
