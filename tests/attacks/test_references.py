"""References that go in circles, to nowhere, or to the same place a million times: between files, names and graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import golden
import pytest
from torch import nn

import lilliput
from lilliput.errors import LilliputError
from lilliput.file.container import Reader
from lilliput.file.inspect import inside, verify
from lilliput.file.lil import read_into

GOLDEN = golden.MODULE.read_bytes()
TAKEN = forge.apart(GOLDEN)
DIGEST = TAKEN.index()["digest"]


def pointing(base: Any, references: Any, digest: str = "1" * 64, *entries: Any, body: bytes = b"") -> bytes:
    index = forge.index(*entries, base=base, references=references)
    return forge.sealed({**index, "digest": digest}, body)


BETWEEN: dict[str, tuple[bytes, str]] = {
    "a base that is itself": (pointing(DIGEST, {"x": "x"}, DIGEST), "no sound way"),
    "another base": (pointing("2" * 64, {"x": "gain"}), "needs the file"),
    "a base that is a list": (pointing([DIGEST], {"x": "gain"}), "no sound way"),
    "a base that is a number": (pointing(5, {"x": "gain"}), "no sound way"),
    "a base that is null": (pointing(None, {"x": "gain"}), "no sound way"),
    "references that are a list": (pointing(DIGEST, ["gain"]), "no sound way"),
    "references that are null": (pointing(DIGEST, None), "no sound way"),
    "a reference to nothing": (pointing(DIGEST, {"x": "nothing"}), "holds no tensor"),
    "a reference to a list": (pointing(DIGEST, {"x": ["gain"]}), "holds no tensor"),
    "a reference to an object": (pointing(DIGEST, {"x": {"x": "x"}}), "holds no tensor"),
    "a reference to itself": (pointing(DIGEST, {"x": "x"}), "holds no tensor"),
    "a reference to another reference": (pointing(DIGEST, {"x": "y", "y": "gain"}), "holds no tensor"),
    "a reference that names a tensor here": (
        pointing(DIGEST, {"x": "gain"}, "1" * 64, forge.entry("x", "uint8", (3,), b"\0abc"), body=b"\0abc"),
        "no sound way",
    ),
}


@pytest.mark.parametrize("kind", BETWEEN)
def test_between_files(kind: str, refused: Any) -> None:
    data, hint = BETWEEN[kind]
    refused(hint, Reader, data, Reader(GOLDEN))


def test_without_a_base_nothing_is_read_elsewhere(refused: Any) -> None:
    refused("needs the file", Reader, pointing(DIGEST, {"x": "gain"}))
    refused("needs the file", inside, pointing(DIGEST, {"x": "gain"}))


def test_a_sound_reference_is_read() -> None:
    reader = Reader(pointing(DIGEST, {"x": "gain"}), Reader(GOLDEN))
    assert (reader.read("x") == Reader(GOLDEN).read("gain")).all()


def test_a_base_that_only_claims_its_digest_is_refused(tmp_path: Path, refused: Any) -> None:
    """The digest is all that a file says of its base; a base made to deceive has right checksums too."""
    index = TAKEN.index()
    entry = next(entry for entry in index["tensors"] if entry["name"] == "last.bias")
    chunk = b"\0" + bytes(16)
    entry["chunks"], entry["checks"] = [len(chunk)], forge.check(chunk)
    forged = forge.sealed(index, b"".join({**TAKEN.chunks, "last.bias": chunk}.values()))
    tensors = index["tensors"]
    names = {entry["name"]: entry["name"] for entry in tensors if not entry["name"].startswith((":graph", ":asset"))}
    told = {**index["header"], "base": DIGEST, "references": names, "assets": {}, "graph": None}
    data = forge.sealed({"header": told, "tensors": [], "digest": hashlib.sha256().hexdigest()})
    read_into(Reader(data, Reader(GOLDEN)), golden.Net())
    assert Reader(forged).digest == DIGEST
    refused("not those that were written", read_into, Reader(data, Reader(forged)), golden.Net())
    refused("not those that were written", verify, data, Reader(forged))


def test_files_that_refer_to_each_other_are_refused(refused: Any) -> None:
    one, two = pointing("2" * 64, {"x": "y"}, "1" * 64), pointing("1" * 64, {"y": "x"}, "2" * 64)
    refused("needs the file", lambda: Reader(one, Reader(two)))


# Within the header of a module


def header(change: Callable[[dict[str, Any]], Any]) -> bytes:
    index = TAKEN.index()
    change(index["header"])
    return forge.sealed(index, TAKEN.body)


def put(key: str, value: Any) -> bytes:
    return header(lambda header: header.update({key: value}))


def into(key: str, **more: Any) -> bytes:
    return header(lambda header: header[key].update(more))


def edit(**more: Any) -> bytes:
    """Another tensor, or none, for a part of the edit of the tied tensor."""
    return header(lambda header: header["edits"][4].update(more))


TIED = {"codes": "up.weight_encoded.codes", "scale.codes": "up.weight_encoded.scale.codes"}
assert TAKEN.index()["header"]["edits"][4]["tensors"] == TIED

WITHIN: dict[str, tuple[bytes, str]] = {
    "an alias of itself": (into("aliases", x="x"), "holds no tensor 'x'"),
    "an alias of an alias": (into("aliases", x="y", y="gain"), "holds no tensor 'y'"),
    "aliases in a circle": (into("aliases", x="y", y="x"), "holds no tensor"),
    "an alias of nothing": (into("aliases", x="nothing"), "holds no tensor 'nothing'"),
    "an alias of a list": (into("aliases", x=["gain"]), "holds no tensor"),
    "an alias in place of a tensor": (into("aliases", gain="shift"), "as a tensor and as the name of another"),
    "an alias of the graph": (into("aliases", x=":graph"), "holds no tensor ':graph'"),
    "an alias of a file": (into("aliases", x=":asset:words.txt"), "holds no tensor"),
    "an alias that nobody wants": (into("aliases", x="gain"), "the module lacks 'x'"),
    "aliases that are a list": (put("aliases", [["x", "gain"]]), "no dict of aliases"),
    "aliases that are not there": (put("aliases", None), "no dict of aliases"),
    "a buffer that is not there": (put("buffers", ["nothing"]), "holds no tensor"),
    "a buffer that is a list": (put("buffers", [["gain"]]), "holds no tensor"),
    "a buffer that is none": (put("buffers", ["fc.bias"]), "no such buffer|lacks"),
    "buffers that are an object": (put("buffers", {"gain": 1}), "no list of buffers"),
    "no buffers": (put("buffers", []), "the module lacks 'gain'"),
    "an edit of a tensor that is not there": (edit(tensors={**TIED, "codes": "nothing"}), "holds no tensor"),
    "an edit of a list": (edit(tensors={**TIED, "codes": ["gain"]}), "holds no tensor"),
    "an edit of the graph": (edit(tensors={**TIED, "codes": ":graph"}), "holds no tensor ':graph'"),
    "an edit of itself": (edit(tensors={"codes": "codes"}), "holds no tensor 'codes'"),
    "an edit without parts": (edit(tensors={}), "do not fit together"),
    "an edit with half its parts": (edit(tensors={"codes": TIED["codes"]}), "do not fit together"),
    "an edit with parts in each other's place": (
        edit(tensors={"codes": TIED["scale.codes"], "scale.codes": TIED["codes"]}),
        "do not fit together",
    ),
    "parts that are a list": (edit(tensors=list(TIED)), "an edit cannot be read"),
    "no parts": (edit(tensors=None), "an edit cannot be read"),
}


@pytest.mark.parametrize("kind", WITHIN)
def test_within_a_module(kind: str, refused: Any) -> None:
    data, hint = WITHIN[kind]
    refused(hint, read_into, Reader(data), golden.Net())


def test_a_file_of_another_kind_is_no_module(refused: Any) -> None:
    for kind in ("answer", "checkpoint"):
        refused("no module", read_into, Reader(put("kind", kind)), golden.Net())
    refused("no module", lilliput.load, golden.ANSWER, nn.Identity())


# One tensor under a million names


def amplified() -> Any:
    """A hundred thousand names for a tensor of 250 MB in another file."""
    chunk, count = b"\1\3\0", 250 << 20
    number = count >> 20
    entry = {**forge.entry("x", "uint8", (count,)), "chunks": [3] * number, "checks": forge.check(chunk) * number}
    base = Reader(forge.sealed({**forge.index(entry), "digest": "2" * 64}, chunk * number))
    data = pointing("2" * 64, {f"x{i}": "x" for i in range(10_000)})
    return Reader(data, base)


def renamed() -> Any:
    """Ten thousand aliases of one tensor."""
    data = header(lambda header: header["aliases"].update({f"x{i}": "gain" for i in range(10_000)}))
    return read_into(Reader(data), golden.Net())


CAPPED = {"references": amplified, "aliases": renamed}


def test_a_million_references_to_one_tensor_are_refused(capped: Any) -> None:
    capped("references", "bytes of tensors elsewhere")


def test_aliases_take_no_memory(capped: Any) -> None:
    capped("aliases", "the module lacks")


def test_a_file_is_not_its_own_base(tmp_path: Path) -> None:
    path = tmp_path / "x.lil"
    path.write_bytes(pointing(DIGEST, {"x": "x"}, DIGEST))
    with pytest.raises(LilliputError):
        lilliput.load(path, golden.Net(), base=path)
