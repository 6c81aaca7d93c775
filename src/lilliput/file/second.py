"""A second decoder of the `.lil` format, written from docs/format.md alone, to be read beside it.

It shares no code with the first and needs NumPy only: it shows that the document suffices, and judges what the first
writes. It gives the bytes of tensors; what the header makes of them is for `lilliput.load`.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from lilliput.errors import FormatError
from lilliput.file import zstd

Symbols = npt.NDArray[np.uint8]

VERSIONS = (2, 3, 4)
HEAD, TAIL = 16, 8 + 32 + 8
INDEX = 1 << 25  # bytes of the index at most
DEEPEST = 128  # structures of the header within one another
CHUNK = 1 << 20  # elements of a chunk
STORED = 9 << 20  # bytes of a chunk at most
SIZES = {
    **{"bool": 1, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "int8": 1, "int16": 2, "int32": 4, "int64": 8},
    **{"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1},
}
TURNED = {"float16", "bfloat16", "float32", "float64"}
UNSAFE = re.compile(r'[\\:*?"<>|\x00-\x1f\x7f]')  # in the name of a file
TOTAL = 1 << 24  # the frequencies of a model sum to this


def _refuse(what: str, where: str = "") -> NoReturn:
    raise FormatError(what, where=where)


def _need(condition: object, what: str, where: str = "") -> None:
    if not condition:
        _refuse(what, where)


@dataclass(frozen=True)
class Entry:
    """A tensor as the index describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int  # of each symbol, for types of one byte
    sizes: tuple[int, ...]  # of its chunks as stored
    checks: bytes

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        return SIZES[self.dtype]


class Second:
    """The tensors of a `.lil` file; `base` is the file that it was made from, if any."""

    def __init__(self, file: str | Path | bytes, base: str | Path | bytes | None = None) -> None:
        self._data = file if isinstance(file, bytes) else _mapped(Path(file))
        text, end = _index(self._data)
        index = _fields(_json(text), {"header", "tensors", "digest"}, "the index")
        entries = [_entry(item) for item in _list(index["tensors"], "tensors")]
        self._entries = {entry.name: entry for entry in entries}
        _need(len(self._entries) == len(entries), "a name stands twice", "tensors")
        self.header: dict[str, Any] = _header(index["header"], self._entries)
        self.digest: str = _hexadecimal(index["digest"], 64, "digest")
        _need(self._data[8] == _version(self.header), "another version than its header needs")
        self._base = self._made_from(None if base is None else Second(base))
        self.names: list[str] = [*self._entries, *(self.header.get("references") or {})]
        stored = list(accumulate((size for entry in entries for size in entry.sizes), initial=HEAD))
        _need(stored[-1] == end, "the chunks do not fill the file")
        decoded = sum(entry.count * entry.width for entry in entries)
        _need(decoded <= (1 << 28) + (len(self._data) << 10), "more decoded bytes than a file of this size may have")
        places = iter(stored)
        self._places = {entry.name: [next(places) for _ in entry.sizes] for entry in entries}

    def tensor(self, name: str) -> tuple[str, tuple[int, ...], bytes]:
        """Type, shape and elements (row-major, little-endian) of a tensor."""
        there = (self.header.get("references") or {}).get(name)
        if there is not None and self._base is not None:
            return self._base.tensor(there)
        entry = self._entries[name]
        held = b"".join(self.chunk(name, i) for i in range(self.chunks(name)))
        there = (self.header.get("deltas") or {}).get(name)
        if there is not None and self._base is not None:
            held = _sum(held, self._base.tensor(there)[2], entry)
        return entry.dtype, entry.shape, held

    def _made_from(self, base: Second | None) -> Second | None:
        """The base, if the header names this one; what it says of the base's tensors must hold."""
        named, told = self.header.get("base"), (self.header.get("references") or {}, self.header.get("deltas") or {})
        if named is None and not any(told):
            return None
        _need(all(isinstance(table, dict) for table in told) and isinstance(named, str), "not an object", "base")
        _need(base is not None and base.digest == named != self.digest, "needs the file that it was made from", "base")
        assert base is not None
        for name, there in told[0].items():
            _need(name not in self._entries and there in base._entries, "a reference to nothing", name)
        for name, there in told[1].items():
            one, other = self._entries.get(name), base._entries.get(there)
            same = one and other and (one.dtype, one.shape, one.bits) == (other.dtype, other.shape, other.bits)
            _need(same, "a difference from a tensor of another kind", name)
        return base

    def chunks(self, name: str) -> int:
        return len(self._entries[name].sizes)

    def chunk(self, name: str, i: int) -> bytes:
        """The elements of one chunk."""
        entry = self._entries[name]
        i = range(len(entry.sizes))[i]
        place = self._places[name][i]
        stored = self._data[place : place + entry.sizes[i]]
        check = hashlib.sha256(stored).digest()[:8]
        _need(check == entry.checks[8 * i : 8 * i + 8], f"chunk {i} is damaged", name)
        return _chunk(stored, entry, min(CHUNK, entry.count - i * CHUNK))

    def check_digest(self) -> None:
        """Decodes all tensors; refuses the file when they are not those it was written from."""
        digest = hashlib.sha256()
        for entry in self._entries.values():
            head = [entry.name, entry.dtype, entry.shape]
            digest.update(json.dumps(head, separators=(",", ":")).encode("ascii"))
            for i in range(len(entry.sizes)):
                digest.update(self.chunk(entry.name, i))
        _need(digest.hexdigest() == self.digest, "the tensors are not those of the digest")


