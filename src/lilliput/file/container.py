"""Named tensors and a header in one file that cannot run code and tells when it is damaged: `docs/format.md`.

NumPy in and out. Tensors are written as a stream, a chunk at a time, and the index comes last; so a file may be larger
than memory, on the way in and on the way out.
"""

from __future__ import annotations

import functools
import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import zstandard

from lilliput import entropy
from lilliput.disk import whole_file
from lilliput.entropy import Array
from lilliput.entropy.planes import CODES, whole_bits
from lilliput.errors import FormatError, InputError, LilliputError, nearest
from lilliput.file.delta import added
from lilliput.file.index import (
    AGAIN,
    CHECK,
    CHUNK,
    END,
    HEAD,
    START,
    TAIL,
    Entry,
    canonical,
    entry_of,
    most_index,
    read_index,
    version_of,
)

_FREE, _RATIO = 1 << 28, 1 << 10  # what a file may unfold to: so many bytes, and so many times its own size
_LEVEL = 9  # of zstd, for the index

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
class Written:
    """What was written: each tensor's entry, the digest of all of them, and the bytes of the whole file."""

    entries: tuple[Entry, ...]
    digest: str
    bytes: int
    coder: entropy.Coder  # *fast* also where *dense* was asked for and cannot be had


def write(
    path: str | Path,
    header: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    parts: Iterable[Part],
    coder: entropy.Coder = "dense",
    progress: Progress = lambda done, total: None,
) -> Written:
    """Write a file whole or not at all; a chunk is in memory at a time.

    Where the library for *dense* is missing it is coded *fast*, with a warning.

    A header that is a function is asked for once all parts are written, which are then taken one by one: what they are
    need not be known before. It has no `deltas` and no graph.
    """
    if coder not in entropy.CODERS:
        raise InputError(f"a coder called {coder!r}", where=str(path), next=nearest(str(coder), entropy.CODERS))
    coder, why = entropy.able(coder)
    if why:
        warnings.warn(f"{path}: {why}", stacklevel=2)
    parts = parts if callable(header) else list(parts)
    total = 0 if callable(header) else sum(_unfolded(part).unfolded_bytes for part in parts)
    with whole_file(path) as file:
        start = START.pack(HEAD, version_of({} if callable(header) else header), 0)
        file.write(start)
        entries: list[Entry] = []
        digest, done = hashlib.sha256(), 0
        for part in parts:
            entry = _write_part(file, part, coder, digest, lambda more, done=done: progress(done + more, total))  # type: ignore[misc]
            entries.append(entry)
            done += entry.unfolded_bytes
        told = header() if callable(header) else header
        file.write(_index(path, start, told, entries, digest.hexdigest()))
        size = file.tell()
        if done > most(size):
            raise FormatError(
                f"{done:,} bytes of tensors in a file of {size:,}, more than readers will unfold",
                where=str(path),
                next="leave out tensors that hold one value throughout",
            )
    return Written(tuple(entries), digest.hexdigest(), size, coder)


def _unfolded(part: Part) -> Entry:
    return Entry(part.name, part.dtype, part.shape, part.bits_held, (), b"", 0)


def _index(path: str | Path, start: bytes, header: Mapping[str, Any], entries: Iterable[Entry], digest: str) -> bytes:
    """The end of the file: the index, and what tells where it begins and whether it is as it was written."""
    text = canonical({"header": header, "tensors": [entry.plain() for entry in entries], "digest": digest})
    data = zstandard.ZstdCompressor(level=_LEVEL).compress(text)
    if len(text) > most_index(len(data)):
        raise FormatError(
            f"an index of {len(text):,} bytes, more than readers will unfold",
            where=str(path),
            next="store fewer tensors, or under shorter names",
        )
    return data + END.pack(len(data), hashlib.sha256(start + data).digest(), TAIL)


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
    return hashlib.sha256(stored).digest()[:CHECK]


