"""Named tensors and a JSON header in one file that cannot run code and tells when it is damaged.

Layout: the magic, the tensors one after the other, the index (JSON, zstd-compressed), its length (8 bytes, little
endian), its SHA-256, the magic again, with nothing in between. Every tensor is zstd-compressed where that helps and
carries the SHA-256 of its stored bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import zstandard
from torch import Tensor

from lilliput.disk import whole_file
from lilliput.encodings.encoding import tensor_bytes
from lilliput.errors import FormatError

MAGIC = b"LILLIPUT"
VERSION = 1
_TRAILER = 8 + 32 + len(MAGIC)
_LARGEST_INDEX = 1 << 28  # bytes, decompressed
_LEVEL = 9  # of zstd

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in the file and how it is stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int  # of each element before compression: fewer than the dtype's when codes are packed
    offset: int
    bytes: int  # stored
    compressed: bool
    sha256: str  # of the stored bytes

    @property
    def packed_bytes(self) -> int:
        return -(-prod(self.shape) * self.bits // 8)


@dataclass(frozen=True)
class Part:
    """A tensor to be written; `bits` under 8 packs integer codes."""

    name: str
    tensor: Tensor
    bits: int | None = None


def write(path: str | Path, header: Mapping[str, Any], parts: Iterable[Part]) -> list[Entry]:
    """Write a file whole or not at all; tensors pass through one at a time."""
    entries: list[Entry] = []
    with whole_file(path) as file:
        file.write(MAGIC)
        for part in parts:
            entries.append(_write_part(file, part))
        index = {"version": VERSION, "header": header, "tensors": [asdict(entry) for entry in entries]}
        plain = json.dumps(index, sort_keys=True, separators=(",", ":")).encode()
        data = zstandard.ZstdCompressor(level=_LEVEL).compress(plain)
        file.write(data + len(data).to_bytes(8, "little") + hashlib.sha256(data).digest() + MAGIC)
    return entries


def _write_part(file: IO[bytes], part: Part) -> Entry:
    dtype = str(part.tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise FormatError(f"tensors of {dtype} cannot be stored", where=part.name)
    plain = pack(part.tensor, part.bits) if part.bits else bytes(tensor_bytes(part.tensor))
    smaller = zstandard.ZstdCompressor(level=_LEVEL).compress(plain)
    stored, compressed = (smaller, True) if len(smaller) < len(plain) else (plain, False)
    entry = Entry(
        part.name,
        dtype,
        tuple(part.tensor.shape),
        part.bits or 8 * part.tensor.element_size(),
        file.tell(),
        len(stored),
        compressed,
        hashlib.sha256(stored).hexdigest(),
    )
    file.write(stored)
    return entry


class Reader:
    """A container open for reading; tensors are read, checked and decompressed one at a time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.size = self.path.stat().st_size
            with open(self.path, "rb") as file:
                index, index_bytes = _read_index(file, self.size, str(path))
        except OSError as error:
            raise FormatError("cannot be read", where=str(path), why=error.strerror or "") from error
        version = index.get("version")
        if version != VERSION:
            raise FormatError(
                f"format version {version!r}", where=str(path), why=f"this library reads version {VERSION}"
            )
        self.header: dict[str, Any] = index["header"]
        listed = list(map(self._entry, index["tensors"]))
        self.entries = {entry.name: entry for entry in listed}
        ends = list(accumulate((entry.bytes for entry in listed), initial=len(MAGIC)))
        if len(self.entries) < len(listed) or [*(entry.offset for entry in listed), self.size - index_bytes] != ends:
            raise FormatError(
                "tensors and index do not fill the file", where=str(path), next="the file is damaged: get it again"
            )

    def _entry(self, data: Any) -> Entry:
        try:
            entry = Entry(**{**data, "shape": tuple(data["shape"])})
            itemsize = _DTYPES[entry.dtype].itemsize
            sound = (
                all(type(n) is int and n >= 0 for n in (*entry.shape, entry.offset, entry.bytes, entry.bits))
                and isinstance(entry.name, str)
                and 1 <= entry.bits <= 8 * itemsize
                and (entry.bits == 8 * itemsize or itemsize == 1)
                and entry.packed_bytes <= max(1 << 20, entry.bytes * 100_000)
            )
        except (TypeError, KeyError, ValueError):
            sound = False
        if not sound:
            raise FormatError(
                "an entry of the index is not sound", where=str(self.path), next="the file is damaged: get it again"
            )
        return entry

    def read(self, name: str) -> Tensor:
        """The tensor called `name`, checked against its SHA-256."""
        if name not in self.entries:
            raise FormatError(f"holds no tensor {name!r}", where=str(self.path))
        entry = self.entries[name]
        with open(self.path, "rb") as file:
            file.seek(entry.offset)
            stored = file.read(entry.bytes)
        where = f"{self.path}: {name}"
        if hashlib.sha256(stored).hexdigest() != entry.sha256:
            raise FormatError("the checksum does not match", where=where, next="the file is damaged: get it again")
        plain = _decompress(stored, entry, where) if entry.compressed else stored
        if len(plain) != entry.packed_bytes:
            raise FormatError(f"{len(plain)} bytes where {entry.packed_bytes} were declared", where=where)
        dtype = _DTYPES[entry.dtype]
        if entry.bits < 8 * dtype.itemsize:
            return unpack(plain, entry.bits, entry.shape, dtype)
        return (
            torch.frombuffer(bytearray(plain), dtype=dtype).reshape(entry.shape)
            if plain
            else torch.empty(entry.shape, dtype=dtype)
        )

    def read_all(self) -> dict[str, Tensor]:
        return {name: self.read(name) for name in self.entries}


