"""Files of some bytes that declare terabytes, and sizes that lead over the end, before the beginning, or into another.

The format has no offsets: tensors lie one after the other, and their sizes must fill the file.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import golden
import pytest
import zstandard

import lilliput
from lilliput.errors import LilliputError
from lilliput.file.container import Reader
from lilliput.file.second import Second

CHUNK = 1 << 20  # elements
CONSTANT = b"\1\3\0"  # any number of zeros
SOUND = golden.MODULE.read_bytes()
TAKEN = forge.apart(SOUND)


def declared(*shape: int, dtype: str = "uint8", chunk: bytes = CONSTANT, chunks: int | None = None) -> bytes:
    """A file of one tensor of this shape; all its chunks are alike, or share one."""
    count = 1
    for n in shape:
        count *= n
    number = -(-count // CHUNK) if chunks is None else chunks
    entry = {**forge.entry("x", dtype, shape), "chunks": [len(chunk)] * number, "checks": forge.check(chunk) * number}
    return forge.sealed(forge.index(entry), chunk * min(number, 4096))


def ended(length: int, index: bytes | None = None) -> bytes:
    """A file that gives this as the length of its index."""
    frame = zstandard.compress(forge.written(forge.index())) if index is None else index
    digest = hashlib.sha256(forge.START + frame).digest()
    return forge.START + frame + struct.pack("<Q", length) + digest + b"lilliput"


def framed(declared: int, content: bytes = b"") -> bytes:
    """A zstd frame that declares more than it holds."""
    return (
        b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", declared) + struct.pack("<I", len(content) << 3 | 1)[:3] + content
    )


def runs(declared: int, number: int) -> bytes:
    """A zstd frame of four bytes for each 128 KiB of content, however little it declares."""
    run = struct.pack("<I", 131072 << 3 | 2)[:3] + b"a"
    last = struct.pack("<I", 131072 << 3 | 3)[:3] + b"a"
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", declared) + run * number + last


def resized(change: Callable[[list[dict[str, Any]]], None]) -> bytes:
    """The golden file with other sizes in its index."""
    index = TAKEN.index()
    change(index["tensors"])
    return forge.sealed(index, TAKEN.body)


def chunks(i: int, size: int) -> Callable[[list[dict[str, Any]]], None]:
    return lambda entries: entries[i].update(chunks=[size])


def moved(entries: list[dict[str, Any]]) -> None:
    """A byte of the first tensor becomes one of the second."""
    entries[0]["chunks"][0] -= 1
    entries[1]["chunks"][0] += 1


def swapped(entries: list[dict[str, Any]]) -> None:
    entries[0], entries[1] = entries[1], entries[0]


FILLED = "do not fill the file"
ENTRY = "entry 0 of the index is not sound"
SIZES: dict[str, tuple[bytes, str]] = {
    "terabytes of shape": (declared(1 << 40, chunks=1), ENTRY),
    "terabytes of shape, in a million chunks": (declared(1 << 40), "an index of"),
    "more elements than numbers": (declared(1 << 60, 1 << 60, chunks=1), ENTRY),
    "64 large axes": (declared(*[1 << 40] * 64, chunks=1), ENTRY),
    "65 axes": (declared(*[1] * 65), ENTRY),
    "nothing of terabytes": (declared(0, 1 << 60, chunks=0), ENTRY),
    "one chunk too few": (declared(CHUNK + 1, chunks=1), ENTRY),
    "one chunk too many": (declared(CHUNK, chunks=2), ENTRY),
    "chunks of nothing": (declared(0, chunks=1), ENTRY),
    "300 MB of small chunks": (declared(300 << 20), "bytes of tensors in a file"),
    "300 MB as wide elements": (declared(40 << 20, dtype="float64", chunk=b"\1" + b"\2\3\0" * 7 + b"\3\0"), "bytes of"),
    "a chunk that is not there": (forge.sealed(forge.index(forge.entry("x", "uint8", (3,), b"\0abc"))), FILLED),
    "a chunk that nobody owns": (forge.sealed(forge.index(), b"\0abc"), FILLED),
    "a first chunk that is larger": (resized(chunks(0, 64)), FILLED),
    "a last chunk that goes into the index": (resized(chunks(-1, 40)), FILLED),
    "a chunk that ends before it begins": (resized(chunks(3, -5)), "entry 3"),
    "a chunk of no bytes": (resized(chunks(3, 0)), "entry 3"),
    "a chunk of terabytes": (resized(chunks(3, 1 << 40)), "entry 3"),
    "a chunk of as much as may be": (resized(chunks(3, 9 << 20)), FILLED),
    "an index of terabytes": (ended(1 << 40), "not a whole"),
    "an index of 2^64 - 1": (ended((1 << 64) - 1), "not a whole"),
    "an index of nothing": (ended(0), "not a whole"),
    "an index that begins in the head": (
        ended(len(zstandard.compress(forge.written(forge.index()))) + 1),
        "not a whole",
    ),
    "an index that is a byte shorter": (
        ended(len(zstandard.compress(forge.written(forge.index()))) - 1),
        "not a whole",
    ),
    "an index that unfolds to terabytes": (forge.around(framed(1 << 40, b"{}")), "an index of"),
    "an index that unfolds to 2^64 - 1": (forge.around(framed((1 << 64) - 1, b"{}")), "an index of|not a whole"),
    "an index that unfolds to more than it says": (forge.around(runs(1 << 20, 20_000)), "not a whole"),
}
CODED: dict[str, tuple[bytes, str]] = {
    "two chunks in one place": (resized(moved), "checksum"),
    "tensors in another order": (resized(swapped), "checksum"),
    "a stream longer than its chunk": (forge.lone(b"\1\x7f\0ab\0ab", "uint16", (2,)), "cut short"),
    "a stream of 2^35 bytes": (forge.lone(b"\1\xff\xff\xff\xff\x7f\0ab", "uint16", (2,)), "cut short"),
    "a size that does not end": (forge.lone(b"\1" + b"\xff" * 20, "uint16", (2,)), "cut short"),
    "a size that is cut": (forge.lone(b"\1\x80", "uint16", (2,)), "cut short"),
    "a zstd stream of terabytes": (forge.lone(b"\1\1" + framed(1 << 40, b"abc")), "another number of bytes"),
    "a zstd stream of 2^64 - 1": (forge.lone(b"\1\1" + framed((1 << 64) - 1)), "another number of bytes"),
    "a zstd stream that is longer": (
        forge.lone(b"\1\1" + runs(CHUNK, 20_000), shape=(CHUNK,)),
        "cannot be decompressed",
    ),
    "a zstd stream that is shorter": (forge.lone(b"\1\1" + framed(CHUNK, b"a"), shape=(CHUNK,)), "cannot be|cut short"),
    "a zstd stream and another": (forge.lone(b"\1\1" + zstandard.compress(b"abc") * 2), "cut short, or goes on"),
    "a whole chunk that is longer": (forge.lone(b"\0abcd"), "another number of symbols"),
    "a whole chunk that is shorter": (forge.lone(b"\0ab", "uint16", (2,)), "another number of elements"),
    "a model without knots": (forge.lone(b"\1\2\0\xff\0"), "cut short"),
    "a model that goes backwards": (forge.lone(b"\1\2\5\1\0" + bytes(20)), "not sound"),
    "a model of one symbol": (forge.lone(b"\1\2\0\1\0\5\0\0"), "fewer than two"),
    "a model of no symbol": (forge.lone(b"\1\2\0\xff\5" + bytes(9) + b"\0"), "fewer than two"),
    "a model of exceptions alone": (forge.lone(b"\1\2\0\1\0\0\0\2\0\xff\1\0"), "fewer than two"),
    "an exception elsewhere": (forge.lone(b"\1\2\0\1\0\5\5\1\x09\1"), "not sound"),
    "a spacing of 2^255": (forge.lone(b"\1\2\0\1\xff\5\5\0"), "not sound"),
    "words that are cut": (forge.lone(b"\1\2\0\1\0\5\5\0abc"), "cut short"),
    "a last word of nothing": (forge.lone(b"\1\2\0\1\0\5\5\0abcd\0\0\0\0"), "ends in zeros"),
    "more words than symbols": (forge.lone(b"\1\2\0\1\0\5\5\0" + b"abcd" * 1000), "more than was declared"),
    "symbols of more bits": (forge.lone(b"\1\3\xff", "uint8", (3,), bits=1), "more bits"),
    "truths that are neither": (forge.lone(b"\1\3\x02", "bool"), "more bits"),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_that_do_not_fit_are_refused(kind: str, refused: Any) -> None:
    data, hint = SIZES[kind]
    refused(hint, Reader, data)
    with pytest.raises(LilliputError):
        Second(data)


@pytest.mark.parametrize("kind", CODED)
def test_streams_that_do_not_fit_are_refused(kind: str, refused: Any) -> None:
    data, hint = CODED[kind]
    refused(hint, all_of, data)
    with pytest.raises(LilliputError):
        Second(data).check_digest()


def all_of(data: bytes) -> None:
    reader = Reader(data)
    for name in reader.entries:
        reader.read(name)


# The same under a limit of memory and time, with what only fails there


def sparse(name: str, length: int) -> Callable[[], Any]:
    """A file of a terabyte that takes no place on the disk."""

    def attack() -> Any:
        path = Path(name)
        with open(path, "wb") as file:
            file.write(forge.START)
            file.seek((1 << 40) - forge.END)
            file.write(struct.pack("<Q", length) + bytes(32) + b"lilliput")
        try:
            return Reader(path)
        finally:
            path.unlink()

    return attack


def largest() -> Any:
    """As many zeros as a small file may unfold to, and one wrong byte of the digest."""
    count = 255 << 20
    chunk = CONSTANT
    number = count // CHUNK
    entry = {**forge.entry("x", "uint8", (count,)), "chunks": [3] * number, "checks": forge.check(chunk) * number}
    reader = Reader(forge.sealed(forge.index(entry), chunk * number))
    reader.check_digest()


def loaded() -> Any:
    """The largest tensor, for a module that has none like it."""
    count = 255 << 20
    number = count // CHUNK
    entry = {**forge.entry("x", "uint8", (count,)), "chunks": [3] * number, "checks": forge.check(CONSTANT) * number}
    plain = {"edits": [], "aliases": {}, "buffers": [], "attributes": {}, "graph": None}
    data = forge.sealed(forge.index(entry, **{**plain, "kind": "module"}), CONSTANT * number)
    path = Path("large.lil")
    path.write_bytes(data)
    try:
        return lilliput.load(path, golden.Net())
    finally:
        path.unlink()


CAPPED: dict[str, Callable[[], Any]] = {
    **{name: lambda data=data: all_of(data) for name, (data, _) in {**SIZES, **CODED}.items()},  # type: ignore[misc]
    "a sparse file": sparse("sparse.lil", 1 << 39),
    "the largest": largest,
    "the largest, loaded": loaded,
}


@pytest.mark.parametrize("kind", [*SIZES, *CODED])
def test_in_little_memory(kind: str, capped: Any) -> None:
    capped(kind, {**SIZES, **CODED}[kind][1])


def test_a_terabyte_of_nothing_is_not_read(capped: Any) -> None:
    capped("a sparse file", "not a whole|cannot be read")


def test_the_digest_is_checked_a_chunk_at_a_time(capped: Any) -> None:
    capped("the largest", "not those that were written")


def test_what_unfolds_furthest_is_bounded(capped: Any) -> None:
    capped("the largest, loaded", "the file lacks|the module lacks", mb=600)
