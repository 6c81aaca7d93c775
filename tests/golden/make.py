"""Write the golden files and what must come out of them: `python tests/golden/make.py [--again]`.

They stand for every file of this version that was ever written, so they are made once. Only while a version is not
published may they be made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from golden import (
    ANSWER,
    BASES,
    DELTAS,
    DIVIDED,
    DTYPES,
    EXPECTED,
    FILES,
    FORMATS,
    MODULE,
    PACKED,
    PRODUCTS,
    Formats,
    Net,
    Packed,
    Products,
    drawn,
    example,
    rows,
)

from lilliput.encodings import (
    NF4,
    BFloat16,
    Blockwise,
    Codebook,
    Encoding,
    Exponent8,
    Fixed,
    Float16,
    Int,
    LowRank,
    MiniFloat,
    PowerOfTwo,
    Signs,
    Sparse,
)
from lilliput.entropy import dtype_called, encode
from lilliput.file.container import Part, Reader, write
from lilliput.file.delta import difference
from lilliput.file.graph import Graph
from lilliput.file.lil import save
from lilliput.model.edits.division import Divide
from lilliput.model.edits.edits import EncodeTensor, EncodeValue, SetTensor
from lilliput.model.edits.structure import Replace
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.targets import OnnxRuntime

ASSETS = {"words.txt": b"one two three " * 20, "folder/config.json": b'{"classes": 4}'}


def main() -> None:
    missing = [path for path in FILES if not path.exists() or "--again" in sys.argv[1:]]
    if not missing:
        sys.exit("golden files are there already; --again makes them anew, which is right for no published version")
    torch.set_num_threads(1)
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {}
    makers = {
        MODULE: module,
        ANSWER: answer,
        FORMATS: formats,
        DELTAS: deltas,
        PRODUCTS: products,
        DIVIDED: divided,
        PACKED: packed,
    }
    expected |= {path.name: makers[path](path) for path in missing}
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for path in missing:
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def module(path: Path) -> dict[str, Any]:
    """Write the file of a module; what must come out."""
    net = compressed()
    x = example()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        built, out = Path(folder) / "net.onnx", net(x)
        OnnxRuntime().writes.build(built, net, Inputs.of(x), {0: {0: "batch"}})
        signature = Signature.of(Inputs.of(x), out)
        graph = Graph(built, "onnxruntime", signature.to_plain(), {"largest": 0.0})
        save(path, net, graph=graph, assets=ASSETS, provenance={"why": "a golden file"})
    return {**told(path), "output": [round(value, 4) for value in out.reshape(-1).tolist()]}


def compressed() -> Net:
    """The net with an edit of every kind and encodings of many."""
    net = Net().eval()
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=i) / 2)
        net.gain.copy_(1 + drawn(16, seed=50) / 4)
        net.shift.copy_(torch.arange(16) % 4 / 8)
    SetTensor("conv.bias").apply(net, {"value": drawn(8, seed=51)})
    Replace("norm").apply(net, {})
    encoded(net, Int(8), "conv.weight")
    encoded(net, Int(4, group=8, scale=Float16()), "up.weight", "down.weight")
    encoded(net, Sparse(Int(8)), "thin.weight")
    encoded(net, Int(5, symmetric=False, per="tensor"), "fc.weight")
    encoded(net, BFloat16(), "last.weight")
    grid = {"scale": torch.tensor(0.03125), "offset": torch.tensor(96, dtype=torch.uint8)}
    for value in ("conv:conv2d#0@0", ":relu#0"):
        EncodeValue(value, Int(8, symmetric=False, per="tensor")).apply(net, grid)
    EncodeValue("thin:linear#0@0", Int(8, dynamic=True)).apply(net, {})
    return net


WEIGHTS: tuple[Encoding, ...] = (
    Fixed(1, 5),
    Fixed(2, 9),
    Int(1, symmetric=False, group=4),
    Codebook(5, held=Float16()),
    Codebook(16, group=8),
    PowerOfTwo(4),
    PowerOfTwo(5, terms=2, per="tensor"),
    PowerOfTwo(3, signed=False),
    Signs(3, scale=BFloat16()),
    NF4(group=8),
    MiniFloat("e5m2"),
    MiniFloat("e2m1", group=8, scale=Exponent8()),
    Blockwise(4, channels=4, group=8, scale=Float16()),
    Blockwise(3, group=None, scale=Exponent8()),
)
VALUES: tuple[Encoding, ...] = (
    Fixed(2, 5),
    PowerOfTwo(4, per="tensor", signed=False),
    MiniFloat("e4m3", per="tensor"),
    NF4(group=4, axis=1, dynamic=True),
    Blockwise(4, group=8, axis=1),
)


def formats(path: Path) -> dict[str, Any]:
    """Write the file of a module in every number format; what must come out."""
    net = Formats().eval()
    for i, encoding in enumerate(WEIGHTS):
        x = drawn(16, 16, seed=200 + i) / 4
        made = EncodeTensor((f"layers.{i}.weight",), encoding, (16, 16), "float32")
        made.apply(net, encoding.represent(x).tensors())
    for i, encoding in enumerate(VALUES):
        given = {"scale": torch.tensor(0.5)} if encoding.calibrated else encoding.given()
        EncodeValue(f"layers.{i}:linear#0@0", encoding).apply(net, given)
    with torch.no_grad():
        out = net(rows())
    save(path, net)
    return {**told(path), "output": [round(value, 4) for value in out.reshape(-1).tolist()]}


def products(path: Path) -> dict[str, Any]:
    """Write the file of a module whose weights are products, with its graph; what must come out."""
    net = Products().eval()
    given = {"conv": LowRank(3), "fc": LowRank(2, Float16()), "last": LowRank(4, Int(6))}
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=300 + i) / 2)
    for i, (layer, encoding) in enumerate(given.items()):
        parts = encoding.represent(drawn(*net.get_parameter(f"{layer}.weight").shape, seed=320 + i) / 2).tensors()
        shape = tuple(net.get_parameter(f"{layer}.weight").shape)
        EncodeTensor((f"{layer}.weight",), encoding, shape, "float32").apply(net, parts)
    return built_inside(path, net)


def divided(path: Path) -> dict[str, Any]:
    """Write the file of a module one layer of which is in parts, and whose weights have minima, with its graph."""
    net = Products().eval()
    Divide("conv", (4, 6, 8), ((), (0, 1), ()), (1, 2, 1)).apply(net, {})
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=400 + i) / 2)
    six = Int(6, group=2, symmetric=False)
    given = {
        "conv.1": Int(4, symmetric=False, minimum=BFloat16()),
        "fc": Int(4, group=2, symmetric=False, scale=six, minimum=six),
        "last": Int(3, group=8, symmetric=False, scale=Float16(), minimum=Float16()),
    }
    for layer, encoding in given.items():
        x = net.get_parameter(f"{layer}.weight").detach()
        parts = encoding.represent(x).tensors()
        EncodeTensor((f"{layer}.weight",), encoding, tuple(x.shape), "float32").apply(net, parts)
    return built_inside(path, net)


def packed(path: Path) -> dict[str, Any]:
    """Write the file of a module whose graph holds codes packed, around zero and with offsets; what must come out."""
    net = Packed().eval()
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=500 + i) / 2)
    for layer, encoding in {"first": Int(4, group=16), "last": Int(4, group=16, symmetric=False)}.items():
        x = net.get_parameter(f"{layer}.weight").detach()
        parts = encoding.represent(x).tensors()
        EncodeTensor((f"{layer}.weight",), encoding, tuple(x.shape), "float32").apply(net, parts)
    return built_inside(path, net)


def built_inside(path: Path, net: torch.nn.Module) -> dict[str, Any]:
    """Write the file of a module with its graph; what must come out."""
    x = example()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        built, out = Path(folder) / "net.onnx", net(x)
        OnnxRuntime().writes.build(built, net, Inputs.of(x), {0: {0: "batch"}})
        graph = Graph(built, "onnxruntime", Signature.of(Inputs.of(x), out).to_plain(), {"largest": 0.0})
        save(path, net, graph=graph)
    return {**told(path), "output": [round(value, 4) for value in out.reshape(-1).tolist()]}


def encoded(net: Net, encoding: Encoding, *paths: str) -> None:
    x = net.get_parameter(paths[0]).detach()
    if isinstance(encoding, Sparse):
        x = x * (x.abs() > 0.4)
    EncodeTensor(paths, encoding, tuple(x.shape), "float32").apply(net, encoding.represent(x).tensors())


def answer(path: Path) -> dict[str, Any]:
    """Write a file with every type under both coders; what must come out."""
    parts = [Part.of("nothing", np.zeros((0, 3), np.float32)), *(twins := list(types()))]
    for part in twins:
        parts.append(dataclasses.replace(part, name=f"{part.name}, fast"))
    coders = iter(["dense"] * len(twins) + ["fast"] * len(twins))  # a file has one coder; this one has both
    with mock.patch("lilliput.entropy.encode", lambda x, bits, coder: encode(x, bits, next(coders))):
        write(path, {"kind": "answer", "data": json.dumps({"every": "type"})}, parts)
    return told(path)


def deltas(path: Path) -> dict[str, Any]:
    """Write what differs from the file of every type: differences of each, one tensor that is the same, a new one."""
    base, parts = Reader(ANSWER), [Part.of("new", np.arange(5, dtype=np.float32))]
    for i, part in enumerate(types()):
        if part.name != "pattern":
            x = base.read(part.name)
            changed = np.where(
                drawn(*x.shape, seed=300 + i).numpy() > 0.5, np.roll(x.reshape(-1), 1).reshape(x.shape), x
            )
            parts.append(Part.of(part.name, difference(changed.astype(x.dtype), x, part.bits_held), part.bits))
    listed = {part.name: part.name for part in parts[1:]}
    header = {"kind": "answer", "base": base.digest, "references": {"pattern": "pattern"}, "deltas": listed}
    write(path, header, parts)
    return told(path)


def types() -> Iterator[Part]:
    """Of every type a tensor, and codes of few bits."""
    for i, name in enumerate(DTYPES):
        x = drawn(3, 6, seed=i).numpy() * 8
        kind = dtype_called(name)
        yield Part.of(name, (x > 2 if name == "bool" else np.abs(x) if name.startswith("uint") else x).astype(kind))
    for bits in (1, 4, 7):
        codes = (drawn(96, seed=bits).numpy() * 2**bits / 3).astype(np.int64) & ((1 << bits) - 1)
        yield Part.of(f"uint8 of {bits} bits", codes.astype(np.uint8), bits)
        yield Part.of(f"int8 of {bits} bits", (codes - (1 << (bits - 1))).astype(np.int8), bits)
    yield Part.of("pattern", np.tile(np.arange(20, dtype=np.uint8), 8))
    yield Part.of("number", np.array(2.5))


def told(path: Path) -> dict[str, Any]:
    """What is in a file, by its digests."""
    reader = Reader(path, Reader(BASES[path.name]) if path.name in BASES else None)
    reader.check_digest()
    tensors = {
        name: [entry.dtype, list(entry.shape), hashlib.sha256(reader.read(name).tobytes()).hexdigest()]
        for name, entry in reader.entries.items()
    }
    return {"digest": reader.digest, "tensors": tensors, "file": hashlib.sha256(path.read_bytes()).hexdigest()}


if __name__ == "__main__":
    main()
