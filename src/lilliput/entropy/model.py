"""How often each symbol occurs, in few bytes: weights at knots, straight lines between them, and single exceptions.

With a knot at every symbol this is an ordinary table; with few knots it is a curve of some bytes, which a small tensor
can afford. From the bytes on all arithmetic is on integers, so every decoder finds the same frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lilliput.errors import FormatError

PRECISION = 24  # frequencies are of 2**24
_SPACINGS = range(6)  # logarithms of the distance between knots
_MOST_EXCEPTIONS = 255
_ROUNDS = 3  # of choosing exceptions and fitting the rest without them

_VALUES = np.array([0] + [(16 + (e & 15)) << (e >> 4) for e in range(1, 256)], np.int64)  # what a byte stands for
_MIDPOINTS = (_VALUES[1:] + _VALUES[:-1]) / 2
_LARGEST = int(_VALUES[-1])

Counts = NDArray[np.int64]  # [256], or one for each symbol that a model has


@dataclass(frozen=True)
class Model:
    """Frequencies of the symbols ``low … high``, as bytes that give them."""

    low: int
    high: int
    spacing: int
    knots: bytes
    exceptions: tuple[tuple[int, int], ...]  # (symbol, byte of its weight)

    def to_bytes(self) -> bytes:
        head = bytes((self.low, self.high, self.spacing)) + self.knots + bytes((len(self.exceptions),))
        return head + bytes(number for pair in self.exceptions for number in pair)

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[Model, int]:
        """The model that begins `data`, and how many bytes it takes."""
        if len(data) < 3 or data[0] >= data[1] or data[2] not in _SPACINGS:
            raise FormatError("the model of a coded stream is not sound")
        low, high, spacing = data[:3]
        end = 3 + _knots(low, high, spacing)
        if len(data) <= end or len(data) < end + 1 + 2 * data[end]:
            raise FormatError("the model of a coded stream is cut short")
        pairs = data[end + 1 : end + 1 + 2 * data[end]]
        exceptions = tuple(zip(pairs[::2], pairs[1::2], strict=True))
        if any(not low <= symbol <= high for symbol, _ in exceptions):
            raise FormatError("the model of a coded stream is not sound")
        return cls(low, high, spacing, data[3:end], exceptions), end + 1 + len(pairs)

    def frequencies(self) -> tuple[NDArray[np.int64], Counts]:
        """The symbols that can occur, and for each its share of 2**24; the shares add up to that."""
        weights = _lines(self.knots, self.spacing)[: self.high - self.low + 1]
        for symbol, byte in self.exceptions:
            weights[symbol - self.low] = _VALUES[byte]
        symbols = np.flatnonzero(weights)
        if len(symbols) < 2:
            raise FormatError("the model of a coded stream has fewer than two symbols")
        held = weights[symbols]
        shares = 1 + held * ((1 << PRECISION) - len(held)) // held.sum()
        shares[held.argmax()] += (1 << PRECISION) - shares.sum()
        return symbols + self.low, shares


def _knots(low: int, high: int, spacing: int) -> int:
    """How many knots it takes from `low` to `high`, the last at or past `high`."""
    return 1 + -(-(high - low) // (1 << spacing))


def _lines(knots: bytes, spacing: int) -> Counts:
    """The weight of each symbol from the first knot to the last."""
    at = _VALUES[np.frombuffer(knots, np.uint8)]
    if spacing == 0:
        return at.copy()
    step = 1 << spacing
    part = np.arange(step)
    between = (at[:-1, None] * (step - part) + at[1:, None] * part) >> spacing
    return np.append(between.reshape(-1), at[-1])


def fit(counts: Counts) -> Model:
    """The model that codes symbols occurring so often in the fewest bytes, its own included; two occur at least."""
    low, high = np.flatnonzero(counts)[[0, -1]].tolist()
    held = counts[low : high + 1].astype(np.float64)
    spacings = [k for k in _SPACINGS if k == 0 or (1 << k) < len(held)]
    return min((_fit(held, low, high, k) for k in spacings), key=lambda model: size(model, counts))


def size(model: Model, counts: Counts) -> float:
    """Bytes of the model and of symbols that occur so often."""
    symbols, shares = model.frequencies()
    return len(model.to_bytes()) + float(counts[symbols] @ (PRECISION - np.log2(shares))) / 8


def _fit(held: NDArray[np.float64], low: int, high: int, spacing: int) -> Model:
    peak = held.max()
    alone = np.zeros(len(held), bool)
    hats = _hats(len(held), spacing)
    for _ in range(_ROUNDS if spacing else 1):
        room = hats @ ~alone
        level = np.divide(hats @ (held * ~alone), room, out=np.zeros(len(hats)), where=room > 0)
        knots = np.searchsorted(_MIDPOINTS, level * (_LARGEST / max(peak, level.max()))).astype(np.uint8)
        lines = _lines(knots.tobytes(), spacing)[: len(held)]
        expected = np.where(alone, held, lines * (held.sum() / max(1, lines.sum())))
        gain = held * np.log2(np.maximum(held, 1e-9) / np.maximum(expected, 1e-9))
        alone |= ((lines == 0) & (held > 0)) | (gain > 24)  # bits: those of an exception, and some
        if not spacing:
            break
    chosen = np.flatnonzero(alone)
    if len(chosen) > _MOST_EXCEPTIONS:
        chosen = chosen[np.argsort(-held[chosen], kind="stable")[:_MOST_EXCEPTIONS]]
    scale = _scale(held, lines, alone)
    bytes_ = np.clip(np.searchsorted(_MIDPOINTS, held[chosen] * scale), 1, 255)
    exceptions = tuple(zip((chosen + low).tolist(), bytes_.tolist(), strict=True))
    return Model(low, high, spacing, knots.tobytes(), exceptions)


def _scale(held: NDArray[np.float64], lines: Counts, alone: NDArray[np.bool_]) -> float:
    """Weight of one occurrence, as the lines have it."""
    rest = held[~alone].sum()
    return float(lines[~alone].sum() / rest) if rest and lines[~alone].sum() else _LARGEST / float(held.max())


def _hats(count: int, spacing: int) -> NDArray[np.float64]:
    """[knots, count]: how much each symbol's weight depends on each knot."""
    step = 1 << spacing
    knots = 1 + -(-(count - 1) // step)
    away = np.abs(np.arange(count)[None, :] - step * np.arange(knots)[:, None]) / step
    hats: NDArray[np.float64] = np.maximum(0.0, 1.0 - away)
    return hats
