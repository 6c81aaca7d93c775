"""Mutations of the golden files, each made of its number alone; and the process that tries a share of them.

`python mutations.py SHARE OF PLACE` tries every so-manieth mutation, writes the number of the one it is at into
`PLACE.at`, and prints as JSON how all ended. Run by test_mutations.py, and by hand with one number to see what it is.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import mmap
import random
import resource
import signal
import struct
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "golden")]

import forge  # noqa: E402
import golden  # noqa: E402
import onnx  # noqa: E402
import torch  # noqa: E402
import zstandard  # noqa: E402

from lilliput.errors import LilliputError  # noqa: E402
from lilliput.file.container import Reader  # noqa: E402
from lilliput.file.graph import restored  # noqa: E402
from lilliput.file.inspect import inside  # noqa: E402
from lilliput.file.lil import read_into  # noqa: E402
from lilliput.file.second import Second  # noqa: E402

COUNTS = {"bytes": 96_000, "streams": 70_000, "entries": 20_000, "edits": 4_000, "graphs": 7_000, "headers": 3_000}
TOTAL = sum(COUNTS.values())
COMPARED = 21  # every so-manieth mutation of chunks and entries is shown to the second decoder as well
MORE_MEMORY = 1 << 30  # bytes of addresses beyond what the imports take
LONGEST_S = 5  # of the processor

FILES = {path.name: path.read_bytes() for path in golden.FILES if path.name not in golden.BASES}
WITH_BASES = {name: (Reader(base), (golden.HERE / name).read_bytes()) for name, base in golden.BASES.items()}
INDEX = {name: len(forge.START) + len(forge.apart(data).body) for name, data in FILES.items()}  # where it begins
MODULE, ANSWER, FORMATS, *_ = (forge.apart(data) for data in FILES.values())

Rng = random.Random
Change = Callable[[Rng, Any], Any]


@dataclass(frozen=True)
class Tensor:
    """A tensor of a golden file, alone."""

    dtype: str
    shape: list[int]
    bits: dict[str, int]
    chunk: bytes


def tensors() -> list[Tensor]:
    found = []
    for taken in (MODULE, ANSWER, FORMATS):
        for entry in taken.index()["tensors"]:
            if entry["chunks"] and len(taken.chunks[entry["name"]]) < 400:
                bits = {"bits": entry["bits"]} if "bits" in entry else {}
                found.append(Tensor(entry["dtype"], entry["shape"], bits, taken.chunks[entry["name"]]))
    return found


TENSORS = tensors()
CODED = [tensor for tensor in TENSORS if tensor.chunk[0] == 1]
WIDTHS = {"bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "uint16": 2, "int16": 2}
WIDTHS |= {"float16": 2, "bfloat16": 2, "uint32": 4, "int32": 4, "float32": 4, "uint64": 8, "int64": 8, "float64": 8}


# Bytes


ODD_BYTES = (0, 1, 2, 3, 4, 0x7F, 0x80, 0xFE, 0xFF)


def shaken(rng: Rng, data: bytes, first: int = 0) -> bytes:
    """Some bytes from `first` on flipped, exchanged, put in, taken out, doubled or cut off."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(first if first < len(data) else 0, len(data) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 40)), len(data) - at)
        how = rng.randrange(7)
        if how == 0 and at < len(data):
            data = data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
        elif how == 1:
            data = data[:at] + bytes((rng.choice(ODD_BYTES),)) * length + data[at + length :]
        elif how == 2:
            data = data[:at] + rng.randbytes(length) + data[at + length :]
        elif how == 3:
            data = data[:at] + rng.randbytes(rng.choice((1, 2, 4, 8))) + data[at:]
        elif how == 4:
            data = data[:at] + data[at + max(1, length) :]
        elif how == 5:
            data = data[: at + length] + data[at:]
        else:
            data = data[:at]
    return data


def of_bytes(rng: Rng) -> bytes:
    """A golden file with other bytes; checksums are left as they are."""
    name, other = rng.sample(sorted(FILES), 2)
    data = FILES[name]
    how = rng.randrange(8)
    if how == 0:  # the beginning of one, the end of another
        at = rng.randrange(len(data))
        return data[:at] + FILES[other][rng.randrange(len(FILES[other])) :]
    if how == 1:  # head or tail only
        at = rng.choice((rng.randrange(16), len(data) - 1 - rng.randrange(48)))
        return data[:at] + rng.randbytes(1) + data[at + 1 :]
    return shaken(rng, data, 0 if how < 4 else INDEX[name])


