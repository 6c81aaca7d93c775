"""How much is removed: a fraction, all that scores little, or as much as a budget asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lilliput.errors import InputError, RecipeError

COSTS = ("macs", "parameters", "latency")
WAYS = ("amount", "threshold", *COSTS)
_HALVINGS = 8


@dataclass(frozen=True)
class Amount:
    """One of the `WAYS`, and its number. Raises RecipeError for a number that makes no sense."""

    way: str
    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < (math.inf if self.way == "threshold" else 1):
            next = "a number over 0" if self.way == "threshold" else "a fraction between 0 and 1"
            raise RecipeError(f"Prune of {self.way} {self.value}", next=f"give {next}")

    @property
    def fraction(self) -> float | None:
        return self.value if self.way == "amount" else None

    @property
    def threshold(self) -> float | None:
        return self.value if self.way == "threshold" else None

    @property
    def budget(self) -> str:
        """Of which cost it is a budget; empty if of none."""
        return self.way if self.way in COSTS else ""

    def around(self, left: Callable[[float], float]) -> tuple[float, float]:
        """The largest fraction that leaves more than the budget of the cost, and the least that does not; by halving.

        Raises InputError where even the largest fraction leaves more.

        >>> Amount("macs", 0.45).around(lambda fraction: 1 - fraction)
        (0.546875, 0.55078125)
        """
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if left(middle) <= self.value else (middle, high)
        if high == 1:
            raise InputError(
                f"the model cannot come down to {self.value:.0%} of its {self.way}",
                why="what may be removed is not enough",
                next="allow more, or see in the report of a smaller step what stays and why",
            )
        return low, high
