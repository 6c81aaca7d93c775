"""A tensor as its difference from another of the same type and shape: NumPy in and out, to the bit and back.

Whole numbers are subtracted within their bits. Floats are subtracted as what their bits say when read as whole numbers:
neighbours differ by one, so that a small change of a weight is a small number. Its sign goes to the lowest bit, and all
is turned right by one, which coding turns back (`entropy/planes.py`): planes above the change are then all zeros.
"""

from __future__ import annotations

import numpy as np

from lilliput.entropy import Array, name_of
from lilliput.entropy.planes import FLOATS, turned, turned_back


def difference(x: Array, base: Array, bits: int) -> Array:
    """What `added` makes `x` of again; `bits` of each element of one byte count.

    >>> difference(np.array([3, -8], np.int8), np.array([1, 7], np.int8), 4)
    array([2, 1], dtype=int8)
    """
    if name_of(x.dtype) in FLOATS:
        apart = (_whole(x) - _whole(base)).view(f"i{x.itemsize}")
        return turned_back(_whole((apart << 1) ^ (apart >> (8 * x.itemsize - 1)))).view(x.dtype)
    return _cut(_whole(x) - _whole(base), x, bits)


def added(stored: Array, base: Array, bits: int) -> Array:
    """The tensor whose difference from `base` is stored.

    >>> x, near = (np.array([n, -3.5], np.float32) for n in (1.0, 1.0000001))
    >>> bool((added(difference(x, near, 32), near, 32) == x).all())
    True
    """
    if name_of(stored.dtype) in FLOATS:
        folded = turned(_whole(stored))
        apart = (folded >> 1) ^ -(folded & 1)
        total: Array = _whole(base) + apart
        return total.view(stored.dtype)
    return _cut(_whole(base) + _whole(stored), stored, bits)


def _whole(x: Array) -> Array:
    """The bits of each element as a whole number without sign, in the same shape: of no axes, too."""
    return np.ascontiguousarray(x).view(f"u{x.itemsize}").reshape(x.shape)


def _cut(whole: Array, like: Array, bits: int) -> Array:
    """Numbers of which so many bits count, in the type of others: signed ones go from -2^(bits-1)."""
    if like.dtype == bool:
        return (whole & 1).view(bool)
    if like.itemsize > 1 or bits == 8:
        return whole.view(like.dtype)
    low = whole & (1 << bits) - 1
    if like.dtype != np.int8:
        return low.view(like.dtype)
    half = 1 << bits - 1
    return ((low ^ half).astype(np.int8) - np.int8(half)).astype(np.int8)
