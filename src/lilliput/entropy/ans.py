"""Symbols of one model as a stack of 32-bit words, and back: asymmetric numeral systems.

The library constriction does both where it is installed. It has no wheel for Linux on ARM, for musl or for Windows on
ARM; there words are read by Python itself, at about an eighth of the speed, and none are written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.entropy.model import PRECISION, Counts, Model
from lilliput.entropy.planes import Symbols
from lilliput.errors import FormatError, not_installed

try:
    import constriction
except ImportError:
    constriction = None
library: Any = constriction  # None where it is missing

_LOW = (1 << PRECISION) - 1  # bits of the state that tell the next symbol
_REFILL = 1 << 32  # a state below takes a word
_BUCKETS = 12  # bits by which the place of a symbol is looked up first


def encode(symbols: Symbols, model: Model) -> bytes:
    """The words; raises InputError where the library is missing."""
    if library is None:
        raise not_installed("constriction")
    alphabet, shares = model.frequencies()
    index = np.zeros(256, np.int32)
    index[alphabet] = np.arange(len(alphabet))
    stack = library.stream.stack.AnsCoder()
    stack.encode_reverse(index[symbols], _categorical(shares))
    return bytes(stack.get_compressed().astype("<u4").tobytes())


def decode(data: bytes, model: Model, count: int) -> Symbols:
    """The `count` symbols in the words `data`; raises FormatError unless they are just those.

    >>> decode(bytes(8), Model(0, 1, 0, bytes((1, 1)), ()), 3)
    Traceback (most recent call last):
    lilliput.errors.FormatError: a coded stream ends in zeros
    """
    if len(data) % 4:
        raise FormatError("a coded stream is cut short")
    words = np.frombuffer(data, "<u4").astype(np.uint32)
    if len(words) and words[-1] == 0:
        raise FormatError("a coded stream ends in zeros")
    alphabet, shares = model.frequencies()
    places, empty = (_by_python if library is None else _by_library)(words, shares, count)
    if not empty:
        raise FormatError("a coded stream holds more than was declared")
    found: Symbols = alphabet.astype(np.uint8)[places]
    return found


def _by_library(words: NDArray[np.uint32], shares: Counts, count: int) -> tuple[NDArray[Any], bool]:
    stack = library.stream.stack.AnsCoder(words)
    return stack.decode(_categorical(shares), count), stack.is_empty()


def _categorical(shares: Counts) -> Any:
    """A model of constriction that has exactly these shares of 2**24.

    It gives each symbol one of them and distributes the rest as asked; asked for whole shares less one, it rounds
    nothing.
    """
    return library.stream.model.Categorical((shares - 1).astype(np.float64), perfect=False)


def _by_python(words: NDArray[np.uint32], shares: Counts, count: int) -> tuple[NDArray[np.uint8], bool]:
    """One symbol at a time, for each follows from the state that the one before it left.

    NumPy could take one of each of several chunks at once: of 32 chunks it is as fast as this, of 500 twice as fast.
    """
    starts = np.cumsum(shares) - shares
    firsts = (np.searchsorted(starts, np.arange(0, 1 << PRECISION, 1 << (PRECISION - _BUCKETS)), "right") - 1).tolist()
    shift, ends, share = PRECISION - _BUCKETS, (starts + shares).tolist(), shares.tolist()
    begins, stack, out = starts.tolist(), words.tolist(), bytearray(count)
    state = _filled(_filled(0, stack), stack)
    for i in range(count):
        low = state & _LOW
        at = firsts[low >> shift]
        while low >= ends[at]:
            at += 1
        out[i] = at
        state = (state >> PRECISION) * share[at] + low - begins[at]
        if state < _REFILL and stack:
            state = state << 32 | stack.pop()
    return np.frombuffer(out, np.uint8), state == 0 and not stack


def _filled(state: int, stack: list[int]) -> int:
    return state << 32 | stack.pop() if stack and state < _REFILL else state
