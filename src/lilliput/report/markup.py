"""HTML from small functions, in which text cannot turn into markup by mistake."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
"""


class Html(str):
    """Text that is markup already; all other text is escaped where it enters an element."""


def el(name: str, *inside: object, **attributes: str) -> Html:
    """An element around what is `inside`; attributes that are empty are left out.

    >>> print(el("b", "a < b ", el("i", 3), class_="x", id=""))
    <b class="x">a &lt; b <i>3</i></b>
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"' for key, text in attributes.items() if text
    )
    return Html(f"<{name}{given}>{joined(*inside)}</{name}>")


def joined(*parts: object) -> Html:
    """The parts one after another.

    >>> print(joined("R&D ", el("b", 1)))
    R&amp;D <b>1</b>
    """
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def dotted(path: str) -> Html:
    """A dotted path, which may break across lines after its dots.

    >>> print(dotted("layer3.conv1"))
    <code>layer3.<wbr>conv1</code>
    """
    return el("code", Html(escape(path).replace(".", ".<wbr>"))) if path else el("em", "the whole model")


def table(heads: Iterable[str], rows: Iterable[Iterable[Html]], label: str, *, class_: str = "") -> Html:
    """A table that scrolls in a frame of its own; a head that starts with # is of a column of numbers."""
    cells = (el("th", name.lstrip("#"), scope="col", class_="n" if name.startswith("#") else "") for name in heads)
    body = el("tbody", *(el("tr", *row) for row in rows))
    inside = el("table", el("thead", el("tr", *cells)), body)
    return el("div", inside, class_=f"frame {class_}".strip(), role="region", aria_label=label, tabindex="0")


def track(share: float, low: float | None = None, high: float | None = None) -> Html:
    """A bar as long as its share of the track, with a whisker where both ends of the interval are known."""
    bar = el("i", style=f"width:{share:.2%}")
    if low is None or high is None:
        return bar
    return joined(bar, el("u", style=f"left:{low:.2%};width:{high - low:.2%}"))


def cell(*inside: object) -> Html:
    """One of a row."""
    return el("td", *inside)


def number(*inside: object) -> Html:
    """One of a row, in a column of numbers."""
    return el("td", *inside, class_="n")


def section(title: str, *inside: object) -> Html:
    """A part of the page under a heading."""
    return el("section", el("h2", title), *inside)


def tile(label: str, figure: str, unit: str, *notes: str, class_: str = "tile") -> Html:
    """A figure that matters, large, with what there is to say of it."""
    shown = el("p", figure, " ", el("small", unit), class_="number")
    return el("div", el("h3", label), shown, *(el("p", note) for note in notes), class_=class_)


def document(title: str, *sections: Html) -> str:
    """A whole page in the house's style that needs nothing beside it."""
    style = files("lilliput.report").joinpath("page.css").read_text(encoding="utf-8")
    body = el("body", el("main", *sections))
    return f"{_HEAD}{el('title', title)}\n<style>\n{style}</style>\n{body}\n</html>\n"