# Chunks


def parted(chunk: bytes, width: int) -> list[bytes]:
    """The streams of a chunk of planes."""
    found, at = [], 1
    for plane in range(width):
        size, shift, more = len(chunk) - at, 0, plane < width - 1
        if more:
            size = 0
        while more:
            size |= (chunk[at] & 127) << shift
            more, shift, at = chunk[at] > 127, shift + 7, at + 1
        found.append(chunk[at : at + size])
        at += size
    return found


def joined(streams: list[bytes]) -> bytes:
    return b"\1" + b"".join(varint(len(stream)) + stream for stream in streams[:-1]) + streams[-1]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def another_method(rng: Rng, stream: bytes) -> bytes:
    return bytes((rng.choice((0, 1, 2, 3, 4, 255)),)) + stream[1:]


def another_model(rng: Rng, stream: bytes) -> bytes:
    """An ANS stream with other numbers in its model, or a model made up, over the same words or others."""
    low = rng.choice((0, 0, 1, 100, 254, rng.randrange(255)))
    high = min(255, low + rng.choice((0, 1, 2, 3, 15, 255)))
    spacing = rng.choice((0, 0, 1, 2, 5, 6))
    knots = 1 + -(-max(0, high - low) // (1 << min(spacing, 8))) + rng.choice((0, 0, 0, 0, 1, -1))
    weights = bytes(rng.choice((0, 1, 16, 255, rng.randrange(256))) for _ in range(max(0, knots)))
    pairs = rng.choice((0, 0, 1, 3))
    exceptions = bytes(
        byte for _ in range(pairs) for byte in (rng.choice((low, high, rng.randrange(256))), rng.choice((0, 1, 255)))
    )
    words = stream[-4 * rng.randrange(8) :] if rng.random() < 0.5 else rng.randbytes(4 * rng.randrange(6))
    return bytes((2, low, high, spacing)) + weights + bytes((pairs,)) + exceptions + words


def other_words(rng: Rng, stream: bytes) -> bytes:
    """Words put on, taken off, or exchanged."""
    how = rng.randrange(4)
    if how == 0:
        return stream[: -4 * rng.randrange(1, 4)]
    if how == 1:
        return stream + rng.randbytes(4 * rng.randrange(1, 4))
    if how == 2:
        return stream + bytes(4)
    return stream[:-4] + rng.randbytes(4)


def another_frame(rng: Rng, stream: bytes) -> bytes:
    """A zstd frame of other content, or of the same written in another way."""
    content = rng.choice((bytes(rng.randrange(200)), rng.randbytes(rng.randrange(100)), b"abc" * rng.randrange(60)))
    how = rng.randrange(5)
    if how == 0:
        frame = zstandard.ZstdCompressor(level=1, write_content_size=rng.random() < 0.5).compress(content)
    elif how == 1:
        frame = zstandard.ZstdCompressor(level=rng.choice((1, 9)), write_checksum=True).compress(content)
    elif how == 2:
        frame = shaken(rng, zstandard.compress(content))
    elif how == 3:
        frame = zstandard.compress(content) + zstandard.compress(b"")
    else:
        header = struct.pack("<Q", rng.choice((len(content), 1 << 40, (1 << 64) - 1, 0)))
        frame = b"\x28\xb5\x2f\xfd\xe0" + header + struct.pack("<I", len(content) << 3 | 1)[:3] + content
    return b"\1" + frame


def another_stream(rng: Rng, stream: bytes) -> bytes:
    donor = rng.choice(CODED)
    return rng.choice(parted(donor.chunk, WIDTHS[donor.dtype]))


def constant(rng: Rng, stream: bytes) -> bytes:
    return bytes((3, rng.choice(ODD_BYTES))) + rng.randbytes(rng.choice((0, 0, 0, 1)))


STREAMS: tuple[Callable[[Rng, bytes], bytes], ...] = (
    *(shaken, shaken, another_method, another_model, another_model, other_words, another_frame),
    *(another_stream, constant),
)


def of_streams(rng: Rng) -> bytes:
    """A file of one tensor whose chunk is another than was written; all checksums are right."""
    tensor = rng.choice(CODED) if rng.random() < 0.8 else rng.choice(TENSORS)
    dtype, shape, bits, chunk = tensor.dtype, tensor.shape, tensor.bits, tensor.chunk
    how = rng.randrange(10)
    if how < 7 and chunk[0] == 1:
        streams = parted(chunk, WIDTHS[dtype])
        i = rng.randrange(len(streams))
        streams[i] = rng.choice(STREAMS)(rng, streams[i])
        chunk = joined(streams)
    elif how < 8:
        chunk = shaken(rng, chunk) or b"\0"
    else:
        shape, dtype, bits = described(rng, shape, dtype, bits)
        chunk = shaken(rng, chunk) or b"\1" if rng.random() < 0.3 else chunk
    return forge.lone(chunk, dtype, shape, **bits)


def described(rng: Rng, shape: list[int], dtype: str, bits: dict[str, int]) -> tuple[list[int], str, dict[str, int]]:
    """Another number of elements, another type, other bits."""
    how = rng.randrange(3)
    if how == 0:
        return [rng.choice((1, 2, 3, 7, 8, 16, 47, 48, 64, 119, 121, 160, 256, 1 << 20))], dtype, bits
    if how == 1:
        dtype = rng.choice(sorted(WIDTHS))
        return shape, dtype, {} if dtype not in ("uint8", "int8") else bits
    return shape, rng.choice(("uint8", "int8")), {"bits": rng.randrange(1, 8)}


# The index


ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", "0", [], {}, [[]], [{}], {"": ""}, [None], 0.5, -0.0, 1e308, 3.0),
    *(-1, 0, 1, 2, 3, 7, 8, 16, 64, 255, 1 << 20, 1 << 31, 1 << 48, 1 << 63, 10**30, -(1 << 70)),
    *(
        "\0",
        "a\nb",
        "\u00e9\U0001f600",
        "x" * 5000,
        "__class__",
        "forward",
        "..",
        "a.b.c",
        ":graph",
        ":attribute::shift",
    ),
    *("gain", "conv", "conv.bias", "up.weight", "value_encodings", "fc:linear#0", "tensor", "float16", "Int", "Sparse"),
    *({"kind": "Int"}, {"kind": "Float16"}, {"kind": "Replace", "path": "conv"}, {"tensor": "gain"}, ["", "shift"]),
)
DTYPES = (*WIDTHS, "complex64", "object", "float", "int4")
NAMES = [entry["name"] for entry in MODULE.index()["tensors"]]


