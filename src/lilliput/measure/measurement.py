"""One measured number and how sure of it we are."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """A figure with its interval and the number of samples behind it.

    An endpoint is infinite where the samples say nothing about it; JSON, without infinity, has null there.

    >>> print(Measurement(1.92, 1.85, 2.01, samples=20, unit="ms"))
    1.92 [1.85, 2.01] ms
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

    def __str__(self) -> str:
        places = self._places()
        value, low, high = (f"{figure:.{places}f}" for figure in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]" + (f" {self.unit}" if self.unit else "")

    def _places(self) -> int:
        """Decimals that show three digits of the figure, and two of the interval's width."""
        width = self.high - self.low
        wanted = ((abs(self.value), 2), (width, 1))
        places = [digits - math.floor(math.log10(x)) for x, digits in wanted if x > 0 and math.isfinite(x)]
        return min(max([0, *places]), 9)
