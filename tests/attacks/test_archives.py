"""Archives in place of files, and file names that lead elsewhere."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import forge
import golden
import pytest

import lilliput
from lilliput.errors import LilliputError
from lilliput.file.assets import asset_names, read_asset
from lilliput.file.checkpoint import unpack
from lilliput.file.container import Reader
from lilliput.file.inspect import inside


def zipped(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(golden.MODULE, "../net.lil")
    return file.getvalue()


LIL = golden.MODULE.read_bytes()
ARCHIVES = {
    "zip": zipped(**{"../net.lil": LIL}),
    "zip bomb": zipped(index=bytes(1 << 24)),
    "zip after a .lil": LIL + zipped(a=b"b"),
    "zip before a .lil": zipped(a=b"b") + LIL,
    "zip around a .lil's ends": LIL[:16] + zipped(a=b"b") + LIL[-48:],
    "tar": tarred(),
    "a .lil twice": LIL + LIL,
    "a .lil with a space after it": LIL + b" ",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_is_refused(kind: str, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "net.lil").write_bytes(ARCHIVES[kind])
    for verb in (Reader, inside, lilliput.open, lambda path: lilliput.load(path, golden.Net())):
        refused("not a whole Lilliput file|do not fill the file", verb, tmp_path / "net.lil")
    assert [path.name for path in tmp_path.iterdir()] == ["net.lil"]


def test_a_folder_and_no_file_are_refused(tmp_path: Path, refused: Any) -> None:
    for path in (tmp_path, tmp_path / "none.lil", tmp_path / ("x" * 300)):
        refused("cannot be read", Reader, path)


OUTSIDE = [
    *("../x", "a/../../x", "..", ".", "a/./b", "a/..", "./x", "", "/", "a//b", "a/", "/abs", "//host/share", "~/../x/"),
    *("C:\\x", "C:/x", "c:x", "a\\..\\..\\x", "\\\\host\\share", "a\\b", "x:stream", "\\\\?\\C:\\x"),
    *("a\0b", "a\nb", "a\x1b[2Jb", "a\x7fb", "\x01", "a*", "a?", 'a"b', "a<b", "a|b"),
    *("a ", "a.", " a", "a /b", "a./b", "...", "a/ b", "x" * 1025, "a/" * 600 + "b"),
]


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: repr(name[:20]))
def test_a_file_that_leads_elsewhere_is_refused(name: str, tmp_path: Path, refused: Any) -> None:
    held = f":asset:{name}"
    entry = forge.entry(held, "uint8", (4,), b"\0evil")
    data = forge.sealed(forge.index(entry, assets={name: held}), b"\0evil")
    refused("a file called", asset_names, Reader(data))
    refused("a file called", read_asset, Reader(data), name)
    refused("a file called", inside, data)
    packed = checkpoint({name: b"evil"})
    before = everything(tmp_path.parent)
    (tmp_path / "net.lil").write_bytes(packed)
    refused("a file called", unpack, tmp_path / "net.lil", tmp_path / "out")
    (tmp_path / "net.lil").unlink()
    assert everything(tmp_path.parent) == before


@pytest.mark.parametrize("name", ["\ud800", "a\udcffb"])
def test_a_name_that_is_no_text_is_refused(name: str, refused: Any) -> None:
    held = f":asset:{name}"
    index = forge.index(forge.entry(held, "uint8", (4,), b"\0evil"), assets={name: held})
    refused("not a whole", Reader, forge.sealed(index, b"\0evil"))


def everything(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def checkpoint(held: dict[str, bytes], header: bytes = b"{}", **more: Any) -> bytes:
    """A checkpoint with an empty safetensors file, and others beside it."""
    chunks = {":head:net.safetensors": b"\0" + struct.pack("<Q", len(header)) + header}
    chunks |= {f":asset:{name}": b"\0" + data for name, data in held.items()}
    entries = [forge.entry(name, "uint8", (len(chunk) - 1,), chunk) for name, chunk in chunks.items()]
    described = {
        "kind": "checkpoint",
        "files": [{"path": "net.safetensors", "head": ":head:net.safetensors", "tensors": []}],
        "assets": {name: f":asset:{name}" for name in held},
    }
    index = forge.index(*entries, **{**described, **more})
    labels = (json.dumps([name, "uint8", [len(chunk) - 1]], separators=(",", ":")) for name, chunk in chunks.items())
    told = b"".join(label.encode() + chunk[1:] for label, chunk in zip(labels, chunks.values(), strict=True))
    index["digest"] = forge.hashlib.sha256(told).hexdigest()
    return forge.sealed(index, b"".join(chunks.values()))


def test_what_is_forged_here_would_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "net.lil").write_bytes(checkpoint({"a/b": b"c"}))
    unpack(tmp_path / "net.lil", tmp_path / "out")
    assert (tmp_path / "out" / "a" / "b").read_bytes() == b"c"


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (["a", "A"], "beside"),
        (["a", "a/b"], "beside"),
        (["\u00e9", "e\u0301"], "beside"),
        (["stra\u00dfe", "STRASSE"], "beside"),
        (["net.safetensors"], "twice"),
        (["NET.safetensors"], "beside"),
    ],
)
def test_names_that_are_one_to_some_systems_are_refused(
    files: list[str], hint: str, tmp_path: Path, refused: Any
) -> None:
    (tmp_path / "net.lil").write_bytes(checkpoint(dict.fromkeys(files, b"x")))
    refused(hint, unpack, tmp_path / "net.lil", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_link_leads_out_of_the_folder(tmp_path: Path, refused: Any) -> None:
    """A link that lay there before, by another archive say."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "net.lil").write_bytes(checkpoint({"link/x": b"evil"}))
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    refused("through a link", unpack, tmp_path / "net.lil", tmp_path / "out")
    (tmp_path / "out" / "link").unlink()
    (tmp_path / "out" / "link").mkdir()
    (tmp_path / "out" / "link" / "x").symlink_to(tmp_path / "elsewhere" / "x")
    refused("is there already", unpack, tmp_path / "net.lil", tmp_path / "out")
    assert everything(tmp_path / "elsewhere") == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_nothing_that_lay_there_is_overwritten(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "net.lil").write_bytes(checkpoint({"x": b"evil"}))
    out = tmp_path / "out"
    out.mkdir()
    (out / "x").write_bytes(b"mine")
    refused("is there already", unpack, tmp_path / "net.lil", out)
    assert (out / "x").read_bytes() == b"mine"
    (out / "x").unlink()
    os.mkfifo(out / "x")
    refused("is there already", unpack, tmp_path / "net.lil", out)