# The file


def _mapped(path: Path) -> bytes | mmap.mmap:
    """A file as bytes that are read when they are looked at."""
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # nothing can be mapped of an empty file
        return b""
    except OSError as error:
        raise FormatError("cannot be read", where=str(path), why=error.strerror or "") from error


def _index(data: bytes | mmap.mmap) -> tuple[bytes, int]:
    """The text of the index, and where the chunks end."""
    _need(len(data) >= HEAD and data[:8] == b"LILLIPUT", "not a .lil file")
    version = int.from_bytes(data[8:12], "little")
    _need(version <= max(VERSIONS), f"a file of version {version}, of which this reader knows nothing")
    _need(version in VERSIONS, f"a file of version {version}, which was never published")
    _need(len(data) >= HEAD + TAIL and data[-8:] == b"lilliput", "the file is cut or goes on after its end")
    _need(data[12:16] == bytes(4), "the head of the file is damaged")
    size = int.from_bytes(data[-TAIL : 8 - TAIL], "little")
    end = len(data) - TAIL - size
    _need(end >= HEAD, "the index is larger than the file")
    frame = data[end:-TAIL]
    _need(hashlib.sha256(data[:HEAD] + frame).digest() == data[8 - TAIL : -8], "the index is damaged")
    length = zstd.content_size(frame)
    _need(length <= min(INDEX, (1 << 20) + (size << 6)), "the index is too large")
    return zstd.decompress(frame, length), end


def _sum(stored: bytes, base: bytes, entry: Entry) -> bytes:
    """The elements whose difference from those of the base is stored."""
    width = 8 * entry.width
    one, other = (np.frombuffer(data, f"<u{entry.width}") for data in (stored, base))
    total: Any
    if entry.dtype in TURNED:
        z = one << 1 | one >> (width - 1)
        total = other + np.where(z & 1, ~(z >> 1), z >> 1)
    elif entry.width > 1 or entry.bits == 8:
        total = one + other
    else:
        total = (one + other) & ((1 << entry.bits) - 1)
        if entry.dtype == "int8":
            total = np.where(total >> (entry.bits - 1), total.astype(np.int16) - (1 << entry.bits), total)
    return bytes(total.astype(one.dtype).tobytes())


# The index


def _json(text: bytes) -> object:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_float=_float, parse_constant=_float)
        if b"\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails on halves of surrogate pairs
        return value
    except (ValueError, RecursionError) as error:  # also what is no UTF-8
        raise FormatError("the index is not JSON", why=str(error)) from error


