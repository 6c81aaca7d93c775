"""What the library writes, read back by the decoder that knows only the document of the format."""

from __future__ import annotations

import ast
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

from lilliput.errors import FormatError
from lilliput.file import second, zstd
from lilliput.file.container import Part, Reader, write
from lilliput.file.second import Second

Array = NDArray[Any]

OTHER = {"bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}
DTYPES = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", *OTHER),
]
SHAPES: list[tuple[int, ...]] = [(), (0, 3), (5,), (300, 40)]
HEADER = {"kind": "answer", "data": json.dumps({"é": [1.5, None]}), "provenance": {"by": "☃"}}
RNG = np.random.default_rng(0)
KINDS: dict[str, Callable[[tuple[int, ...]], Array]] = {
    "gaussian": lambda shape: RNG.normal(size=shape) * 20,
    "sparse": lambda shape: RNG.normal(size=shape) * 20 * (RNG.random(shape) < 0.1),
    "constant": lambda shape: np.full(shape, 3.0),
    "uniform": lambda shape: RNG.uniform(-128, 128, shape),
    "repetitive": lambda shape: np.resize(np.arange(7.0) * 9, shape),
}


def elements(dtype: str, values: Array) -> Array:
    values = np.asarray(values)
    if dtype == "bool":
        return values > 10
    if dtype.startswith("uint"):
        return np.abs(values).astype(dtype)
    return values.astype(OTHER.get(dtype, dtype))


def codes(dtype: str, bits: int, values: Array) -> Array:
    low = -(1 << bits >> 1) if dtype == "int8" else 0
    return np.clip(np.asarray(values) / 20 * (1 << bits >> 1), low, low + (1 << bits) - 1).astype(dtype)


def samples() -> Iterator[tuple[str, str, Array, int | None]]:
    for shape in SHAPES:
        for kind, values in KINDS.items():
            for dtype in DTYPES:
                yield f"{dtype} {shape} {kind}", dtype, elements(dtype, values(shape)), None
            for bits in range(1, 8):
                for dtype in ("int8", "uint8"):
                    yield f"{dtype}/{bits} {shape} {kind}", dtype, codes(dtype, bits, values(shape)), bits


def written(folder: Path, parts: Sequence[Part], coder: Any = "dense") -> bytes:
    write(folder / "x.lil", HEADER, parts, coder)
    return (folder / "x.lil").read_bytes()


def read(data: bytes) -> dict[str, bytes]:
    """All that is in a file, and its digest checked."""
    Second(data).check_digest()
    return tensors(data)


def tensors(data: bytes) -> dict[str, bytes]:
    file = Second(data)
    return {name: file.tensor(name)[2] for name in file.names}


# What was written


