"""One measured number and how sure of it we are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """A figure with its interval and the number of samples behind it.

    An endpoint is infinite where the samples say nothing about it: text then says "open" there, or "about" for both,
    and JSON, without infinity, has null.

    >>> print(Measurement(1.92, 1.85, 2.01, samples=20, unit="ms"))
    1.92 [1.85, 2.01] ms
    >>> print(Measurement(1.92, -math.inf, math.inf, samples=1, unit="ms"))
    about 1.92 ms
    >>> Measurement(1.92, 1.85, 2.01, samples=20).to_json()
    {'value': 1.92, 'low': 1.85, 'high': 2.01, 'samples': 20}
    """

    value: float
    low: float
    high: float
    samples: int
    unit: str = ""

    def to_json(self) -> dict[str, float | int | str | None]:
        """The fields as JSON holds them; `unit` only where there is one."""
        figures = {"value": self.value, "low": self.low, "high": self.high}
        finite = {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}
        return {**finite, "samples": self.samples, **({"unit": self.unit} if self.unit else {})}

    @property
    def open(self) -> bool:
        """Whether nothing is known about how sure it is."""
        return not (math.isfinite(self.low) or math.isfinite(self.high))

    def interval(self, form: Callable[[float], str], between: str = " to ") -> str:
        """Both endpoints in words; empty where both are open.

        >>> Measurement(1.92, 1.85, math.inf, samples=20).interval("{:.1f}".format)
        '1.9 to open'
        """
        if self.open:
            return ""
        return between.join(form(end) if math.isfinite(end) else "open" for end in (self.low, self.high))

    def __str__(self) -> str:
        places = self._places()
        interval = self.interval(lambda x: f"{x:.{places}f}", ", ")
        value = f"{self.value:.{places}f}"
        return (f"{value} [{interval}]" if interval else f"about {value}") + (f" {self.unit}" if self.unit else "")

    def _places(self) -> int:
        """Decimals that show three digits of the figure, and two of the interval's width."""
        width = self.high - self.low
        wanted = ((abs(self.value), 2), (width, 1))
        places = [digits - math.floor(math.log10(x)) for x, digits in wanted if x > 0 and math.isfinite(x)]
        return min(max([0, *places]), 9)
