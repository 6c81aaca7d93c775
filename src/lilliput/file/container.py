"""Named tensors and a header in one file that cannot run code and tells when it is damaged: `docs/format.md`.

NumPy in and out. Tensors are written as a stream, a chunk at a time, and the index comes last; so a file may be larger
than memory, on the way in and on the way out.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import zstandard

from lilliput import entropy
from lilliput.disk import whole_file
from lilliput.entropy import Array
from lilliput.entropy.chunk import frame_size
from lilliput.entropy.planes import CODES, whole_bits
from lilliput.errors import FormatError, InputError, LilliputError, nearest

HEAD, TAIL = b"LILLIPUT", b"lilliput"
VERSION = 2
CHUNK = 1 << 20  # elements
_START = struct.Struct("<8sII")  # HEAD, version, nothing yet
_END = struct.Struct("<Q32s8s")  # length of the index, SHA-256 of start and index, TAIL
_CHECK = 8  # bytes of a chunk's SHA-256 that are kept
_LARGEST_INDEX = 1 << 25  # bytes, compressed or not
_DEEPEST = 128  # structures within structures of the header
_LARGEST_NAME, _MOST_AXES, _MOST_ELEMENTS = 1 << 12, 64, 1 << 48
_HEXADECIMAL = re.compile("[0-9a-f]*")
KINDS = ("module", "checkpoint", "answer")  # of headers
_FREE, _RATIO = 1 << 28, 1 << 10  # what a file may unfold to: so many bytes, and so many times its own size
_FREE_INDEX, _RATIO_INDEX = 1 << 20, 1 << 6  # what an index may unfold to, likewise
_LEVEL = 9  # of zstd, for the index
_AGAIN = "the file is damaged: get it again"

Read = Callable[[int, int], Array]  # elements first … last of a tensor, flattened
Progress = Callable[[int, int], None]  # bytes done, of how many


@dataclass(frozen=True)
class Part:
    """A tensor to be written: `read` gives its elements, so that it need not be in memory as a whole."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Read
    bits: int | None = None  # of each code that count; None: all

    @classmethod
    def of(cls, name: str, x: Array, bits: int | None = None) -> Part:
        dtype = entropy.name_of(x.dtype)
        if dtype is None:
            raise FormatError(f"tensors of {x.dtype} cannot be stored", where=name)
        flat = np.ascontiguousarray(x).reshape(-1)
        return cls(name, dtype, tuple(x.shape), lambda first, last: flat[first:last], bits)

    @property
    def bits_held(self) -> int:
        """Bits of an element before coding; refuses what the format cannot say."""
        if entropy.dtype_called(self.dtype) is None:
            raise FormatError(f"tensors of {self.dtype} cannot be stored", where=self.name)
        whole = whole_bits(self.dtype)
        if self.bits in (None, whole):
            return whole
        if self.dtype not in CODES or not 1 <= self.bits < whole:
            raise FormatError(f"{self.dtype} in {self.bits} bits cannot be stored", where=self.name)
        return self.bits


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
        return _canonical([self.name, self.dtype, list(self.shape)])

    def check(self, i: int) -> bytes:
        """What the checksum of chunk `i` must be."""
        return self.checks[i * _CHECK : (i + 1) * _CHECK]

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


@dataclass(frozen=True)
class Written:
    """What was written: each tensor's entry, the digest of all of them, and the bytes of the whole file."""

    entries: tuple[Entry, ...]
    digest: str
    bytes: int


def write(
    path: str | Path,
    header: Mapping[str, Any],
    parts: Iterable[Part],
    coder: entropy.Coder = "dense",
    progress: Progress = lambda done, total: None,
) -> Written:
    """Write a file whole or not at all; a chunk is in memory at a time."""
    if coder not in entropy.CODERS:
        raise InputError(f"a coder called {coder!r}", where=str(path), next=nearest(str(coder), entropy.CODERS))
    listed = list(parts)
    unfolded = [Entry(part.name, part.dtype, part.shape, part.bits_held, (), b"", 0) for part in listed]
    total = sum(entry.unfolded_bytes for entry in unfolded)
    with whole_file(path) as file:
        start = _START.pack(HEAD, VERSION, 0)
        file.write(start)
        entries: list[Entry] = []
        digest, done = hashlib.sha256(), 0
        for part in listed:
            entry = _write_part(file, part, coder, digest, lambda more, done=done: progress(done + more, total))  # type: ignore[misc]
            entries.append(entry)
            done += entry.unfolded_bytes
        index = {"header": header, "tensors": [entry.plain() for entry in entries], "digest": digest.hexdigest()}
        text = _canonical(index)
        data = zstandard.ZstdCompressor(level=_LEVEL).compress(text)
        if len(text) > _most_index(len(data)):
            raise FormatError(
                f"an index of {len(text):,} bytes, more than readers will unfold",
                where=str(path),
                next="store fewer tensors, or under shorter names",
            )
        file.write(data + _END.pack(len(data), hashlib.sha256(start + data).digest(), TAIL))
        size = file.tell()
        if total > most(size):
            raise FormatError(
                f"{total:,} bytes of tensors in a file of {size:,}, more than readers will unfold",
                where=str(path),
                next="leave out tensors that hold one value throughout",
            )
    return Written(tuple(entries), digest.hexdigest(), size)