@pytest.mark.parametrize("coder", ["dense", "fast"])
def test_every_type_comes_back(tmp_path: Path, coder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, stream = set(), second._stream
    monkeypatch.setattr(second, "_stream", lambda data, *more: methods.add(data[0]) or stream(data, *more))
    want = {name: (dtype, x, bits) for name, dtype, x, bits in samples()}
    parts = [Part.of(name, x, bits) for name, (_, x, bits) in want.items()]
    data = written(tmp_path, parts, coder)
    file, first = Second(tmp_path / "x.lil"), Reader(data)
    assert file.header == first.header == HEADER
    assert file.digest == first.digest
    assert file.names == list(want)
    for name, (dtype, x, _) in want.items():
        assert file.tensor(name) == (dtype, x.shape, x.tobytes()), name
    file.check_digest()
    assert methods >= ({0, 1, 2, 3} if coder == "dense" else {0, 1, 3}), "a method that was not met"


@pytest.mark.parametrize("coder", ["dense", "fast"])
def test_several_chunks_come_back(tmp_path: Path, coder: Any) -> None:
    count = 2**20 + 1000
    large = {
        "bytes": np.clip(RNG.normal(size=count) * 4 + 30, 0, 255).astype(np.uint8),
        "floats": (RNG.integers(0, 2, count) * RNG.normal(size=count)).astype(np.float16).astype(np.float32),
    }
    data = written(tmp_path, [Part.of(name, x.reshape(-1, 8)) for name, x in large.items()], coder)
    file = Second(data)
    for name, x in large.items():
        assert file.chunks(name) == 2
        cut = 2**20 * x.itemsize
        assert [file.chunk(name, i) for i in range(2)] == [x.tobytes()[:cut], x.tobytes()[cut:]]
        with pytest.raises(IndexError):
            file.chunk(name, 2)


def test_names_past_ascii_count_in_the_digest(tmp_path: Path) -> None:
    names = ["é☃\U0001f600", 'a"\\\n\t\x01\x7f/', ":graph"]
    data = written(tmp_path, [Part.of(name, np.arange(3)) for name in names])
    assert list(read(data)) == names


# What was damaged


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    parts = [Part.of("x", RNG.normal(size=70).astype("f4")), Part.of("codes", codes("int8", 3, RNG.normal(size=40)), 3)]
    return written(tmp_path, parts)


def test_every_flipped_byte_is_refused(small: bytes) -> None:
    for i in range(len(small)):
        for mask in (1, 255):
            with pytest.raises(FormatError):
                read(small[:i] + bytes([small[i] ^ mask]) + small[i + 1 :])


def test_every_cut_is_refused(small: bytes) -> None:
    for i in range(len(small)):
        with pytest.raises(FormatError):
            read(small[:i])
    with pytest.raises(FormatError):
        read(small + b"\0")


# Files made by hand, with sound checks over whatever they hold


def sealed(index: Any, chunks: bytes = b"", version: int = 2, zero: int = 0) -> bytes:
    head = b"LILLIPUT" + version.to_bytes(4, "little") + zero.to_bytes(4, "little")
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    frame = zstandard.ZstdCompressor().compress(text)
    tail = len(frame).to_bytes(8, "little") + hashlib.sha256(head + frame).digest() + b"lilliput"
    return head + chunks + frame + tail


def entry(chunk: bytes, **fields: Any) -> dict[str, Any]:
    checks = hashlib.sha256(chunk).hexdigest()[:16] if chunk else ""
    sizes = [len(chunk)] if chunk else []
    return {"name": "x", "dtype": "uint8", "shape": [3], "chunks": sizes, "checks": checks, **fields}


def index(*tensors: Any, **fields: Any) -> dict[str, Any]:
    return {"header": {"kind": "answer"}, "tensors": list(tensors), "digest": "0" * 64, **fields}


def lone(chunk: bytes, **fields: Any) -> bytes:
    """A file of one tensor, of three bytes if nothing else is said."""
    return sealed(index(entry(chunk, **fields)), chunk)


WHOLE = b"\0abc"
MODEL = b"\1\2" + bytes([0, 1, 0, 5, 5, 0])  # an ANS stream with two symbols of equal weight
FRAME = zstandard.ZstdCompressor().compress(b"abc")

SOUND = {
    "whole": (lone(WHOLE), b"abc"),
    "planes": (lone(b"\1\0abc"), b"abc"),
    "zstd": (lone(b"\1\1" + FRAME), b"abc"),
    "constant": (lone(b"\1\3a"), b"aaa"),
    "words left out": (lone(MODEL), b"\0\0\0"),
    "int8": (lone(b"\0\x00\x80\xff", dtype="int8"), b"\x80\x00\x7f"),
    "int8 of 3 bits": (lone(b"\0\x40\x07", dtype="int8", bits=3), b"\xfc\x00\x03"),
    "bool": (lone(b"\0\x05", dtype="bool"), b"\1\0\1"),
    "one plane after the other": (lone(b"\1\2\3\1\3\2", dtype="uint16"), b"\2\1" * 3),
    "turned": (
        lone(b"\1\3\0\x7c\x80\0\x00\x01", dtype="float16", shape=[2]),
        np.array([1.5, -2.0], np.float16).tobytes(),
    ),
    "an exception without weight": (lone(b"\1\2" + bytes([4, 6, 0, 5, 5, 5, 1, 4, 0])), b"\5\5\5"),
    "nothing": (lone(b"", shape=[0, 2**48, 1, 0]), b""),
}

REFUSED = {
    "bytes between": sealed(index(), b"x"),
    "version 1": sealed(index(), version=1),
    "version 3": sealed(index(), version=3),
    "a head of another number": sealed(index(), zero=1),
    "another field": sealed(index(more=1)),
    "no field": sealed({"header": {"kind": "answer"}, "tensors": []}),
    "a list": sealed([]),
    "no text": sealed(b"\xff"),
    "wide text": sealed(json.dumps(index()).encode("utf-16")),
    "too much text": sealed(json.dumps(index()).encode().ljust(2**25 + 1)),
    "deep": sealed(b"[" * 100_000),
    "a key twice": sealed(b'{"digest": "", ' + json.dumps(index()).encode()[1:]),
    "NaN": sealed(index(header={"kind": "answer", "x": float("nan")})),
    "infinite": sealed(json.dumps(index()).encode().replace(b'"answer"', b'"answer", "x": 1e999')),
    "no header": sealed(index(header=[])),
    "unknown kind": sealed(index(header={"kind": "x"})),
    "based on another": sealed(index(header={"kind": "answer", "base": "0" * 64, "references": {"a": "b"}})),
    "asset that is not there": sealed(index(header={"kind": "answer", "assets": {"a": ":asset:a"}})),
    "unsafe asset": sealed(
        index(entry(WHOLE, name=":asset:../a"), header={"kind": "answer", "assets": {"../a": ":asset:../a"}}), WHOLE
    ),
    "tensors": sealed(index(tensors={})),
    "digest": sealed(index(digest="0" * 63)),
    "a name twice": sealed(index(entry(b"", shape=[0]), entry(b"", shape=[0]))),
    "long name": lone(WHOLE, name="x" * 4097),
    "no name": lone(WHOLE, name=["x"]),
    "dtype": lone(WHOLE, dtype="complex64"),
    "no dtype": lone(WHOLE, dtype=[]),
    "65 axes": lone(b"\0a", shape=[1] * 65),
    "shape below 0": lone(WHOLE, shape=[-3]),
    "shape too large": lone(b"", shape=[0, 2**24, 2**25]),
    "shape of a fraction": lone(WHOLE, shape=[3.0]),
    "shape of a truth": lone(b"\0a", shape=[True]),
    "bits of another type": lone(b"\0\5", dtype="bool", bits=1),
    "8 bits": lone(WHOLE, bits=8),
    "no bits": lone(WHOLE, bits=None),
    "more of a tensor": lone(WHOLE, more=1),
    "short checks": lone(WHOLE, checks="00"),
    "checks with spaces": lone(WHOLE, checks="00 " * 5 + "0"),
    "other checks": lone(WHOLE, checks="00" * 8),
    "empty chunk": sealed(index(entry(WHOLE, chunks=[0]))),
    "large chunk": lone(bytes(9 * 2**20 + 1), shape=[2**20]),
    "too few chunks": lone(WHOLE, shape=[2**40, 2**40]),
    "more than there may be": sealed(
        index(entry(b"", shape=[2**28 + 2**20], chunks=[1] * 257, checks="00" * 8 * 257)), bytes(257)
    ),
    "kind of chunk": lone(b"\2abc"),
    "method": lone(b"\1\4abc"),
    "no method": lone(b"\1"),
    "whole, too long": lone(b"\0abcd"),
    "whole, of two bytes": lone(b"\0abc", dtype="uint16"),
    "verbatim, too short": lone(b"\1\0ab"),
    "symbol in a field too wide": lone(b"\0\x08\x00", bits=3),
    "constant too large": lone(b"\1\3\4", bits=2),
    "constant too long": lone(b"\1\3aa"),
    "plane too long": lone(b"\1\5\3\1\3\2", dtype="uint16"),
    "plane without a size": lone(b"\1\x80\x80\x80\x80\x80\0\3\1\3\2", dtype="uint16"),
    "zstd without its size": lone(b"\1\1" + zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")),
    "zstd of another size": lone(b"\1\1" + FRAME, shape=[4]),
    "zstd with a checksum": lone(b"\1\1" + zstandard.ZstdCompressor(write_checksum=True).compress(b"abc")),
    "two frames": lone(b"\1\1" + FRAME + FRAME),
    "no model": lone(b"\1\2"),
    "model without exceptions": lone(MODEL[:-1]),
    "low is high": lone(b"\1\2" + bytes([1, 1, 0, 5, 0])),
    "spacing": lone(b"\1\2" + bytes([0, 1, 6, 5, 5, 0])),
    "exception outside": lone(b"\1\2" + bytes([0, 1, 0, 5, 5, 1, 2, 9])),
    "exception cut": lone(b"\1\2" + bytes([0, 1, 0, 5, 5, 2, 1, 9, 1])),
    "alphabet of one": lone(b"\1\2" + bytes([0, 1, 0, 5, 5, 1, 1, 0])),
    "part of a word": lone(MODEL + b"abc"),
    "word of zero": lone(MODEL + bytes(4)),
    "words left": lone(MODEL + b"abcd" * 3),
    "symbol too large": lone(b"\1\2" + bytes([4, 6, 0, 5, 5, 5, 0]), bits=2),
}


@pytest.mark.parametrize("name", SOUND)
def test_the_document_by_hand(name: str) -> None:
    data, want = SOUND[name]
    assert Second(data).tensor("x")[2] == want
    with pytest.raises(FormatError):
        Second(data).check_digest()


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_a_rule_is_refused(name: str) -> None:
    with pytest.raises(FormatError):
        tensors(REFUSED[name])


def test_chunks_of_anything_are_refused_or_read(tmp_path: Path) -> None:
    """Chunks with sound checks and random changes: an error of ours, or as many bytes as the shape says."""
    dice, made = random.Random(0), []
    for x in (RNG.normal(size=300).astype("f4"), (RNG.normal(size=400) * 20).astype("i1"), RNG.random(400) < 0.1):
        for coder in ("dense", "fast"):
            data = written(tmp_path, [Part.of("x", x)], coder)
            made.append((data[16 : -48 - int.from_bytes(data[-48:-40], "little")], x))
    read_anyway = 0
    for _ in range(1500):
        chunk, x = dice.choice(made)
        try:
            decoded = Second(lone(mutated(chunk, dice), dtype=x.dtype.name, shape=[x.size])).tensor("x")[2]
        except FormatError:
            continue
        read_anyway += 1
        assert len(decoded) == x.nbytes
    assert read_anyway, "the changes should not all be met by the first check"


def mutated(data: bytes, dice: random.Random, keep: int = 0) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4))):
        reach = min(
            len(changed), keep + dice.choice((8, 40, 10**6))
        )  # near the front, where the tables are, more often
        if reach > keep:
            i = dice.randrange(keep, reach)
            changed[i : i + dice.choice((0, 1, 1, 1, 1, 2))] = bytes([dice.choice((dice.randrange(256), 0, 255))])
    return bytes(changed)


