"""Takes `.lil` files apart and puts them together again with all sizes and checksums right, whatever they hold.

What an attacker has who knows `docs/format.md`; nothing of the library is used.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import zstandard

START = struct.pack("<8sII", b"LILLIPUT", 2, 0)
END = 48  # bytes after the index
_COMPRESSOR = zstandard.ZstdCompressor(level=1)


@dataclass(frozen=True)
class Taken:
    """A file in its parts."""

    text: bytes  # the index as JSON
    chunks: dict[str, bytes]  # those of a tensor, one after the other

    def index(self) -> dict[str, Any]:
        """The index anew, to be changed."""
        return json.loads(self.text)  # type: ignore[no-any-return]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks.values())


def apart(data: bytes) -> Taken:
    """The parts of a sound file."""
    (length,) = struct.unpack_from("<Q", data, len(data) - END)
    text = zstandard.ZstdDecompressor().decompress(data[len(data) - END - length : len(data) - END])
    chunks, at = {}, len(START)
    for entry in json.loads(text)["tensors"]:
        size = sum(entry["chunks"])
        chunks[entry["name"]] = data[at : at + size]
        at += size
    return Taken(text, chunks)


def sealed(index: Any, body: bytes = b"", start: bytes = START) -> bytes:
    """A file of this index (an object, or its text) over these chunks, right on the outside."""
    text = index if isinstance(index, bytes) else written(index)
    return around(_COMPRESSOR.compress(text), body, start)


def around(frame: bytes, body: bytes = b"", start: bytes = START) -> bytes:
    """A file of this compressed index."""
    digest = hashlib.sha256(start + frame).digest()
    return start + body + frame + struct.pack("<Q", len(frame)) + digest + b"lilliput"


def written(index: Any) -> bytes:
    return json.dumps(index, separators=(",", ":")).encode()


def check(chunk: bytes) -> str:
    return hashlib.sha256(chunk).hexdigest()[:16]


def entry(name: str, dtype: str, shape: Iterable[int], *chunks: bytes, **more: Any) -> dict[str, Any]:
    """What the index says of a tensor that is stored in these chunks."""
    checks = "".join(map(check, chunks))
    sizes = [len(chunk) for chunk in chunks]
    return {"name": name, "dtype": dtype, "shape": list(shape), "chunks": sizes, "checks": checks, **more}


def index(*tensors: dict[str, Any], **header: Any) -> dict[str, Any]:
    return {"header": {"kind": "answer", "data": "null", **header}, "tensors": list(tensors), "digest": "0" * 64}


def lone(chunk: bytes, dtype: str = "uint8", shape: Iterable[int] = (3,), name: str = "x", **more: Any) -> bytes:
    """A file of one tensor."""
    return sealed(index(entry(name, dtype, shape, chunk, **more)), chunk)


def module(tensors: dict[str, tuple[str, tuple[int, ...], bytes]], **header: Any) -> bytes:
    """A file of a module with these tensors: types, shapes and elements as they are."""
    chunks = {name: b"\0" + data for name, (_, _, data) in tensors.items() if data}
    listed = [
        entry(name, dtype, shape, *([chunks[name]] if name in chunks else ()))
        for name, (dtype, shape, _) in tensors.items()
    ]
    plain = {"edits": [], "aliases": {}, "buffers": [], "attributes": {}, "graph": None, "no_graph": ""}
    return sealed(index(*listed, **{**plain, "kind": "module", **header}), b"".join(chunks.values()))
