"""Files of every version that was published load forever, with the very bytes that they held."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from compared import close

import lilliput
from lilliput.encodings import ENCODINGS
from lilliput.entropy import chunk
from lilliput.errors import FormatError
from lilliput.file.assets import read_asset
from lilliput.file.container import Reader
from lilliput.file.index import VERSION
from lilliput.file.inspect import verify
from lilliput.file.lil import save
from lilliput.file.second import Second

FOLDER = Path(__file__).parents[1] / "golden"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", FOLDER / "golden.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("golden", module)
    spec.loader.exec_module(module)
    return module


golden = _module()
EXPECTED: dict[str, Any] = json.loads(golden.EXPECTED.read_text(encoding="utf-8"))
FILES = {path.name: path for path in golden.FILES}


def based(name: str) -> Reader:
    """A golden file, with the one that it needs beside it."""
    return Reader(FILES[name], Reader(golden.BASES[name]) if name in golden.BASES else None)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_there_is_one_for_every_version() -> None:
    assert set(EXPECTED) == set(FILES) == {path.name for path in FOLDER.glob("*.lil")}
    assert all(FILES[f"version{version}.lil"].exists() for version in range(2, VERSION + 1))


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_the_one_that_was_made(name: str) -> None:
    assert hashlib.sha256(FILES[name].read_bytes()).hexdigest() == EXPECTED[name]["file"]


@pytest.mark.parametrize("name", FILES)
def test_it_holds_the_same_bytes(name: str) -> None:
    expected, reader = EXPECTED[name], based(name)
    reader.check_digest()
    assert reader.digest == expected["digest"]
    found = {
        tensor: [entry.dtype, list(entry.shape), hashlib.sha256(reader.read(tensor).tobytes()).hexdigest()]
        for tensor, entry in reader.entries.items()
    }
    assert found == expected["tensors"]


@pytest.mark.parametrize("name", FILES)
def test_the_second_decoder_reads_the_same(name: str) -> None:
    second, reader = Second(FILES[name], golden.BASES.get(name)), based(name)
    second.check_digest()
    told = {tensor: second.tensor(tensor) for tensor in second.names if tensor not in reader.references}
    found = {tensor: [dtype, list(shape), hashlib.sha256(x).hexdigest()] for tensor, (dtype, shape, x) in told.items()}
    assert found == EXPECTED[name]["tensors"]
    assert all(second.tensor(one)[2] == reader.read(one).tobytes() for one in reader.references)
    verify(FILES[name], reader.base, thorough=True)


def test_every_way_of_coding_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    methods, kinds, symbols = set(), set(), chunk._symbols
    monkeypatch.setattr(chunk, "_symbols", lambda data, *more: methods.add(data[0]) or symbols(data, *more))
    for name, path in FILES.items():
        reader, data = based(name), path.read_bytes()
        kinds |= {data[entry.offset] for entry in reader.entries.values() if entry.chunks}
        reader.check_digest()
    assert methods == {0, 1, 2, 3} and kinds == {0, 1}
    told = Reader(golden.ANSWER).entries
    assert {entry.dtype for entry in told.values()} == set(golden.DTYPES)
    assert all(name in told and f"{name}, fast" in told for name in golden.DTYPES)


def test_the_module_answers_as_it_did() -> None:
    net = lilliput.load(golden.MODULE, golden.Net())
    expected = np.array(EXPECTED[golden.MODULE.name]["output"])
    with torch.no_grad():
        close(net(golden.example()).reshape(-1).numpy(), expected, atol=2e-4)
    assert net.up.weight is not None and net.up._modules["weight_encoded"] is net.down._modules["weight_encoded"]
    assert net.gain.ne(1).all() and net.shift.any() and isinstance(net.norm, torch.nn.Identity)


def test_every_number_format_answers_as_it_did() -> None:
    net = lilliput.load(golden.FORMATS, golden.Formats())
    with torch.no_grad():
        out = net(golden.rows()).reshape(-1).numpy()
    close(out, EXPECTED[golden.FORMATS.name]["output"], atol=2e-4)
    held = {type(module.encoding).__name__ for module in net.modules() if hasattr(module, "encoding")}
    assert held | {"Sparse", "LowRank"} == ENCODINGS.keys()  # which are in other files


@pytest.mark.parametrize(
    ("file", "made"),
    [(golden.PRODUCTS, golden.Products), (golden.DIVIDED, golden.Products), (golden.PACKED, golden.Packed)],
    ids=lambda one: getattr(one, "stem", ""),
)
def test_they_answer_as_they_did_in_the_module_and_in_the_graph(file: Path, made: Any) -> None:
    expected = np.array(EXPECTED[file.name]["output"])
    for net in (lilliput.load(file, made()), lilliput.open(file, threads=1)):
        with torch.no_grad():
            close(net(golden.example()).reshape(-1).numpy(), expected, atol=2e-4)


def test_its_graph_answers_so_without_its_source() -> None:
    out = lilliput.open(golden.MODULE, threads=1)(golden.example())
    close(out.reshape(-1).numpy(), EXPECTED[golden.MODULE.name]["output"], share=0.02)  # integers inside


def test_what_travels_along_is_there() -> None:
    reader = Reader(golden.MODULE)
    assert read_asset(reader, "folder/config.json") == b'{"classes": 4}'
    assert read_asset(reader, "words.txt") == b"one two three " * 20
    assert reader.header["provenance"] == {"why": "a golden file"}
    references = reader.header["graph"]["initializers"].values()
    assert {kind for reference in references for kind in reference} == {"tensor", "transposed", "product", "quotient"}


def test_it_is_saved_again_as_the_same_tensors(tmp_path: Path) -> None:
    save(tmp_path / "again.lil", lilliput.load(golden.MODULE, golden.Net()))
    again, reader = Reader(tmp_path / "again.lil"), Reader(golden.MODULE)
    for name in again.entries:
        assert again.read(name).tobytes() == reader.read(name).tobytes(), name
    assert again.header["edits"] == reader.header["edits"] and again.header["aliases"] == reader.header["aliases"]


def of_version(version: int) -> bytes:
    """The golden module under another number, all else and the checksum right."""
    data = golden.MODULE.read_bytes()
    start = struct.pack("<8sII", b"LILLIPUT", version, 0)
    (length,) = struct.unpack_from("<Q", data, len(data) - 48)
    digest = hashlib.sha256(start + data[len(data) - 48 - length : len(data) - 48]).digest()
    return start + data[16:-40] + digest + data[-8:]


@pytest.mark.parametrize("version", [VERSION + 1, VERSION + 2, 255, 2**31, 2**32 - 1])
def test_a_newer_one_is_refused_by_its_number(version: int, tmp_path: Path) -> None:
    (tmp_path / "net.lil").write_bytes(of_version(version))
    for read in (Reader, lilliput.open, Second, lambda path: lilliput.load(path, golden.Net())):
        with pytest.raises(FormatError, match=rf"version {version}\b"):
            read(tmp_path / "net.lil")
    with pytest.raises(FormatError, match="update lilliput"):
        Reader(tmp_path / "net.lil")


@pytest.mark.parametrize("version", [0, 1])
def test_an_older_one_that_was_never_published_is_refused(version: int) -> None:
    for read in (Reader, Second):
        with pytest.raises(FormatError, match=f"version {version}"):
            read(of_version(version))


def test_a_file_of_version_1_is_refused_by_its_number() -> None:
    """As they were: the magic, tensors, the index as JSON, its length, its checksum, the magic again."""
    index = json.dumps({"version": 1, "header": {}, "tensors": []}).encode()
    data = (
        b"LILLIPUT" + bytes(64) + index + struct.pack("<Q", len(index)) + hashlib.sha256(index).digest() + b"LILLIPUT"
    )
    with pytest.raises(FormatError, match="format version 1"):
        Reader(data)


def test_this_one_is_read() -> None:
    assert Reader(of_version(2)).header == Reader(golden.MODULE).header


def test_a_number_that_its_header_does_not_need_is_refused() -> None:
    for read in (Reader, Second):
        with pytest.raises(FormatError, match=r"version"):
            read(of_version(VERSION))