def number(rng: Rng, old: Any) -> Any:
    """A number near another, or far from it."""
    if type(old) is not int or rng.random() < 0.3:
        return rng.choice(ODD)
    return rng.choice((old + 1, old - 1, old * 2, old // 2, -old, old << 20, float(old), [old], str(old), 0))


def entry_changed(rng: Rng, entries: list[dict[str, Any]], bodies: list[bytes]) -> None:
    """One field of one entry."""
    i = rng.randrange(len(entries))
    entry = entries[i]
    key = rng.choice(sorted(entry))
    how = rng.randrange(6)
    if how == 0:
        entry[key] = copy.deepcopy(rng.choice(ODD))
    elif how == 1:
        entry.pop(key)
    elif how == 2:
        entry[rng.choice(("bits", "offset", "name", "shape", "more"))] = rng.choice(ODD)
    elif how == 3 and type(entry.get("shape")) is list:
        entry["shape"] = shaped(rng, entry["shape"])
    elif how == 4:
        entry["dtype"] = rng.choice(DTYPES)
    elif type(entry.get("chunks")) is list and entry["chunks"]:
        j = rng.randrange(len(entry["chunks"]))
        entry["chunks"][j] = number(rng, entry["chunks"][j])


def shaped(rng: Rng, shape: list[Any]) -> list[Any]:
    how = rng.randrange(5)
    if how == 0:
        return [*shape, rng.choice((1, 0, 2, -1, 1 << 40, True))]
    if how == 1:
        return shape[1:]
    if how == 2:
        return list(reversed(shape))
    if how == 3:
        return [1] * rng.choice((1, 60, 65)) + shape
    return [number(rng, n) if rng.random() < 0.5 else n for n in shape]


def entries_moved(rng: Rng, entries: list[dict[str, Any]], bodies: list[bytes]) -> None:
    """Entries exchanged, doubled or taken away, with their chunks or without."""
    i, j = rng.randrange(len(entries)), rng.randrange(len(entries))
    how = rng.randrange(5)
    if how == 0:
        entries[i], entries[j] = entries[j], entries[i]
        if rng.random() < 0.7:
            bodies[i], bodies[j] = bodies[j], bodies[i]
    elif how == 1:
        entries.insert(j, {**entries[i], "name": rng.choice((name_of(entries[i]), "another", *NAMES))})
        bodies.insert(j, bodies[i])
    elif how == 2:
        del entries[i]
        if rng.random() < 0.7:
            del bodies[i]
    elif how == 3:  # a tensor takes what another holds, type and all
        entries[i], bodies[i] = {**entries[j], "name": name_of(entries[i])}, bodies[j]
    else:
        entries[i]["name"] = name_of(entries[j])


def name_of(entry: dict[str, Any]) -> Any:
    return entry.get("name", "none")


def boundary_moved(rng: Rng, entries: list[dict[str, Any]], bodies: list[bytes]) -> None:
    """The end of a chunk lies elsewhere, and the checksums say so."""
    i = rng.randrange(len(entries) - 1)
    whole = bodies[i] + bodies[i + 1]
    at = rng.choice((len(bodies[i]) + 1, len(bodies[i]) - 1, rng.randrange(len(whole) + 1)))
    for k, body in ((i, whole[: max(0, at)]), (i + 1, whole[max(0, at) :])):
        bodies[k] = body
        entries[k]["chunks"] = [len(body)] if body else []
        entries[k]["checks"] = forge.check(body) if body else ""


def body_changed(rng: Rng, entries: list[dict[str, Any]], bodies: list[bytes]) -> None:
    """A chunk holds something else, and its checksum says so."""
    i = rng.randrange(len(entries))
    if bodies[i]:
        bodies[i] = shaken(rng, bodies[i]) or b"\0"
        entries[i]["chunks"], entries[i]["checks"] = [len(bodies[i])], forge.check(bodies[i])


ENTRIES = (entry_changed, entry_changed, entry_changed, entries_moved, boundary_moved, body_changed)


def of_entries(rng: Rng) -> bytes:
    """Some tensors of a golden file, described otherwise; checksums are right, and sizes where they can be."""
    taken = MODULE if rng.random() < 0.3 else ANSWER
    index = taken.index()
    first = rng.randrange(len(index["tensors"]) - 8)
    some = slice(first, first + 8)
    index["tensors"] = entries = index["tensors"][some]
    index["header"] = {"kind": "answer"}
    bodies = list(taken.chunks.values())[some]
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(ENTRIES)(rng, entries, bodies)
    if rng.random() < 0.05:
        index[rng.choice(("digest", "tensors", "header", "more"))] = rng.choice(ODD)
    return forge.sealed(index, b"".join(bodies))


# The header


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a tree of JSON something lies."""
    for key in range(len(tree)) if isinstance(tree, list) else tree:
        yield (*at, key)
        if isinstance(tree[key], dict | list):
            yield from places(tree[key], (*at, key))


def held(tree: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        tree = tree[key]
    return tree


HEADER = MODULE.index()["header"]
PLACES = {
    "edits": [at for at in places(HEADER) if at[0] in ("edits", "aliases", "buffers", "attributes", "kind")],
    "graphs": [at for at in places(HEADER) if at[0] == "graph"],
    "headers": list(places(HEADER)),
}


def of_header(rng: Rng, kind: str) -> bytes:
    """The golden module with something else in its header."""
    index = MODULE.index()
    for _ in range(rng.choice((1, 1, 1, 2))):
        way = rng.choice(PLACES[kind])
        with contextlib.suppress(KeyError, IndexError, TypeError):  # what was there before is gone
            tree_changed(rng, index["header"], way, PLACES[kind])
    return forge.sealed(index, MODULE.body)


def tree_changed(rng: Rng, tree: Any, way: tuple[Any, ...], ways: list[tuple[Any, ...]]) -> None:
    """Something else in place of what lies at the end of `way`."""
    around, key = held(tree, way[:-1]), way[-1]
    old = around[key]
    how = rng.randrange(8)
    if how == 0:
        del around[key]
    elif how == 1:
        around[key] = copy.deepcopy(rng.choice(ODD))
    elif how == 2 and isinstance(old, str):
        around[key] = rng.choice((rng.choice(NAMES), old + "x", old[:-1], old.replace(".", ".."), f".{old}"))
    elif how == 3:
        around[key] = copy.deepcopy(held(tree, rng.choice(ways)))
    elif how == 4 and isinstance(around, list):
        around.insert(key, copy.deepcopy(old))
    elif how == 5 and isinstance(old, dict):
        old[rng.choice(FIELDS)] = rng.choice(ODD)
    elif how == 6:
        around[key] = [old]
    else:
        around[key] = number(rng, old)


FIELDS = ("kind", "group", "axis", "bits", "dynamic", "per", "scale", "values", "x", "tensor", "name", "more")


# The graph


GRAPH = MODULE.chunks[":graph"]
PROTO = zstandard.ZstdDecompressor().decompress(GRAPH[2:]) if GRAPH[:2] == b"\1\1" else b""
OPERATORS = ("Loop", "If", "Scan", "Foo", "Constant", "Reshape", "Expand", "Conv", "ConstantOfShape", "")


def of_graph(rng: Rng) -> bytes:
    """The golden module with another ONNX graph."""
    proto = shaken(rng, PROTO) if rng.random() < 0.5 else drawn_otherwise(rng)
    index = MODULE.index()
    chunk = b"\0" + proto
    entry = forge.entry(":graph", "uint8", [len(proto)], chunk)
    index["tensors"] = [entry if one["name"] == ":graph" else one for one in index["tensors"]]
    return forge.sealed(index, b"".join({**MODULE.chunks, ":graph": chunk}.values()))


def drawn_otherwise(rng: Rng) -> bytes:
    """The graph with other fields, as protobuf has them."""
    model = onnx.ModelProto.FromString(PROTO)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2, 3))):
        node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
        how = rng.randrange(9)
        if how == 0:
            node.op_type, node.domain = rng.choice(OPERATORS), rng.choice(("", "ai.onnx", "evil", "com.microsoft"))
        elif how == 1:
            tensor.dims.append(rng.choice((0, 1, -1, 2, 1 << 40, (1 << 63) - 1)))
        elif how == 2 and tensor.dims:
            tensor.dims[0] = rng.choice((0, 1, -1, -8, 9, 16, 1 << 40, -(1 << 63)))
        elif how == 3:
            tensor.data_type = rng.choice((0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 21, 22, 23, 99))
        elif how == 4:
            tensor.name = rng.choice([one.name for one in graph.initializer])
        elif how == 5:
            tensor.external_data.add(key="location", value="/etc/passwd")
        elif how == 6:
            node.attribute.add(name="body", type=5).g.node.add(op_type="Relu")
        elif how == 7:
            rng.choice((*graph.input, *graph.output)).type.tensor_type.elem_type = rng.choice((0, 1, 8, 16, 99))
        else:
            model.opset_import[0].domain = rng.choice(("evil", "ai.onnx"))
    return model.SerializeToString()


# What is done with each


def mutation(i: int) -> tuple[str, bytes]:
    """Kind and bytes of mutation number `i`."""
    rng, kind = Rng(i), kind_of(i)
    if kind == "bytes":
        return kind, of_bytes(rng)
    if kind == "streams":
        return kind, of_streams(rng)
    if kind == "entries":
        return kind, of_entries(rng)
    if kind == "graphs" and rng.random() < 0.5:
        return kind, of_graph(rng)
    return kind, of_header(rng, kind)


def kind_of(i: int) -> str:
    """Kinds take turns in proportion to their counts."""
    at = i * 7919 % TOTAL  # a number that shares no divisor with the total
    for kind, count in COUNTS.items():
        if at < count:
            return kind
        at -= count
    raise AssertionError(i)


def tried(kind: str, data: bytes, step: Callable[[str], None]) -> None:
    """Do with a file what its kind asks for; `step` is told before each step."""
    step("open")
    reader = Reader(data)
    if kind == "edits":
        step("load")
        read_into(reader, golden.Net())
    elif kind == "graphs":
        step("graph")
        restored(reader)
    elif kind == "headers":
        step("inside")
        inside(data)
        step("assets")
        for name in reader.header.get("assets", {}):
            reader.entry(f":asset:{name}")
    else:
        step("decode")
        reader.check_digest()  # decodes all of them
        step("read")
        for name in reader.entries:
            reader.read(name)


LAYERS = (  # part of a refusal, and what refused
    ("not a whole", "ends"),
    ("format version", "ends"),
    ("of the index is not sound", "entries"),
    ("do not fill the file", "sizes"),
    ("bytes of tensors in a file", "sizes"),
    ("twice", "entries"),
    ("checksum does not match", "checksums"),
    ("are not those that were written", "digest"),
)


class Hang(BaseException):
    """It took too long."""


def hanging(signal: int, frame: Any) -> None:
    raise Hang


class Trial:
    """How mutations end."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.foreign: list[dict[str, Any]] = []
        self.compared: Counter[str] = Counter()
        self.differ: list[int] = []

    def one(self, i: int) -> None:
        kind, data = mutation(i)
        steps = [""]
        signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
        try:
            tried(kind, data, steps.append)
            end = "fine"
        except LilliputError as error:
            text = str(error)
            end = next((layer for part, layer in LAYERS if part in text), steps[-1])
        except BaseException as error:
            end = "foreign"
            if len(self.foreign) < 20:
                last = traceback.extract_tb(error.__traceback__)[-1]
                told = f"{type(error).__name__}: {str(error)[:200]} at {Path(last.filename).name}:{last.lineno}"
                self.foreign.append({"number": i, "kind": kind, "step": steps[-1], "error": told})
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.ended[f"{kind}: {end}"] += 1
        self.ended[f"reached {steps[-1]}"] += 1
        if kind in ("bytes", "streams", "entries") and i % COMPARED == 0 and (kind != "entries" or len(data) < 4000):
            self.compare(i, data)

    def compare(self, i: int, data: bytes) -> None:
        """Both decoders give the same bytes, or both refuse."""
        one, two = first_of(data), second_of(data)
        self.compared["read" if one and None not in one.values() else "refused"] += 1
        if one != two:
            self.differ.append(i)


def first_of(data: bytes) -> dict[str, bytes | None] | None:
    try:
        reader = Reader(data)
    except LilliputError:
        return None
    return {name: tensor_of(lambda name=name: reader.read(name).tobytes()) for name in reader.entries}  # type: ignore[misc]


def second_of(data: bytes) -> dict[str, bytes | None] | None:
    try:
        second = Second(data)
    except LilliputError:
        return None
    return {name: tensor_of(lambda name=name: second.tensor(name)[2]) for name in second.names}  # type: ignore[misc]


def tensor_of(read: Callable[[], bytes]) -> bytes | None:
    try:
        return read()
    except LilliputError:
        return None


# Single bytes and cuts


MASKS = (*(1 << bit for bit in range(8)), 0xFF)


def flips(share: int, of: int) -> dict[str, Any]:
    """Every byte of the golden files with each bit and all bits flipped, and every beginning of them."""
    found, kept = 0, []
    for name, (base, data) in {**{name: (None, data) for name, data in FILES.items()}, **WITH_BASES}.items():
        reader = Reader(data, base)
        hit = {entry.offset + i: entry.name for entry in reader.entries.values() for i in range(entry.stored_bytes)}
        for at in range(share, len(data), of):
            for mask in MASKS:
                flipped = data[:at] + bytes((data[at] ^ mask,)) + data[at + 1 :]
                found += refuses(flipped, hit.get(at), base) or kept.append((name, at, mask)) or 0  # type: ignore[func-returns-value]
            found += refuses(data[:at], None, base) or kept.append((name, at, "cut")) or 0  # type: ignore[func-returns-value]
    return {"found": found, "kept": kept}


def refuses(data: bytes, tensor: str | None, base: Reader | None) -> bool:
    """Whether the file is refused, or the tensor in it."""
    try:
        reader = Reader(data, base)
        if tensor is not None:
            reader.read(tensor)
    except LilliputError:
        return True
    return False


def main() -> None:
    if len(sys.argv) == 2:
        kind, data = mutation(int(sys.argv[1]))
        print(kind, data.hex())
        tried(kind, data, print)
        return
    share, of, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    read_into(Reader(FILES[golden.MODULE.name]), golden.Net())  # imports what is imported late
    restored(Reader(FILES[golden.MODULE.name]))
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_MEMORY,) * 2)
    signal.signal(signal.SIGPROF, hanging)
    gc.freeze()
    trial = Trial()
    with open(f"{place}.at", "w+b") as file:
        file.write(bytes(8))
        file.flush()
        at = mmap.mmap(file.fileno(), 8)
        for i in range(share, TOTAL, of):
            at[:] = struct.pack("<Q", i)
            trial.one(i)
    told = {"ended": trial.ended, "foreign": trial.foreign, "compared": trial.compared, "differ": trial.differ}
    print(json.dumps({**told, "flips": flips(share, of)}))


if __name__ == "__main__":
    main()