# zstd

TEXT = (Path(__file__).read_bytes() + Path(zstd.__file__).read_bytes()) * 2
CONTENTS = {
    "empty": b"",
    "short": b"lilliput",
    "text": TEXT,
    "floats": RNG.normal(size=30_000).astype("f4").tobytes(),
    "repetitive": b"abc" * 100_000,
    "one byte": b"a" * 300_000,
    "random": RNG.bytes(200_000),
    "letters": RNG.geometric(0.2, 250_000).clip(0, 255).astype("u1").tobytes(),
    "few letters": RNG.geometric(0.7, 250_000).clip(0, 255).astype("u1").tobytes(),
    "far": TEXT + RNG.bytes(2**20) + TEXT,
    "structured": np.arange(40_000, dtype="<u4").tobytes(),
}


@pytest.mark.parametrize("level", [1, 3, 9, 19])
@pytest.mark.parametrize("name", CONTENTS)
def test_zstd_content_comes_back(name: str, level: int) -> None:
    content = CONTENTS[name]
    frame = zstandard.ZstdCompressor(level=level).compress(content)
    assert zstd.content_size(frame) == len(content)
    assert zstd.decompress(frame, len(content)) == content


def test_zstd_windows_and_headers() -> None:
    """Frames with a window of their own, and with contents of every width of the declared size."""
    far = zstandard.ZstdCompressionParameters.from_level(19, window_log=10, enable_ldm=False)
    for size in (0, 1, 255, 256, 65_791, 65_792, 70_000):
        content = (TEXT * 3)[:size]
        assert zstd.decompress(zstandard.ZstdCompressor(compression_params=far).compress(content), size) == content
        stream = zstandard.ZstdCompressor().compressobj(size=size)
        assert zstd.decompress(stream.compress(content) + stream.flush(), size) == content
    assert zstd.decompress(b"\x28\xb5\x2f\xfd\xe0" + (3).to_bytes(8, "little") + b"\x1b\0\0a", 3) == b"aaa"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        FRAME + b"\0",
        FRAME + FRAME,
        b"\x50\x2a\x4d\x18\0\0\0\0",  # skippable
        b"\x50\x2a\x4d\x18\0\0\0\0" + FRAME,
        zstandard.ZstdCompressor(write_content_size=False).compress(b"abc"),
        b"\x28\xb5\x2f\xfd\x21\x05\x03\x19\0\0abc",  # a dictionary
        b"\x28\xb5\x2f\xfd\x28\x03\x19\0\0abc",  # a reserved bit
        b"\x28\xb5\x2f\xfd\x20\x03\x1f\0\0abc",  # a reserved type of block
        b"\x28\xb5\x2f\xfd\x20\x03\x18\0\0abc",  # no last block
        b"\x28\xb5\x2f\xfd\xe0" + bytes([255] * 8) + b"\xfb\xff\xffa",  # sizes past all measure
        zstandard.ZstdCompressor(write_checksum=True).compress(b"abc"),
    ],
)
@pytest.mark.parametrize("size", [3, 2**64 - 1])
def test_zstd_frames_that_are_refused(frame: bytes, size: int) -> None:
    with pytest.raises(FormatError):
        zstd.decompress(frame, size)


