"""How a tensor, or a value that flows, is represented: one file per representation."""

from lilliput.encodings.blockwise import Blockwise
from lilliput.encodings.codebook import Codebook
from lilliput.encodings.encoding import Encoded, Encoding, tensor_digest
from lilliput.encodings.fixed import Fixed
from lilliput.encodings.floats import BFloat16, Exponent8, Float16
from lilliput.encodings.grids import NF4, MiniFloat, PowerOfTwo, Signs, mxfp4
from lilliput.encodings.integer import Int
from lilliput.encodings.low_rank import LowRank
from lilliput.encodings.sparse import Sparse

ENCODINGS: dict[str, type[Encoding]] = {
    "Float16": Float16,
    "BFloat16": BFloat16,
    "Exponent8": Exponent8,
    "Int": Int,
    "Fixed": Fixed,
    "Codebook": Codebook,
    "PowerOfTwo": PowerOfTwo,
    "Signs": Signs,
    "NF4": NF4,
    "MiniFloat": MiniFloat,
    "Blockwise": Blockwise,
    "LowRank": LowRank,
    "Sparse": Sparse,
}
EARLIER: dict[str, type[Encoding]] = {"Levels": Codebook, "Log": PowerOfTwo, "Tiles": Blockwise}  # kinds of older files

__all__ = [
    "EARLIER",
    "ENCODINGS",
    "NF4",
    "BFloat16",
    "Blockwise",
    "Codebook",
    "Encoded",
    "Encoding",
    "Exponent8",
    "Fixed",
    "Float16",
    "Int",
    "LowRank",
    "MiniFloat",
    "PowerOfTwo",
    "Signs",
    "Sparse",
    "mxfp4",
    "tensor_digest",
]
