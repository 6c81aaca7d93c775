"""Numbers as a picture of them shows: `0.00× (0.00 to 0.00)` makes `2.04× (1.99 to 2.07)`."""

from __future__ import annotations

import re

from marks.csvs import Wrong
from marks.expressions import Figure

_NUMBER = re.compile(r"\+?0(?:,000)?(?:\.0+)?(?:e0)?|~\d")


def written(figure: Figure, picture: str) -> str:
    """A figure as a picture shows it: a number, the two ends of its interval, or all three.

    In a picture `0.0` is a number with one decimal, `+0.0` one with its sign, `0,000` one with commas, `0e0` a power
    of ten, and `~3` one of three digits. A ratio (with ×) whose interval holds 1, and a difference (with +) whose
    interval holds 0, is a tie, and said to be one whatever the picture shows.

    >>> written(Figure(2.041, 1.99, 2.066), "0.00× (0.00 to 0.00) faster")
    '2.04× (1.99 to 2.07) faster'
    >>> written(Figure(0.998, 0.97, 1.03), "0.00× faster")
    'a tie (0.97 to 1.03)'
    """
    if isinstance(figure.value, str):
        if picture:
            raise Wrong(f"{figure.value!r} is a text, which takes no picture")
        return figure.value
    slots = _NUMBER.findall(picture)
    wanted = {1: (figure.value,), 2: (figure.low, figure.high), 3: (figure.value, figure.low, figure.high)}
    if len(slots) not in wanted:
        raise Wrong(f"the picture {picture!r} shows {len(slots)} numbers, not one to three")
    if tied(figure, picture):
        low, high = (_number(end, slots[-1].lstrip("+")) for end in (figure.low, figure.high) if end is not None)
        return f"a tie ({low} to {high})"
    if "faster" in picture and figure.value < 1:
        raise Wrong(f"{figure.value:g} is slower, not faster")
    given = iter(wanted[len(slots)])

    def fill(slot: re.Match[str]) -> str:
        number = next(given)
        if number is None:
            raise Wrong(f"the picture {picture!r} shows an interval, and there is none")
        return _number(number, slot[0])

    return _NUMBER.sub(fill, picture)


def tied(figure: Figure, picture: str) -> bool:
    """Whether the interval holds what says nothing: 1 of a ratio, 0 of a difference."""
    if figure.low is None or figure.high is None:
        return False
    if "×" in picture:
        return figure.low <= 1 <= figure.high
    return picture.lstrip().startswith("+") and figure.low <= 0 <= figure.high


def _number(number: float, slot: str) -> str:
    if slot.startswith("~"):
        return _digits(number, int(slot[1:]))
    places = len(slot.partition(".")[2].partition("e")[0])
    if "e" in slot:
        mantissa, power = f"{number:.{places}e}".split("e")
        return f"{mantissa}e{int(power)}"
    text = f"{number:{'+' if slot[0] == '+' else ''}{',' if ',' in slot else ''}.{places}f}"
    return text if float(text.replace(",", "")) else text.lstrip("-")


def _digits(number: float, digits: int) -> str:
    """With so many digits; large ones by their power of ten."""
    mantissa, power = f"{number:.{digits - 1}e}".split("e")
    if int(power) > 4:
        return f"{float(mantissa):.0f}e{int(power)}"
    return f"{float(f'{number:.{digits}g}'):,.{max(digits - 1 - int(power), 0)}f}"
