"""Text on terminals that cannot show all characters."""

from __future__ import annotations

import codecs
import sys

_PLAIN = {
    "×": "x", "≥": ">=", "≤": "<=", "–": "-", "—": "-", "−": "-", "…": "...", "→": "->", "←": "<-", "·": "*",
    "±": "+-", "≈": "~", "µ": "u", "μ": "u", "²": "2", "√": "sqrt", "∞": "inf", "“": '"', "”": '"', "‘": "'",
    "’": "'", "━": "-", "╸": "-", "╺": "-",
}  # fmt: skip
_NAME = "lilliput-plain"


def show_what_can_be_shown() -> None:
    """From now on characters that a stream cannot encode come out as plainer ones, instead of ending the command."""
    codecs.register_error(_NAME, _plainer)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # as it does not where a program has put something else in its place
            stream.reconfigure(errors=_NAME)


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end
