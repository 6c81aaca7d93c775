"""The errors a user meets: each says what went wrong, where, why, and what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_LONGEST = 600  # characters of a part of a message


class LilliputError(Exception):
    """Something the user can act on.

    `what` happened, `where` (a module path, a file, a field), `why`, and what to do `next`.

    >>> str(LilliputError("groups of 128 do not divide 72 inputs", where="layer3.conv1", next="use group=72"))
    'layer3.conv1: groups of 128 do not divide 72 inputs; use group=72'
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", next: str = "") -> None:
        what, where, why, next = map(_printable, (what, where, why, next))
        self.what, self.where, self.why, self.next = what, where, why, next
        place = f"{where}: " if where else ""
        reason = f" ({why})" if why else ""
        remedy = f"; {next}" if next else ""
        super().__init__(f"{place}{what}{reason}{remedy}")


def _printable(text: str) -> str:
    """`text` as a terminal may be given it: a file's own words may be in it, of any length and with any character."""
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
    return short if short.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


class InputError(LilliputError):
    """The task, its data or a file given by the user is not usable."""


class RecipeError(LilliputError):
    """The recipe names something unknown, or an order of steps that cannot work."""


class CaptureError(LilliputError):
    """The model could not be turned into a graph."""


class EncodingError(LilliputError):
    """A tensor cannot be represented as asked."""


class FormatError(LilliputError):
    """A file is damaged, hostile, or of a version this library does not read."""


class ExportError(LilliputError):
    """The model could not leave, or what left does not compute what the module computes."""


class MeasureError(LilliputError):
    """A measurement failed or cannot be trusted."""


class ResumeError(LilliputError):
    """A folder holds a run of other inputs than those given now."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy naming the closest of `known`, for an unknown `name`.

    >>> nearest("quantise", ["quantize", "prune"])
    "did you mean 'quantize'? (known: prune, quantize)"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    listing = ", ".join(names)
    return f"did you mean {close[0]!r}? (known: {listing})" if close else f"known: {listing}"


def reason(error: BaseException) -> str:
    """An error of somebody else's in one line.

    >>> reason(ValueError("no\\nmore"))
    'ValueError: no'
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()  # colours are for terminals
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
