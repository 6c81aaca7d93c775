"""The part of the page that says where a compressed network loses, and the page of a diagnosis alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lilliput.report.markup import Html, cell, document, dotted, el, joined, number, table, track

Data = Mapping[str, Any]

_MANY = 24  # rows; a longer table scrolls under its heading
_WORST = 12  # rows of a diagnosis in brief of which none was tried alone
_NOTE = (
    "Alone: signal to noise of the network's output with this layer encoded and no other; its share is of the noise "
    "that all make so. Arrived: signal to noise of what the layer gives with everything encoded, noise from the layers "
    "before it included. The lower, the worse; a dash where nothing differs, or where it was not measured."
)


def decibels_shown(db: float | None) -> str:
    """Decibels, or a dash where there are none.

    >>> decibels_shown(24.49), decibels_shown(None)
    ('24.5', '–')
    """
    return "–" if db is None else f"{db:.1f}"


def share_shown(share: float) -> str:
    r"""A share in percent, without digits that say nothing.

    >>> share_shown(0.4567), share_shown(0.0001)
    ('46\xa0%', 'under 1\xa0%')
    """
    space = "\N{NO-BREAK SPACE}"
    return f"{100 * share:.0f}{space}%" if share >= 0.01 else f"under 1{space}%"


def advised(remedy: str) -> str:
    """A remedy as advice.

    >>> advised("more bits"), advised("not worth it: more bits")
    ('Try: more bits', 'Not worth it: more bits')
    """
    return f"N{remedy[1:]}" if remedy.startswith("not worth") else f"Try: {remedy}"


def blame_section(data: Data | None) -> Html:
    """Where it loses; nothing where nothing was looked for."""
    if not data:
        return joined()
    title = el("h2", "Where it loses")
    if not data["rows"]:
        return el("section", title, *(el("p", note) for note in data["notes"]))
    return el("section", title, el("p", _summary(data)), *_body(data))


def blame_page(data: Data) -> str:
    """A diagnosis as a page of its own."""
    head = el(
        "header",
        el("p", f"Lilliput diagnosis for {data['target']}", class_="kicker"),
        el("h1", data["name"]),
        el("p", _summary(data), class_="lead"),
    )
    return document(
        f"{data['name']} · Lilliput diagnosis", head, el("section", el("h2", "Where it loses"), *_body(data))
    )


def _summary(data: Data) -> str:
    where = f"in {data['target']}" if data["on"] == "target" else "with the module"
    kept = "exactly what it was" if data["output_db"] is None else f"{data['output_db']:.1f} dB of signal to noise"
    count = data["samples"]
    samples = f"{count} sample{'' if count == 1 else 's'} of the {data['judged_on']}"
    return f"Judged {where} on {samples}, the output keeps {kept}."


def _body(data: Data) -> Iterable[Html]:
    rows = _told(data)
    heads = ["layer"]
    shares, left = (any(row[key] is not None for row in rows) for key in ("share", "without_db"))
    heads += [
        "#alone, dB",
        *(["#share"] if shares else []),
        "#arrived, dB",
        *(["#if left in float, dB"] if left else []),
    ]
    heads.append("likely cause, and what to try")
    if rows:
        many = "blame long" if len(rows) > _MANY else "blame"
        yield table(heads, (_row(row, data["on"], shares, left) for row in rows), "Where it loses", class_=many)
    notes = [_NOTE, *data["notes"]] if rows else data["notes"]
    for note in notes:
        yield el("p", note if note.endswith(".") else f"{note}.")


def _told(data: Data) -> list[Data]:
    """All rows of a diagnosis in full; of one in brief those that were tried alone, or else the worst."""
    rows = list(data["rows"])
    tried = [row for row in rows if row["own_on"]]
    return rows if data["on"] == "target" else tried or rows[:_WORST]


def _row(row: Data, on: str, shares: bool, left: bool) -> Iterable[Html]:
    yield el("th", dotted(row["name"]), el("small", f"{row['op']}, ", _represented(row)), scope="row")
    yield number(
        decibels_shown(row["own_db"]), *([el("small", "by the module")] if row["own_on"] not in ("", on) else [])
    )
    if shares:
        bar = (
            "–"
            if row["share"] is None
            else joined(el("span", track(row["share"]), class_="track"), share_shown(row["share"]))
        )
        yield number(bar)
    yield number(decibels_shown(row["reached_db"]))
    if left:
        yield number(decibels_shown(row["without_db"]))
    yield cell(*(part for cause in row["causes"] for part in _cause(cause)))


def _represented(row: Data) -> str:
    return row["values"] if row["weight"] == "–" else f"{row['weight']} · {row['values']}"


def _cause(cause: Data) -> Iterable[Html]:
    says = cause["says"]
    yield el("p", el("strong", f"{cause['kind']}: "), says)
    yield from (el("small", advised(remedy)) for remedy in cause["remedies"])
