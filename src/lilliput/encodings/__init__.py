"""How a tensor, or a value that flows, is represented: one file per representation."""

from lilliput.encodings.encoding import Encoded, Encoding, tensor_digest
from lilliput.encodings.floats import BFloat16, Float16
from lilliput.encodings.integer import Int
from lilliput.encodings.sparse import Sparse

ENCODINGS: dict[str, type[Encoding]] = {
    "Float16": Float16,
    "BFloat16": BFloat16,
    "Int": Int,
    "Sparse": Sparse,
}

__all__ = ["ENCODINGS", "BFloat16", "Encoded", "Encoding", "Float16", "Int", "Sparse", "tensor_digest"]
