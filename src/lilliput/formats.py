"""Number formats: how weights, and values that flow, are represented; and which of them each gets.

>>> from lilliput.formats import Codebook, Int
>>> Int(4, group=32), Codebook(8)
(Int(bits=4, group=32), Codebook(n=8))
"""

from __future__ import annotations

from lilliput.encodings import (
    NF4,
    BFloat16,
    Blockwise,
    Codebook,
    Exponent8,
    Fixed,
    Float16,
    Int,
    LowRank,
    MiniFloat,
    PowerOfTwo,
    Signs,
    Sparse,
    mxfp4,
)
from lilliput.model.carrier.carrier import freeze, to_dense, unfreeze
from lilliput.techniques.assignment import Assignment

__all__ = [
    "NF4",
    "Assignment",
    "BFloat16",
    "Blockwise",
    "Codebook",
    "Exponent8",
    "Fixed",
    "Float16",
    "Int",
    "LowRank",
    "MiniFloat",
    "PowerOfTwo",
    "Signs",
    "Sparse",
    "freeze",
    "mxfp4",
    "to_dense",
    "unfreeze",
]
