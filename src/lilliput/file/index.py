"""The index of a file: what it says of each tensor, read as what anybody may have written. `docs/format.md`."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import IO, Any, NoReturn

import zstandard

from lilliput import entropy
from lilliput.entropy.chunk import frame_size
from lilliput.entropy.planes import CODES, whole_bits
from lilliput.errors import FormatError

HEAD, TAIL = b"LILLIPUT", b"lilliput"
VERSION = 4
_DELTAS = 3  # the first that knows deltas
OLDEST = 2  # that was published, and is what most files still have
CHUNK = 1 << 20  # elements
START = struct.Struct("<8sII")  # HEAD, version, nothing yet
END = struct.Struct("<Q32s8s")  # length of the index, SHA-256 of start and index, TAIL
CHECK = 8  # bytes of a chunk's SHA-256 that are kept
LARGEST_INDEX = 1 << 25  # bytes, compressed or not
_DEEPEST = 128  # structures within structures of the header
LARGEST_NAME, MOST_AXES, MOST_ELEMENTS = 1 << 12, 64, 1 << 48
_HEXADECIMAL = re.compile("[0-9a-f]*")
KINDS = ("module", "checkpoint", "answer")  # of headers
_FREE_INDEX, _RATIO_INDEX = 1 << 20, 1 << 6  # what an index may unfold to, likewise
AGAIN = "the file is damaged: get it again"


@dataclass(frozen=True)
class Entry:
    """What the index says of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int  # of an element, before coding
    chunks: tuple[int, ...]  # bytes stored of each
    checks: bytes  # eight a chunk
    offset: int  # of the first chunk; the others follow

    @property
    def stored_bytes(self) -> int:
        return sum(self.chunks)

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def unfolded_bytes(self) -> int:
        kind = entropy.dtype_called(self.dtype)
        assert kind is not None
        return self.count * kind.itemsize

    def label(self) -> bytes:
        """What the digest of a file takes in of this tensor besides its elements."""
        return canonical([self.name, self.dtype, list(self.shape)])

    def like(self, other: Entry) -> bool:
        """Whether both hold as many numbers of one type."""
        return (self.dtype, self.shape, self.bits) == (other.dtype, other.shape, other.bits)

    def check(self, i: int) -> bytes:
        """What the checksum of chunk `i` must be."""
        return self.checks[i * CHECK : (i + 1) * CHECK]

    def place(self, i: int) -> int:
        """Where chunk `i` lies in the file."""
        return self.offset + sum(self.chunks[:i])

    def spans(self) -> Iterator[tuple[int, int]]:
        """First and last element of each chunk."""
        return ((first, min(first + CHUNK, self.count)) for first in range(0, self.count, CHUNK))

    def plain(self) -> dict[str, Any]:
        packed = {} if self.bits == whole_bits(self.dtype) else {"bits": self.bits}
        shown = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), **packed}
        return {**shown, "chunks": list(self.chunks), "checks": self.checks.hex()}


def most_index(size: int) -> int:
    """Bytes that an index of `size`, compressed, may unfold to: JSON takes many times its bytes in memory."""
    return min(LARGEST_INDEX, _FREE_INDEX + _RATIO_INDEX * size)