@pytest.mark.parametrize(
    "header",
    [b"{", b"[]", b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}', b"[" * 100_000],
)
def test_a_safetensors_file_that_is_none_is_not_unpacked(header: bytes, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "net.lil").write_bytes(checkpoint({}, header))
    refused("net.safetensors", unpack, tmp_path / "net.lil", tmp_path / "out")
    assert not (tmp_path / "out").exists()


HEADS: list[dict[str, Any]] = [
    {"files": None},
    {"files": {}},
    {"files": [[]]},
    {"files": [{}]},
    {"files": [{"path": "a", "head": "b", "tensors": []}]},
    {"files": [{"path": 5, "head": ":head:net.safetensors", "tensors": []}]},
    {"files": [{"path": "a", "head": ":head:net.safetensors", "tensors": [[]]}]},
    {"files": [{"path": "a", "head": ":head:net.safetensors", "tensors": [":head:net.safetensors"]}]},
    {"files": [{"path": "a", "head": [], "tensors": []}]},
    {"files": []},
    {"assets": []},
    {"assets": {"x": 5}},
    {"assets": {"x": ":asset:y"}},
    {"assets": {"x": ":head:net.safetensors"}},
    {"kind": "module"},
    {"kind": "answer"},
]


@pytest.mark.parametrize("more", HEADS, ids=str)
def test_a_checkpoint_without_sense_is_refused(more: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "net.lil").write_bytes(checkpoint({}, **more))
    with pytest.raises(LilliputError):
        unpack(tmp_path / "net.lil", tmp_path / "out")
    assert not (tmp_path / "out").exists()
