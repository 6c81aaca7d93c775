"""How a tensor, or a value that flows, is represented: one file per representation."""

from lilliput.encodings.encoding import Encoded, Encoding, tensor_digest
from lilliput.encodings.fixed import Fixed
from lilliput.encodings.floats import BFloat16, Exponent8, Float16
from lilliput.encodings.grids import NF4, Log, MiniFloat, Signs, mxfp4
from lilliput.encodings.integer import Int
from lilliput.encodings.levels import Levels
from lilliput.encodings.low_rank import LowRank
from lilliput.encodings.sparse import Sparse
from lilliput.encodings.tiles import Tiles

ENCODINGS: dict[str, type[Encoding]] = {
    "Float16": Float16,
    "BFloat16": BFloat16,
    "Exponent8": Exponent8,
    "Int": Int,
    "Fixed": Fixed,
    "Levels": Levels,
    "Log": Log,
    "Signs": Signs,
    "NF4": NF4,
    "MiniFloat": MiniFloat,
    "Tiles": Tiles,
    "LowRank": LowRank,
    "Sparse": Sparse,
}

__all__ = [
    "ENCODINGS",
    "NF4",
    "BFloat16",
    "Encoded",
    "Encoding",
    "Exponent8",
    "Fixed",
    "Float16",
    "Int",
    "Levels",
    "Log",
    "LowRank",
    "MiniFloat",
    "Signs",
    "Sparse",
    "Tiles",
    "mxfp4",
    "tensor_digest",
]