def entry_of(data: Any, offset: int) -> Entry:
    """An entry of the index; raises ValueError, TypeError or KeyError for one that is not sound."""
    known = {"name", "dtype", "shape", "bits", "chunks", "checks"}
    if set(data) - known:
        raise ValueError("unknown fields")
    if type(data["shape"]) is not list or type(data["chunks"]) is not list:
        raise ValueError("shape or chunks are no list")
    name, dtype, shape, chunks = data["name"], data["dtype"], tuple(data["shape"]), tuple(data["chunks"])
    kind = entropy.dtype_called(dtype)
    if type(name) is not str or len(name) > LARGEST_NAME or kind is None:
        raise ValueError("no name, or no known type")
    whole = whole_bits(dtype)
    bits = data.get("bits", whole)
    if "bits" in data and (dtype not in CODES or type(bits) is not int or not 1 <= bits < whole):
        raise ValueError("bits")
    if len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("shape")
    if prod(max(n, 1) for n in shape) > MOST_ELEMENTS:
        raise ValueError("more elements than there can be")
    if not all(type(n) is int and 0 < n <= CHUNK * 9 for n in chunks):
        raise ValueError("chunks")
    checks = bytes.fromhex(_digits(data["checks"]))
    if len(chunks) != -(-prod(shape) // CHUNK) or len(checks) != CHECK * len(chunks):
        raise ValueError("another number of chunks than the shape needs")
    return Entry(name, dtype, shape, bits, chunks, checks, offset)


def _digits(text: Any) -> str:
    if type(text) is not str or not _HEXADECIMAL.fullmatch(text):
        raise ValueError("no lowercase hexadecimal digits")
    return text


def version_of(header: Mapping[str, Any]) -> int:
    """The first version of the format that knows all that a header says."""
    graph = header.get("graph")
    references = graph.get("initializers") if isinstance(graph, dict) else None
    if isinstance(references, dict) and any(isinstance(one, dict) and "packed" in one for one in references.values()):
        return VERSION
    return _DELTAS if header.get("deltas") else OLDEST


def read_index(file: IO[bytes], size: int, where: str) -> tuple[dict[str, Any], int]:
    """The index, and where the tensors end."""
    damaged = FormatError(
        "is not a whole Lilliput file", where=where, next="the file is damaged or cut short: get it again"
    )
    if size < START.size + END.size:
        raise damaged
    file.seek(0)
    start = file.read(START.size)
    file.seek(size - END.size)
    end = file.read(END.size)
    head, version, zero = START.unpack(start)
    length, digest, tail = END.unpack(end)
    if head != HEAD:
        raise damaged
    if tail == HEAD or version < OLDEST:
        number = 1 if tail == HEAD else version
        raise FormatError(f"format version {number}", where=where, why="it was never published", next="compress again")
    if version > VERSION:
        raise FormatError(
            f"format version {version}", where=where, why=f"this library reads up to {VERSION}", next="update lilliput"
        )
    if tail != TAIL or zero or not 0 < length <= min(LARGEST_INDEX, size - START.size - END.size):
        raise damaged
    file.seek(size - END.size - length)
    data = file.read(length)
    if hashlib.sha256(start + data).digest() != digest:
        raise damaged
    index = _parsed(data, where)
    known = {"header": dict, "tensors": list, "digest": str}
    if not isinstance(index, dict) or index.keys() != known.keys():
        raise damaged
    if not all(type(index[key]) is kind for key, kind in known.items()):
        raise damaged
    if not _shallow(index["header"], _DEEPEST):
        raise FormatError("has a header of structures within structures without end", where=where, next=AGAIN)
    if len(index["digest"]) != 64 or not _HEXADECIMAL.fullmatch(index["digest"]):
        raise damaged
    if index["header"].get("kind") not in KINDS:
        raise FormatError(f"is of kind {index['header'].get('kind')!r}", where=where, next=f"known: {', '.join(KINDS)}")
    if version_of(index["header"]) != version:
        raise FormatError(f"says what version {version} of the format does not", where=where, next=AGAIN)
    return index, size - END.size - length


def _parsed(data: bytes, where: str) -> Any:
    """The JSON in a zstd frame, or None for anything that is not."""
    try:
        size = frame_size(data)
        if size > most_index(len(data)):
            raise FormatError(f"an index of {size:,} bytes in {len(data):,}", where=where, next=AGAIN)
        if size <= 0:
            return None
        text = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False).decode("utf-8")
        index = json.loads(text, object_pairs_hook=once, parse_constant=no_number, parse_float=_finite)
        if "\\ud" in text.lower():  # half of a pair is no text, and cannot be printed
            json.dumps(index, ensure_ascii=False).encode("utf-8")
        return index
    except (ValueError, RecursionError, zstandard.ZstdError):
        return None


def _shallow(data: Any, left: int) -> bool:
    """Whether nothing lies deeper than `left` structures, so that whoever walks through them comes back."""
    inner = data.values() if type(data) is dict else data if type(data) is list else ()
    return left > 0 and all(_shallow(item, left - 1) for item in inner if type(item) in (dict, list))


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, as `object_pairs_hook`; raises ValueError for a key that stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def no_number(text: str) -> NoReturn:
    """Refuses NaN and infinity, as `parse_constant`."""
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else no_number(text)


def canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
