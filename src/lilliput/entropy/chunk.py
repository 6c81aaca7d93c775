"""One chunk of a tensor as bytes: each plane by the coder that makes it smallest.

*Dense* chooses among all coders, ANS among them; *fast* leaves ANS out, which decodes some tens of millions of symbols
a second on a core where zstd does a thousand million. Only the library constriction writes ANS: without it *dense* is
not to be had, and whoever writes a file takes *fast* and says so (`able`).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import zstandard
from numpy.typing import NDArray

from lilliput.entropy import ans
from lilliput.entropy.model import Model, fit, size
from lilliput.entropy.planes import Array, Symbols, dtype_called, field_of, join, pack, split, unpack
from lilliput.errors import FormatError, not_installed

Coder = Literal["dense", "fast"]
CODERS: tuple[str, ...] = get_args(Coder)

VERBATIM, ZSTD, ANS, CONSTANT = range(4)
_WHOLE, _PLANES = range(2)
_QUICK = zstandard.ZstdCompressionParameters.from_level(1)  # higher levels find matches by chance, which cost more
_HARD = zstandard.ZstdCompressionParameters.from_level(  # weighs each match against none
    16, min_match=7, search_log=2, chain_log=16, hash_log=15, window_log=17
)
_LOOSE = 1.012  # times the entropy, above which it pays to try hard
_WORTH = 2  # bytes that ANS must gain over zstd, for it decodes more slowly


def able(coder: Coder) -> tuple[Coder, str]:
    """What codes here in place of `coder`, and, where that is another, why."""
    if coder == "fast" or ans.library is not None:
        return coder, ""
    return "fast", f"coded fast in place of dense: {not_installed('constriction')}"


def encode(x: Array, bits: int, coder: Coder) -> bytes:
    """A flat array of at least one element, of which `bits` a code count, as bytes.

    >>> x = np.array([0, 1, 1, -1, 0, 0], np.int8)
    >>> decode(encode(x, 2, "dense"), "int8", 2, 6)
    array([ 0,  1,  1, -1,  0,  0], dtype=int8)
    """
    planes, width = split(x, bits), min(bits, 8)
    if any(int(plane.max()) >> width for plane in planes):
        raise FormatError(f"elements that do not fit into {width} bits")
    whole = b"".join(pack(plane, width) for plane in planes) if x.itemsize == 1 else x.tobytes()
    streams = [_stream(plane, width, coder) for plane in planes]
    coded = b"".join(_varint(len(stream)) + stream for stream in streams[:-1]) + streams[-1]
    return bytes((_PLANES,)) + coded if len(coded) < len(whole) else bytes((_WHOLE,)) + whole


def decode(data: bytes, dtype: str, bits: int, count: int) -> Array:
    """The `count` elements that `encode` wrote; raises FormatError for bytes that it did not."""
    kind = dtype_called(dtype)
    assert kind is not None
    width = min(bits, 8)
    if data[:1] == bytes((_WHOLE,)):
        return _whole(data[1:], dtype, kind, width, count)
    if data[:1] != bytes((_PLANES,)):
        raise FormatError("a chunk of no known kind")
    planes, at = [], 1
    for i in range(kind.itemsize):
        length = len(data) - at
        if i < kind.itemsize - 1:
            length, at = _read_varint(data, at)
        if length > len(data) - at:
            raise FormatError("a chunk is cut short")
        planes.append(_symbols(data[at : at + length], width, count))
        at += length
    return join(planes, dtype, width)


def _whole(data: bytes, dtype: str, kind: np.dtype[Any], width: int, count: int) -> Array:
    if kind.itemsize == 1:
        return join([_verbatim(data, width, count)], dtype, width)
    if len(data) != count * kind.itemsize:
        raise FormatError("a chunk holds another number of elements than declared")
    return np.frombuffer(data, np.uint8).view(kind)


def bound(x: Array) -> float:
    """Bytes below which no code for the single symbols of `x`, a flat array, can go.

    >>> bound(np.array([0, 1, 1, 0, 0, 1, 0, 1], np.int8))
    1.0
    """
    return sum(_entropy(np.bincount(plane, minlength=256)) for plane in split(x, 8)) if x.size else 0.0


def _stream(symbols: Symbols, bits: int, coder: Coder) -> bytes:
    """One plane in the fewest bytes."""
    counts = np.bincount(symbols, minlength=256)
    if counts[symbols[0]] == len(symbols):
        return bytes((CONSTANT, symbols[0]))
    plain = pack(symbols, bits)
    best = bytes((VERBATIM,)) + plain
    squeezed = _deflated(plain, _QUICK)
    if coder == "fast" and len(squeezed) > _LOOSE * _entropy(counts):
        squeezed = min(squeezed, _deflated(plain, _HARD), key=len)
    if len(squeezed) < len(plain):
        best = bytes((ZSTD,)) + squeezed
    if coder == "dense" and _entropy(counts) < len(best):
        model = fit(counts)
        if size(model, counts) < len(best):
            coded = bytes((ANS,)) + model.to_bytes() + ans.encode(symbols, model)
            best = coded if len(coded) + _WORTH <= len(best) else best
    return best


def _deflated(plain: bytes, how: zstandard.ZstdCompressionParameters) -> bytes:
    return zstandard.ZstdCompressor(compression_params=how).compress(plain)


def _entropy(counts: NDArray[np.int64]) -> float:
    """Bytes below which no code for single symbols can go."""
    held = counts[counts > 0]
    return float(held @ (np.log2(held.sum()) - np.log2(held))) / 8


def _symbols(stream: bytes, bits: int, count: int) -> Symbols:
    method, data = stream[:1], stream[1:]
    if method == bytes((VERBATIM,)):
        return _verbatim(data, bits, count)
    if method == bytes((ZSTD,)):
        return _verbatim(_inflated(data, -(-count * field_of(bits) // 8)), bits, count)
    if method == bytes((ANS,)):
        return _in_range(_from_ans(data, count), bits)
    if method == bytes((CONSTANT,)) and len(data) == 1:
        return _in_range(np.full(count, data[0], np.uint8), bits)
    raise FormatError("a coded stream of no known kind")


def _from_ans(data: bytes, count: int) -> Symbols:
    model, at = Model.from_bytes(data)
    return ans.decode(data[at:], model, count)


def _verbatim(data: bytes, bits: int, count: int) -> Symbols:
    if len(data) != -(-count * field_of(bits) // 8):
        raise FormatError("a coded stream holds another number of symbols than declared")
    return _in_range(unpack(data, bits, count), bits)


def _in_range(symbols: Symbols, bits: int) -> Symbols:
    if bits < 8 and int(symbols.max(initial=0)) >> bits:
        raise FormatError("a coded stream holds symbols of more bits than declared")
    return symbols


def _inflated(data: bytes, largest: int) -> bytes:
    """A zstd frame of exactly `largest` bytes; what it declares is looked at before anything is allocated."""
    try:
        if frame_size(data) != largest:
            raise FormatError("a compressed stream holds another number of bytes than declared")
        inflated = zstandard.ZstdDecompressor().decompressobj()
        plain = inflated.decompress(data)
    except zstandard.ZstdError as error:
        raise FormatError("a compressed stream cannot be decompressed", why=str(error)) from None
    if len(plain) != largest or not inflated.eof or inflated.unused_data:
        raise FormatError("a compressed stream is cut short, or goes on")
    return plain


def frame_size(data: bytes) -> int:
    """Bytes that a zstd frame says it holds; -1 where it says none, or is none as a `.lil` has them.

    Raises ZstdError for what is no frame.
    """
    told = zstandard.get_frame_parameters(data)
    odd = told.has_checksum or told.dict_id  # every chunk has a checksum of its own
    return -1 if odd else int(zstandard.frame_content_size(data))


def _varint(number: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for i in range(5):
        if at + i >= len(data):
            break
        number |= (data[at + i] & 0x7F) << (7 * i)
        if data[at + i] < 0x80:
            return number, at + i + 1
    raise FormatError("a chunk is cut short")