def _object(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        _need(key not in result, f"the key {key!r} stands twice", "the index")
        result[key] = value
    return result


def _float(text: str) -> float:
    _need(math.isfinite(float(text)), f"{text[:20]} is not a number", "the index")
    return float(text)


def _fields(value: object, names: set[str], where: str) -> dict[str, Any]:
    """An object with exactly these fields."""
    if not isinstance(value, dict) or value.keys() != names:
        _refuse(f"not an object of {', '.join(sorted(names))}", where)
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse("not a list", where)
    return value


def _integer(value: object, low: int, high: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        _refuse(f"not an integer from {low} to {high}", where)
    return value


def _hexadecimal(value: object, digits: int, where: str) -> str:
    if not isinstance(value, str) or len(value) != digits or not re.fullmatch("[0-9a-f]*", value):
        _refuse(f"not {digits} hexadecimal digits", where)
    return value


def _entry(item: object) -> Entry:
    fields = {"name", "dtype", "shape", "chunks", "checks"}
    item = _fields(item, fields | {"bits"} if isinstance(item, dict) and "bits" in item else fields, "tensors")
    name, dtype = item["name"], item["dtype"]
    if not isinstance(name, str) or len(name) > 4096:
        _refuse("not a name of at most 4,096 characters", "tensors")
    if not isinstance(dtype, str) or dtype not in SIZES:
        _refuse("the type is unknown", name)
    shape = _list(item["shape"], name)
    _need(len(shape) <= 64, "more than 64 axes", name)
    shape = [_integer(length, 0, 1 << 48, name) for length in shape]
    _need(math.prod(length for length in shape if length) <= 1 << 48, "more elements than there can be", name)
    if "bits" in item:
        _need(dtype in ("uint8", "int8"), "only uint8 and int8 have codes of fewer bits", name)
    bits = _integer(item["bits"], 1, 7, name) if "bits" in item else 1 if dtype == "bool" else 8
    sizes = [_integer(size, 1, STORED, name) for size in _list(item["chunks"], name)]
    _need(len(sizes) == -(-math.prod(shape) // CHUNK), "not as many chunks as its shape asks for", name)
    checks = _hexadecimal(item["checks"], 16 * len(sizes), name)
    return Entry(name, dtype, tuple(shape), bits, tuple(sizes), bytes.fromhex(checks))


# A chunk


def _chunk(stored: bytes, entry: Entry, count: int) -> bytes:
    kind, rest = stored[0], stored[1:]
    if kind == 1:
        return _planes(rest, entry, count)
    _need(kind == 0, f"a chunk of the unknown kind {kind}", entry.name)
    if entry.width == 1:
        return _codes(_unpack(rest, count, entry), entry)
    _need(len(rest) == count * entry.width, "a chunk of another length than its elements", entry.name)
    return rest


def _planes(data: bytes, entry: Entry, count: int) -> bytes:
    width = entry.width
    elements = np.empty((count, width), np.uint8)
    for plane in range(width - 1, -1, -1):
        size = len(data)
        if plane:
            size, data = _varint(data, entry)
        _need(size <= len(data), "a stream is longer than its chunk", entry.name)
        elements[:, plane] = _stream(data[:size], count, entry)
        data = data[size:]
    if width == 1:
        return _codes(elements[:, 0], entry)
    if entry.dtype in TURNED:
        turned = elements.view(f"<u{width}")
        return (turned >> 1 | turned << (8 * width - 1)).astype(f"<u{width}").tobytes()
    return elements.tobytes()


def _varint(data: bytes, entry: Entry) -> tuple[int, bytes]:
    value = 0
    for i, byte in enumerate(data[:5]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, data[i + 1 :]
    _refuse("the size of a stream does not end", entry.name)


def _codes(symbols: Symbols, entry: Entry) -> bytes:
    """Elements of one byte from their symbols."""
    if entry.dtype == "int8":
        symbols = symbols - np.uint8(1 << (entry.bits - 1))  # modulo 256, as two's complement wants it
    return symbols.tobytes()


# A stream


def _stream(data: bytes, count: int, entry: Entry) -> Symbols:
    _need(data, "a stream without a method", entry.name)
    method, rest = data[0], data[1:]
    if method == 0:
        return _unpack(rest, count, entry)
    if method == 1:
        return _unpack(zstd.decompress(rest, _packed(count, entry)), count, entry)
    if method == 2:
        return _within(_ans(rest, count, entry), entry)
    _need(method == 3, f"a stream of the unknown method {method}", entry.name)
    _need(len(rest) == 1, "a constant of more or less than one byte", entry.name)
    return _within(np.full(count, rest[0], np.uint8), entry)


def _within(symbols: Symbols, entry: Entry) -> Symbols:
    _need(int(symbols.max()) < 1 << entry.bits, f"a symbol of more than {entry.bits} bits", entry.name)
    return symbols


def _field(entry: Entry) -> int:
    return next(w for w in (1, 2, 4, 8) if w >= entry.bits)


def _packed(count: int, entry: Entry) -> int:
    return -(-count * _field(entry) // 8)


def _unpack(data: bytes, count: int, entry: Entry) -> Symbols:
    _need(len(data) == _packed(count, entry), "symbols of another length than their number", entry.name)
    w, packed = _field(entry), np.frombuffer(data, np.uint8)
    fields = packed[:, None] >> np.arange(0, 8, w, dtype=np.uint8) & np.uint8((1 << w) - 1)
    return _within(fields.reshape(-1)[:count], entry)


# The model


def _weight(byte: int) -> int:
    return (16 + byte % 16) << (byte // 16) if byte else 0


def _model(data: bytes, where: str) -> tuple[list[int], list[int], bytes]:
    """The alphabet with its frequencies, and the words that follow."""
    _need(len(data) > 3, "a model is cut", where)
    low, high, spacing = data[:3]
    _need(low < high and spacing <= 5, "a model that cannot be", where)
    gap = 1 << spacing
    end = 3 + 1 + -(-(high - low) // gap)
    _need(len(data) > end and len(data) > end + 2 * data[end], "a model is cut", where)
    knots = [_weight(byte) for byte in data[3:end]]
    pairs, words = data[end + 1 : end + 1 + 2 * data[end]], data[end + 1 + 2 * data[end] :]
    weights = {}
    for symbol in range(low, high + 1):
        i, r = divmod(symbol - low, gap)
        weights[symbol] = (knots[i] * (gap - r) + knots[i + 1] * r) >> spacing if r else knots[i]
    for symbol, byte in zip(pairs[::2], pairs[1::2], strict=True):
        _need(symbol in weights, "an exception outside of its model", where)
        weights[symbol] = _weight(byte)
    alphabet = [symbol for symbol, weight in weights.items() if weight]
    _need(len(alphabet) >= 2, "an alphabet of fewer than two symbols", where)
    return alphabet, _frequencies([weights[symbol] for symbol in alphabet]), words


def _frequencies(weights: list[int]) -> list[int]:
    total = sum(weights)
    frequencies = [1 + weight * (TOTAL - len(weights)) // total for weight in weights]
    frequencies[weights.index(max(weights))] += TOTAL - sum(frequencies)
    return frequencies


# The words


def _ans(data: bytes, count: int, entry: Entry) -> Symbols:
    alphabet, frequencies, tail = _model(data, entry.name)
    _need(len(tail) % 4 == 0 and (not tail or any(tail[-4:])), "words that cannot be", entry.name)
    starts = list(accumulate(frequencies[:-1], initial=0))
    words: list[int] = np.frombuffer(tail, "<u4").tolist()
    state, out = 0, bytearray(count)
    for _ in range(2):
        if words and state < 1 << 32:
            state = state << 32 | words.pop()
    for i in range(count):
        q = state & 0xFFFFFF
        out[i] = at = bisect_right(starts, q) - 1
        state = (state >> 24) * frequencies[at] + q - starts[at]
        if state < 0x100000000 and words:
            state = state << 32 | words.pop()
    _need(state == 0 and not words, "words are left after the last symbol", entry.name)
    return np.array(alphabet, np.uint8)[np.frombuffer(out, np.uint8)]


# The header


def _shallow(value: object, left: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left > 0 and all(_shallow(item, left - 1) for item in inner if isinstance(item, dict | list))


def _version(header: dict[str, Any]) -> int:
    """The version that a header needs: of packed references, of deltas, or the oldest."""
    graph = header.get("graph")
    references = graph.get("initializers") if isinstance(graph, dict) else None
    kinds = [one for one in references.values() if isinstance(one, dict)] if isinstance(references, dict) else []
    return 4 if any("packed" in one for one in kinds) else 3 if header.get("deltas") else 2


def _header(value: object, entries: dict[str, Entry]) -> dict[str, Any]:
    """The header, with the fields of every kind checked; the others are for who makes a module of it."""
    if not isinstance(value, dict):
        _refuse("not an object", "header")
    _need(_shallow(value, DEEPEST), "structures within structures without end", "header")
    _need(value.get("kind") in ("module", "checkpoint", "answer"), "a file of an unknown kind", "header")
    assets = value.get("assets", {})
    if not isinstance(assets, dict):
        _refuse("not an object", "assets")
    for name, tensor in assets.items():
        odd = any(part == "" or part != part.strip(" ") or part.endswith(".") for part in name.split("/"))
        _need(not odd and len(name) <= 1024 and not UNSAFE.search(name), "an unsafe name", "assets")
        _need(tensor == f":asset:{name}" and tensor in entries, f"not the tensor of {name!r}", "assets")
        _need(entries[tensor].dtype == "uint8", "not of bytes", tensor)
    return value