def test_zstd_of_another_size_or_cut_is_refused() -> None:
    content = TEXT[:3000]
    frame = zstandard.ZstdCompressor(level=19).compress(content)
    for size in (0, len(content) - 1, len(content) + 1, 2**40):
        with pytest.raises(FormatError):
            zstd.decompress(frame, size)
    for end in range(len(frame)):
        with pytest.raises(FormatError):
            zstd.decompress(frame[:end], len(content))


def test_zstd_mutations_are_refused_or_read() -> None:
    """Random changes give an error of ours or bytes of the declared size; where both decoders read them, the same."""
    dice, read_anyway = random.Random(0), 0
    contents = [TEXT[:2500], RNG.geometric(0.3, 2500).astype("u1").tobytes(), TEXT[:800] * 2 + RNG.bytes(100)]
    frames = [(zstandard.ZstdCompressor(level=level).compress(x), len(x)) for x in contents for level in (1, 9, 19)]
    for _ in range(4000):
        frame, size = dice.choice(frames)
        frame = mutated(frame, dice, keep=4)
        try:
            content = zstd.decompress(frame, size)
        except FormatError:
            continue
        read_anyway += 1
        assert content == zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    assert read_anyway, "the changes should not all be refused"


# Independence


@pytest.mark.parametrize("module", [second, zstd])
def test_the_second_decoder_stands_alone(module: Any) -> None:
    allowed = {"numpy", "lilliput.errors", *sys.stdlib_module_names}
    if module is second:
        allowed.add("lilliput.file.zstd")  # the other half of it
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            above = {name.rsplit(".", i)[0] for i in range(name.count(".") + 1)}
            assert above & allowed, f"imports {name}"
