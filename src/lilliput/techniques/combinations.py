"""What combines with what: number formats, how they are fitted, and what they represent.

The data are each fit's `takes` and, of a format, `for_weight` and `for_value`; here they are read.
"""

from __future__ import annotations

from lilliput.encodings import ENCODINGS, Encoding, Sparse
from lilliput.encodings.blocks import Blocked
from lilliput.errors import EncodingError, RecipeError
from lilliput.techniques.hqq import HQQ
from lilliput.techniques.ranges import MSE, RANGES, Range, Use
from lilliput.techniques.rounding import Rounding

FITS: dict[str, type[Range]] = {**RANGES, "HQQ": HQQ}
ADDED = set[type[Encoding]]()  # formats of users
_WHERE: dict[Use, str] = {"weights": "weights", "values": "values that flow"}


def check(encoding: Encoding | None, fit: Range, use: Use) -> None:
    """Refuse, by a RecipeError that names what would fit, a format for a use it is not for, or by a fit it has not."""
    if not isinstance(encoding, Encoding) or not isinstance(fit, Range):
        return  # none; or of a wrong type, which the recipe refuses
    inner = encoding.values if isinstance(encoding, Sparse) else encoding
    if inner is None:  # zeros around numbers as they are
        return
    if (use == "values" and encoding is not inner) or not fitting(type(inner), use):
        raise RecipeError(f"{_WHERE[use]} as {encoding}", next=f"use one of {', '.join(formats(use))}")
    try:
        inner.for_weight() if use == "weights" else inner.for_value()
    except EncodingError as error:
        raise RecipeError(error.what, next=error.next) from None
    if use == "values" and not inner.calibrated:  # found at each run, or given
        if type(fit) is not MSE:
            raise RecipeError(f"{fit} for {inner}, which leaves nothing to calibrate", next="leave calibration= out")
        return
    if not isinstance(inner, fit.takes[use]) and type(fit).__name__ not in fitting(type(inner), use):
        listing = " or ".join(f"{name}()" for name in fitting(type(inner), use))
        raise RecipeError(f"{fit} for {_WHERE[use]} as {inner}", next=f"use {listing}")


def check_rounding(encoding: Encoding | None, rounding: Rounding | None) -> None:
    """Refuse, by a RecipeError, to choose among numbers for a format that offers none."""
    inner = encoding.values if isinstance(encoding, Sparse) else encoding
    if rounding is not None and isinstance(encoding, Encoding) and not isinstance(inner, Blocked):
        raise RecipeError(
            f"{rounding} for weights as {encoding}", next="leave rounding= out, or give Int(4) or another grid"
        )


def fitting(kind: type[Encoding], use: Use) -> list[str]:
    """The names of the fits that take a format for a use; one that was added and that none takes is fitted by itself,
    which is what the default does.
    """
    found = [name for name, fit in FITS.items() if issubclass(kind, fit.takes[use])]
    return found or (["MSE"] if use == "weights" and kind in ADDED else [])


def formats(use: Use) -> list[str]:
    """The names of the formats that can be used so."""
    return [name for name, kind in ENCODINGS.items() if fitting(kind, use)]


def table() -> list[tuple[str, ...]]:
    """Rows of a heading, then of each format.

    Each has its name, of each fit whether it takes it for weights and values, and whether `rounding=` can choose.
    """
    rows = [("format", *FITS, "rounding=")]
    for name, kind in ENCODINGS.items():
        cells = [[use for use in _WHERE if fit in fitting(kind, use)] for fit in FITS]
        if any(cells):
            rows.append((name, *(", ".join(uses) for uses in cells), "weights" if issubclass(kind, Blocked) else ""))
    return rows