def _decompress(stored: bytes, entry: Entry, where: str) -> bytes:
    try:
        return _inflate(stored, entry.packed_bytes)
    except zstandard.ZstdError as error:
        raise FormatError("cannot be decompressed", where=where, why=str(error)) from None


def _inflate(data: bytes, largest: int) -> bytes:
    if zstandard.frame_content_size(data) > largest:  # zstandard would believe it, and take the memory
        raise zstandard.ZstdError("holds more than is declared")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=max(largest, 1))


def _read_index(file: IO[bytes], size: int, where: str) -> tuple[dict[str, Any], int]:
    """The index, and how many bytes it and what follows it take."""
    damaged = FormatError(
        "is not a whole Lilliput file", where=where, next="the file is damaged or cut short: get it again"
    )
    if size < len(MAGIC) + _TRAILER or file.read(len(MAGIC)) != MAGIC:
        raise damaged
    file.seek(size - _TRAILER)
    trailer = file.read(_TRAILER)
    length = int.from_bytes(trailer[:8], "little")
    if trailer[40:] != MAGIC or not 0 < length <= min(size - len(MAGIC) - _TRAILER, _LARGEST_INDEX):
        raise damaged
    file.seek(size - _TRAILER - length)
    data = file.read(length)
    if hashlib.sha256(data).digest() != trailer[8:40]:
        raise damaged
    try:
        index = json.loads(_inflate(data, _LARGEST_INDEX))
    except (ValueError, RecursionError, zstandard.ZstdError):
        raise damaged from None
    known = {"version": int, "header": dict, "tensors": list}
    if not isinstance(index, dict) or not all(isinstance(index.get(key), kind) for key, kind in known.items()):
        raise damaged
    return index, length + _TRAILER


def pack(codes: Tensor, bits: int) -> bytes:
    """Integer codes in `bits` bits each, without gaps, lowest bit first; negative ones in two's complement."""
    flat = codes.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.packbits(np.unpackbits(flat[:, None], axis=1, bitorder="little")[:, :bits], bitorder="little").tobytes()


def unpack(data: bytes, bits: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The codes that `pack` wrote, as `dtype` (int8: sign-extended; uint8)."""
    spread = np.unpackbits(np.frombuffer(data, np.uint8), count=prod(shape) * bits, bitorder="little").reshape(-1, bits)
    flat = np.packbits(spread, axis=1, bitorder="little")[:, 0]
    if dtype == torch.int8:
        flat = ((flat ^ (1 << (bits - 1))).astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
    return torch.from_numpy(flat.copy()).reshape(shape)