def _write_part(
    file: IO[bytes], part: Part, coder: entropy.Coder, digest: hashlib._Hash, progress: Callable[[int], None]
) -> Entry:
    offset, chunks, checks = file.tell(), [], bytearray()
    entry = Entry(part.name, part.dtype, part.shape, part.bits_held, (), b"", offset)
    digest.update(entry.label())
    for first, last in entry.spans():
        x = part.read(first, last)
        digest.update(memoryview(x.view(np.uint8)))  # type: ignore[arg-type]
        stored = entropy.encode(x, entry.bits, coder)
        file.write(stored)
        chunks.append(len(stored))
        checks += check(stored)
        progress(last * x.itemsize)
    return Entry(part.name, part.dtype, part.shape, entry.bits, tuple(chunks), bytes(checks), offset)


def check(stored: bytes) -> bytes:
    """What tells whether a chunk is as it was written."""
    return hashlib.sha256(stored).digest()[:_CHECK]


def most(size: int) -> int:
    """Bytes of tensors that a file of `size` may unfold to."""
    return _FREE + _RATIO * size


def _most_index(size: int) -> int:
    """Bytes that an index of `size`, compressed, may unfold to: JSON takes many times its bytes in memory."""
    return min(_LARGEST_INDEX, _FREE_INDEX + _RATIO_INDEX * size)


