"""Numbers as a reader wants them: few digits, units, and no rounding that changes what they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

_SPACE = "\N{NO-BREAK SPACE}"


def digits(x: float, count: int = 3) -> str:
    """`x` with as many digits as say something, and never an exponent.

    >>> digits(5.2321), digits(18549.2), digits(0.9, 4), digits(0)
    ('5.23', '18,549', '0.9000', '0')
    """
    places = count - 1 - math.floor(math.log10(abs(x))) if x else 0
    return f"{x:,.{min(max(places, 0), 9)}f}"


def signed(x: float) -> str:
    """A change, with its sign.

    >>> signed(-0.05), signed(0.1247), signed(0)
    ('−0.050', '+0.12', '0')
    """
    return f"{'−' if x < 0 else '+' if x else ''}{digits(abs(x), 2)}"


def percent(share: float) -> str:
    r"""A share in percent, which reads 0.0 or 100.0 only where it is exactly that.

    >>> percent(0.994), percent(0.99996), percent(1.0)
    ('99.4\xa0%', '99.996\xa0%', '100.0\xa0%')
    """
    at_an_edge = share not in (0, 1) and not 0.0005 <= share < 0.9995
    return f"{100 * share:.{3 if at_an_edge else 1}f}{_SPACE}%"


def size(count: float) -> str:
    r"""Bytes in the unit that suits them.

    >>> size(416), size(9603), size(18549188)
    ('416\xa0B', '9.60\xa0kB', '18.5\xa0MB')
    """
    if count < 1000:
        return f"{count:.0f}{_SPACE}B"
    power = min(int(math.log10(count) / 3 + 1e-4), 4)  # a hair early, so that 999.9 kB reads 1.00 MB
    return f"{digits(count / 1000**power)}{_SPACE}{('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def interval(found: Mapping[str, Any], form: Callable[[float], str]) -> str:
    r"""The interval of a measurement; an end about which the samples say nothing is open.

    >>> interval({"low": 1.65, "high": None}, digits)
    '95\xa0% interval 1.65 to open'
    """
    low, high = ("open" if found[end] is None else form(found[end]) for end in ("low", "high"))
    return f"95{_SPACE}% interval {low} to {high}"
