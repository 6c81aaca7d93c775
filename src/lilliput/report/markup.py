"""HTML from small functions, in which text cannot turn into markup by mistake."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


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
