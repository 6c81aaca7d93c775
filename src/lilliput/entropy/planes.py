"""Tensors as planes of symbols under 256, in which what is alike lies together.

A plane of codes holds ``code + 2**(bits-1)`` where codes are signed. Wider integers have a plane for each byte. Floats
are turned left by one bit first, so that the highest plane of a float32 or bfloat16 is its exponent and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Symbols = NDArray[np.uint8]

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "bool": np.bool_,
        **{name: getattr(np, name) for name in ("uint8", "uint16", "uint32", "uint64")},
        **{name: getattr(np, name) for name in ("int8", "int16", "int32", "int64", "float16", "float32", "float64")},
        **{name: getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")},
    }.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
FLOATS = frozenset(("float16", "bfloat16", "float32", "float64"))
CODES = ("uint8", "int8")  # may hold codes of fewer bits


def dtype_called(name: str) -> np.dtype[Any] | None:
    """The NumPy type that the format calls `name`; None for one that it does not know.

    >>> dtype_called("bfloat16").itemsize, dtype_called("object")
    (2, None)
    """
    return _DTYPES.get(name) if isinstance(name, str) else None


def name_of(dtype: np.dtype[Any]) -> str | None:
    """What the format calls a NumPy type; None for one that it cannot hold."""
    return _NAMES.get(dtype)


def whole_bits(dtype: str) -> int:
    """Bits of an element that is no packed code: one of a truth value."""
    return 1 if dtype == "bool" else 8 * _DTYPES[dtype].itemsize


def split(x: Array, bits: int) -> list[Symbols]:
    """The planes of a flat array, highest first; `bits` of each element count."""
    name = _NAMES[x.dtype]
    if x.itemsize == 1:
        symbols = x.view(np.uint8)
        return [((symbols ^ _middle(bits)) & ((1 << bits) - 1)).astype(np.uint8) if name == "int8" else symbols]
    whole = x.view(f"<u{x.itemsize}")
    if name in FLOATS:
        whole = turned(whole)
    each = whole.view(np.uint8).reshape(-1, x.itemsize)
    return [np.ascontiguousarray(each[:, i]) for i in reversed(range(x.itemsize))]


def join(planes: Sequence[Symbols], dtype: str, bits: int) -> Array:
    """The flat array whose planes these are."""
    kind = _DTYPES[dtype]
    if kind.itemsize == 1:
        symbols = planes[0]
        if dtype == "int8":
            middle = _middle(bits)
            return (symbols ^ 0x80).view(np.int8) if bits == 8 else (symbols.astype(np.int16) - middle).astype(np.int8)
        return symbols.view(kind)
    each = np.empty((len(planes[0]), kind.itemsize), np.uint8)
    for i, plane in enumerate(reversed(planes)):
        each[:, i] = plane
    whole = each.reshape(-1).view(f"<u{kind.itemsize}")
    if dtype in FLOATS:
        whole = turned_back(whole)
    return whole.view(kind)


def turned(whole: Array) -> Array:
    """Whole numbers without sign, turned left by one bit."""
    return (whole << 1) | (whole >> (8 * whole.itemsize - 1))


def turned_back(whole: Array) -> Array:
    """What was `turned`."""
    return (whole >> 1) | (whole << (8 * whole.itemsize - 1))


def _middle(bits: int) -> int:
    return 1 << (bits - 1)


def field_of(bits: int) -> int:
    """Bits that a symbol takes when it is packed: 1, 2, 4 or 8."""
    return next(width for width in (1, 2, 4, 8) if width >= bits)


def pack(symbols: Symbols, bits: int) -> bytes:
    """Symbols one after the other in fields of 1, 2, 4 or 8 bits, lowest bits first."""
    width = field_of(bits)
    if width == 8:
        return symbols.tobytes()
    each = 8 // width
    padded = np.zeros(-(-len(symbols) // each) * each, np.uint8)
    padded[: len(symbols)] = symbols
    columns = padded.reshape(-1, each)
    packed = columns[:, 0].copy()
    for i in range(1, each):
        packed |= columns[:, i] << (i * width)
    return packed.tobytes()


def unpack(data: bytes, bits: int, count: int) -> Symbols:
    """The symbols that `pack` wrote."""
    width = field_of(bits)
    packed = np.frombuffer(data, np.uint8)
    if width == 8:
        return packed
    each = 8 // width
    columns = np.empty((len(packed), each), np.uint8)
    for i in range(each):
        columns[:, i] = (packed >> (i * width)) & ((1 << width) - 1)
    return columns.reshape(-1)[:count]