def most(size: int) -> int:
    """Bytes of tensors that a file of `size` may unfold to."""
    return _FREE + _RATIO * size


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
                index, data_end = read_index(opened, self.size, self.where)
        except OSError as error:
            raise FormatError("cannot be read", where=self.where, why=error.strerror or "") from error
        self.header: dict[str, Any] = index["header"]
        self.digest: str = index["digest"]
        self.index_bytes = self.size - data_end + START.size  # all that is no tensor
        self.entries = self._entries(index["tensors"], data_end)
        self.references, self.deltas = self._references()

    def _open(self) -> IO[bytes]:
        return io.BytesIO(self.file) if isinstance(self.file, bytes) else open(self.file, "rb")

    def _entries(self, listed: list[Any], data_end: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        at = START.size
        for i, data in enumerate(listed):
            try:
                entry = entry_of(data, at)
            except (TypeError, KeyError, ValueError, AttributeError) as error:
                raise FormatError(
                    f"entry {i} of the index is not sound", where=self.where, why=str(error)[:200], next=AGAIN
                ) from None
            if entry.name in entries:
                raise FormatError(f"holds {entry.name!r} twice", where=self.where, next=AGAIN)
            entries[entry.name] = entry
            at += entry.stored_bytes
        if at != data_end:
            raise FormatError("tensors and index do not fill the file", where=self.where, next=AGAIN)
        total = sum(entry.unfolded_bytes for entry in entries.values())
        if total > most(self.size):
            raise FormatError(
                f"declares {total:,} bytes of tensors in a file of {self.size:,}", where=self.where, next=AGAIN
            )
        return entries

    def _references(self) -> tuple[dict[str, str], dict[str, str]]:
        """Names of tensors that lie in the base, and of those here that are differences, with their names there."""
        wanted = self.header.get("base")
        listed, deltas = self.header.get("references", {}), self.header.get("deltas", {})
        if wanted is None and not listed and not deltas:
            return {}, {}
        plain = isinstance(wanted, str) and isinstance(listed, dict) and isinstance(deltas, dict)
        if not plain or wanted == self.digest or any(name in self.entries for name in listed):
            raise FormatError("refers to another file in no sound way", where=self.where, next=AGAIN)
        if self.base is None or self.base.digest != wanted:
            raise FormatError("needs the file that it was made from", where=self.where, next=f"give base=, of {wanted}")
        total = sum(self.base.entry(name).unfolded_bytes for name in listed.values())
        if total > most(self.size + self.base.size):  # one tensor may be asked for under any number of names
            raise FormatError(f"refers to {total:,} bytes of tensors elsewhere", where=self.where, next=AGAIN)
        for name, there in deltas.items():
            if not self.entry(name).like(self.base.entry(there)):
                raise FormatError(
                    f"{name!r} is a difference from a tensor of another kind", where=self.where, next=AGAIN
                )
        return dict(listed), dict(deltas)

    def names(self) -> list[str]:
        """All tensors, those in the base included."""
        return [*self.entries, *self.references]

    def entry(self, name: str) -> Entry:
        if not isinstance(name, str) or name not in self.entries:
            raise FormatError(f"holds no tensor {name!r}", where=self.where)
        return self.entries[name]

    def chunks(self, name: str) -> Iterator[Array]:
        """The elements of one tensor as they are stored, checked, a chunk at a time."""
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
        return self.completed(name, self.stored(name, first, last), first, last)

    def stored(self, name: str, first: int = 0, last: int | None = None) -> Array:
        """As `read`, but of a difference the difference."""
        entry = self.entry(name)
        if first == 0 and last is None:
            return self._gather(entry, 0, entry.count).reshape(entry.shape)
        return self._gather(entry, *slice(first, last).indices(entry.count)[:2])

    def completed(self, name: str, stored: Array, first: int = 0, last: int | None = None) -> Array:
        """What is `stored`, with the base's tensor added where it is a difference."""
        if name not in self.deltas:
            return stored
        assert self.base is not None
        return added(stored, self.base.read(self.deltas[name], first, last), self.entries[name].bits)

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
            raise FormatError(error.what, where=where, why=error.why, next=AGAIN) from None

    def check_stored(self) -> None:
        """Compare every chunk with its checksum, as it is stored: nothing is decoded."""
        with self._open() as opened:
            for entry in self.entries.values():
                opened.seek(entry.offset)
                for i, size in enumerate(entry.chunks):
                    if check(opened.read(size)) != entry.check(i):
                        where = f"{self.where}: {entry.name}, chunk {i}"
                        raise FormatError("the checksum does not match", where=where, next=AGAIN)

    def check_digest(
        self, progress: Progress = lambda done, total: None, read: Mapping[str, Array] | None = None
    ) -> None:
        """Compare all tensors with the digest: those in `read` as they are given, the others decoded for it."""
        digest, done, known = hashlib.sha256(), 0, read or {}
        total = sum(entry.unfolded_bytes for entry in self.entries.values())
        for name, entry in self.entries.items():
            digest.update(entry.label())
            whole = name in known and name not in self.deltas
            for x in [known[name].reshape(-1)] if whole else self.chunks(name):
                digest.update(memoryview(np.ascontiguousarray(x).view(np.uint8)))  # type: ignore[arg-type]
                progress(done := done + x.nbytes, total)
        if digest.hexdigest() != self.digest:
            raise FormatError("the tensors are not those that were written", where=self.where, next=AGAIN)


def recoded(source: str | Path, path: str | Path, coder: entropy.Coder) -> Written:
    """Write what the file `source` holds by another coder; nothing else of it changes."""
    reader = Reader(source)
    parts = (
        Part(entry.name, entry.dtype, entry.shape, functools.partial(reader.stored, entry.name), entry.bits)
        for entry in reader.entries.values()
    )
    return write(path, reader.header, parts, coder)


def decoded(stored: bytes, expected: bytes, dtype: str, bits: int, count: int) -> Array:
    """The elements of a chunk, whose checksum must be as expected."""
    if check(stored) != expected:
        raise FormatError("the checksum does not match")
    return entropy.decode(stored, dtype, bits, count)
