"""How the numbers that stand for a tensor are chosen among those that an encoding offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lilliput.encodings import Encoding
from lilliput.techniques.inputs import Stop
from lilliput.techniques.rounding import Rounding


class Fit(Protocol):
    """How the parameters of an encoding (scale, offset, codebook) are found for a tensor; a frozen dataclass."""

    def fit(self, x: Tensor, encoding: Encoding) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Choice:
    """What is represented, by which parameters, and which of their numbers stand for it."""

    values: Tensor | None = None  # in place of those that the tensor has
    fit: Fit | None = None  # of the parameters; None: the encoding's own
    rounding: Rounding | None = None  # None: to the nearest
    stop: Stop | None = None  # where `rounding` looks at what flows

    def numbers(
        self, x: Tensor, encoding: Encoding, kept: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Mapping[str, Tensor], str]:
        """`x` moved to the numbers that stand for it, the parameters, and what is to be told of how it was done.

        `kept` are parameters that stay as they are, of a tensor that was encoded before.
        """
        parameters = kept if kept is not None else self.fit.fit(x, encoding) if self.fit else encoding.fit(x)
        if self.rounding is None or self.stop is None:
            return x, parameters, ""
        told = self.stop.told
        if not self.stop.batches:
            return x, parameters, f"{told}: rounded to the nearest"
        return *self.rounding.round(x, encoding, parameters, self.stop), told


NEAREST = Choice()