class Reader:
    """A container open for reading: each tensor is read, checked and decoded when it is asked for.

    `file` is a path, or the bytes of a file; `base` is the file that it refers to for what it does not hold itself.
    """

    def __init__(self, file: str | Path | bytes, base: Reader | None = None) -> None:
        self.file, self.base = file, base
        self.where = "bytes" if isinstance(file, bytes) else str(file)
        try:
            with self._open() as opened:
                self.size = opened.seek(0, io.SEEK_END)
                index, data_end = _read_index(opened, self.size, self.where)
        except OSError as error:
            raise FormatError("cannot be read", where=self.where, why=error.strerror or "") from error
        self.header: dict[str, Any] = index["header"]
        self.digest: str = index["digest"]
        self.index_bytes = self.size - data_end + _START.size  # all that is no tensor
        self.entries = self._entries(index["tensors"], data_end)
        self.references = self._references()

    def _open(self) -> IO[bytes]:
        return io.BytesIO(self.file) if isinstance(self.file, bytes) else open(self.file, "rb")

    def _entries(self, listed: list[Any], data_end: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        at = _START.size
        for i, data in enumerate(listed):
            try:
                entry = _entry(data, at)
            except (TypeError, KeyError, ValueError, AttributeError) as error:
                raise FormatError(
                    f"entry {i} of the index is not sound", where=self.where, why=str(error)[:200], next=_AGAIN
                ) from None
            if entry.name in entries:
                raise FormatError(f"holds {entry.name!r} twice", where=self.where, next=_AGAIN)
            entries[entry.name] = entry
            at += entry.stored_bytes
        if at != data_end:
            raise FormatError("tensors and index do not fill the file", where=self.where, next=_AGAIN)
        total = sum(entry.unfolded_bytes for entry in entries.values())
        if total > most(self.size):
            raise FormatError(
                f"declares {total:,} bytes of tensors in a file of {self.size:,}", where=self.where, next=_AGAIN
            )
        return entries

    def _references(self) -> dict[str, str]:
        """Names of tensors that lie in the base, with their names there."""
        wanted, listed = self.header.get("base"), self.header.get("references", {})
        if wanted is None and not listed:
            return {}
        plain = isinstance(wanted, str) and isinstance(listed, dict)
        if not plain or wanted == self.digest or any(name in self.entries for name in listed):
            raise FormatError("refers to another file in no sound way", where=self.where, next=_AGAIN)
        if self.base is None or self.base.digest != wanted:
            raise FormatError("needs the file that it was made from", where=self.where, next=f"give base=, of {wanted}")
        total = sum(self.base.entry(name).unfolded_bytes for name in listed.values())
        if total > most(self.size + self.base.size):  # one tensor may be asked for under any number of names
            raise FormatError(f"refers to {total:,} bytes of tensors elsewhere", where=self.where, next=_AGAIN)
        return dict(listed)

    def names(self) -> list[str]:
        """All tensors, those in the base included."""
        return [*self.entries, *self.references]

    def entry(self, name: str) -> Entry:
        if not isinstance(name, str) or name not in self.entries:
            raise FormatError(f"holds no tensor {name!r}", where=self.where)
        return self.entries[name]

    def chunks(self, name: str) -> Iterator[Array]:
        """The elements of one tensor, checked, a chunk at a time."""
        entry = self.entry(name)
        with self._open() as opened:
            opened.seek(entry.offset)
            for i, (first, last) in enumerate(entry.spans()):
                yield self._decode(entry, i, opened.read(entry.chunks[i]), last - first)

    def read(self, name: str, first: int = 0, last: int | None = None) -> Array:
        """A tensor, checked; or, flattened, its elements `first` to `last`, for which only their chunks are read."""
        if isinstance(name, str) and name in self.references:
            assert self.base is not None
            return self.base.read(self.references[name], first, last)
        entry = self.entry(name)
        if first == 0 and last is None:
            return self._gather(entry, 0, entry.count).reshape(entry.shape)
        return self._gather(entry, *slice(first, last).indices(entry.count)[:2])

    def _gather(self, entry: Entry, first: int, last: int) -> Array:
        kind = entropy.dtype_called(entry.dtype)
        out = np.empty(max(0, last - first), kind)
        with self._open() as opened:
            for i in range(first // CHUNK, -(-last // CHUNK) if last > first else 0):
                opened.seek(entry.place(i))
                begin, end = i * CHUNK, min((i + 1) * CHUNK, entry.count)
                x = self._decode(entry, i, opened.read(entry.chunks[i]), end - begin)
                kept = slice(max(first, begin), min(last, end))
                out[kept.start - first : kept.stop - first] = x[kept.start - begin : kept.stop - begin]
        return out

    def _decode(self, entry: Entry, i: int, stored: bytes, count: int) -> Array:
        try:
            return decoded(stored, entry.check(i), entry.dtype, entry.bits, count)
        except LilliputError as error:
            where = f"{self.where}: {entry.name}, chunk {i}"
            raise FormatError(error.what, where=where, why=error.why, next=_AGAIN) from None

    def check_stored(self) -> None:
        """Compare every chunk with its checksum, as it is stored: nothing is decoded."""
        with self._open() as opened:
            for entry in self.entries.values():
                opened.seek(entry.offset)
                for i, size in enumerate(entry.chunks):
                    if check(opened.read(size)) != entry.check(i):
                        where = f"{self.where}: {entry.name}, chunk {i}"
                        raise FormatError("the checksum does not match", where=where, next=_AGAIN)

    def check_digest(
        self, progress: Progress = lambda done, total: None, read: Mapping[str, Array] | None = None
    ) -> None:
        """Compare all tensors with the digest: those in `read` as they are given, the others decoded for it."""
        digest, done, known = hashlib.sha256(), 0, read or {}
        total = sum(entry.unfolded_bytes for entry in self.entries.values())
        for name, entry in self.entries.items():
            digest.update(entry.label())
            for x in [known[name].reshape(-1)] if name in known else self.chunks(name):
                digest.update(memoryview(np.ascontiguousarray(x).view(np.uint8)))  # type: ignore[arg-type]
                progress(done := done + x.nbytes, total)
        if digest.hexdigest() != self.digest:
            raise FormatError("the tensors are not those that were written", where=self.where, next=_AGAIN)


def recoded(source: str | Path, path: str | Path, coder: entropy.Coder) -> Written:
    """Write what the file `source` holds by another coder; nothing else of it changes."""
    reader = Reader(source)
    parts = (
        Part(entry.name, entry.dtype, entry.shape, functools.partial(reader.read, entry.name), entry.bits)
        for entry in reader.entries.values()
    )
    return write(path, reader.header, parts, coder)


def decoded(stored: bytes, expected: bytes, dtype: str, bits: int, count: int) -> Array:
    """The elements of a chunk, whose checksum must be as expected."""
    if check(stored) != expected:
        raise FormatError("the checksum does not match")
    return entropy.decode(stored, dtype, bits, count)


def _entry(data: Any, offset: int) -> Entry:
    """An entry of the index; raises ValueError, TypeError or KeyError for one that is not sound."""
    known = {"name", "dtype", "shape", "bits", "chunks", "checks"}
    if set(data) - known:
        raise ValueError("unknown fields")
    if type(data["shape"]) is not list or type(data["chunks"]) is not list:
        raise ValueError("shape or chunks are no list")
    name, dtype, shape, chunks = data["name"], data["dtype"], tuple(data["shape"]), tuple(data["chunks"])
    kind = entropy.dtype_called(dtype)
    if type(name) is not str or len(name) > _LARGEST_NAME or kind is None:
        raise ValueError("no name, or no known type")
    whole = whole_bits(dtype)
    bits = data.get("bits", whole)
    if "bits" in data and (dtype not in CODES or type(bits) is not int or not 1 <= bits < whole):
        raise ValueError("bits")
    if len(shape) > _MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("shape")
    if prod(max(n, 1) for n in shape) > _MOST_ELEMENTS:
        raise ValueError("more elements than there can be")
    if not all(type(n) is int and 0 < n <= CHUNK * 9 for n in chunks):
        raise ValueError("chunks")
    checks = bytes.fromhex(_digits(data["checks"]))
    if len(chunks) != -(-prod(shape) // CHUNK) or len(checks) != _CHECK * len(chunks):
        raise ValueError("another number of chunks than the shape needs")
    return Entry(name, dtype, shape, bits, chunks, checks, offset)


def _digits(text: Any) -> str:
    if type(text) is not str or not _HEXADECIMAL.fullmatch(text):
        raise ValueError("no lowercase hexadecimal digits")
    return text


def _read_index(file: IO[bytes], size: int, where: str) -> tuple[dict[str, Any], int]:
    """The index, and where the tensors end."""
    damaged = FormatError(
        "is not a whole Lilliput file", where=where, next="the file is damaged or cut short: get it again"
    )
    if size < _START.size + _END.size:
        raise damaged
    file.seek(0)
    start = file.read(_START.size)
    file.seek(size - _END.size)
    end = file.read(_END.size)
    head, version, zero = _START.unpack(start)
    length, digest, tail = _END.unpack(end)
    if head != HEAD:
        raise damaged
    if tail == HEAD or version < VERSION:
        number = 1 if tail == HEAD else version
        raise FormatError(f"format version {number}", where=where, why="it was never published", next="compress again")
    if version > VERSION:
        raise FormatError(
            f"format version {version}", where=where, why=f"this library reads up to {VERSION}", next="update lilliput"
        )
    if tail != TAIL or zero or not 0 < length <= min(_LARGEST_INDEX, size - _START.size - _END.size):
        raise damaged
    file.seek(size - _END.size - length)
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
        raise FormatError("has a header of structures within structures without end", where=where, next=_AGAIN)
    if len(index["digest"]) != 64 or not _HEXADECIMAL.fullmatch(index["digest"]):
        raise damaged
    if index["header"].get("kind") not in KINDS:
        raise FormatError(f"is of kind {index['header'].get('kind')!r}", where=where, next=f"known: {', '.join(KINDS)}")
    return index, size - _END.size - length


def _parsed(data: bytes, where: str) -> Any:
    """The JSON in a zstd frame, or None for anything that is not."""
    try:
        size = frame_size(data)
        if size > _most_index(len(data)):
            raise FormatError(f"an index of {size:,} bytes in {len(data):,}", where=where, next=_AGAIN)
        if size <= 0:
            return None
        text = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False).decode("utf-8")
        index = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
        if "\\ud" in text.lower():  # half of a pair is no text, and cannot be printed
            json.dumps(index, ensure_ascii=False).encode("utf-8")
        return index
    except (ValueError, RecursionError, zstandard.ZstdError):
        return None


def _shallow(data: Any, left: int) -> bool:
    """Whether nothing lies deeper than `left` structures, so that whoever walks through them comes back."""
    inner = data.values() if type(data) is dict else data if type(data) is list else ()
    return left > 0 and all(_shallow(item, left - 1) for item in inner if type(item) in (dict, list))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
