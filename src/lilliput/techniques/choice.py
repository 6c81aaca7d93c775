"""How the numbers that stand for a tensor are chosen among those that an encoding offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lilliput.encodings import Encoding
from lilliput.techniques.blocks import BlockStop
from lilliput.techniques.inputs import Stop
from lilliput.techniques.rounding import BRECQ, Rounding


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
        parameters = _fitted(self.fit, x, encoding, kept)
        if self.rounding is None or self.stop is None:
            return x, parameters, ""
        told = self.stop.told
        if not self.stop.batches:
            return x, parameters, f"{told}: rounded to the nearest"
        return *self.rounding.round(x, encoding, parameters, self.stop), told


NEAREST = Choice()


@dataclass(frozen=True, eq=False)
class JointChoice:
    """By which parameters the weights of a block are represented, and which numbers stand for them together."""

    fit: Fit | None
    rounding: BRECQ
    entry: BlockStop  # where `rounding` looks at what flows

    def numbers(
        self,
        weights: Mapping[str, Tensor],
        encodings: Mapping[str, Encoding],
        kept: Mapping[str, Mapping[str, Tensor] | None],
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]], str]:
        """The weights moved, with the biases that are, their parameters, and what is to be told; all by their paths."""
        parameters = {path: _fitted(self.fit, x, encodings[path], kept[path]) for path, x in weights.items()}
        told = self.entry.told
        if not self.entry.batches:
            return weights, parameters, f"{told}: rounded to the nearest"
        return self.rounding.block(weights, encodings, parameters, self.entry), parameters, told


def _fitted(fit: Fit | None, x: Tensor, encoding: Encoding, kept: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    if kept is not None:
        return kept
    return fit.fit(x, encoding) if fit else encoding.fit(x)
