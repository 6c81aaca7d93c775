"""Symbols to bytes and back: NumPy in and out, nothing of torch. `docs/format.md` is the specification."""

from lilliput.entropy.chunk import CODERS, Coder, able, bound, decode, encode
from lilliput.entropy.planes import Array, dtype_called, name_of

__all__ = ["CODERS", "Array", "Coder", "able", "bound", "decode", "dtype_called", "encode", "name_of"]
