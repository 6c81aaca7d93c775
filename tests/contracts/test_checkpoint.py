"""Checkpoints: packed and unpacked byte for byte, within little memory, and no file leads out of its folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from lilliput.cli import checkpoint as commands
from lilliput.entropy import CODERS
from lilliput.errors import FormatError, InputError, LilliputError
from lilliput.file import checkpoint
from lilliput.file.checkpoint import Packed, pack, unpack
from lilliput.file.container import Part, Reader, write
from lilliput.file.sources import source

TYPES = {  # of safetensors: bytes of an element
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 1),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **{"F4": 0.5, "F6_E2M3": 0.75, "F6_E3M2": 0.75},
}


def stored(tensors: Mapping[str, tuple[str, list[int], bytes]], metadata: Any = None, pad: int = 0) -> bytes:
    """A safetensors file of tensors given as type, shape and bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"data_offsets": [at, at + len(data)], "shape": shape, "dtype": dtype}
        at += len(data)
    text = json.dumps(header, ensure_ascii=False).encode() + b" " * pad
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def noise(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def small(seed: int = 0) -> bytes:
    return stored({"a.weight": ("F32", [3, 4], noise(48, seed)), "steps": ("I64", [], noise(8, seed))})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def again(folder: Path, **settings: Any) -> tuple[Packed, dict[str, bytes]]:
    """What was packed, and the files that come back; checks them against one another."""
    lil, out = folder.with_suffix(".lil"), folder.with_name("again")
    packed = pack(folder, lil, **settings)
    unpacked = unpack(lil, out)
    found = contents(out)
    assert packed.files == unpacked.files == tuple(sorted(found))
    assert packed.bytes_after == unpacked.bytes_before == lil.stat().st_size
    assert packed.bytes_before == unpacked.bytes_after == sum(map(len, found.values()))
    return packed, found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in two shards, with what lies beside one."""
    folder = tmp_path / "net"
    (folder / "tokenizer" / "deep").mkdir(parents=True)
    shards = {"model-00001-of-00002.safetensors": small(1), "model-00002-of-00002.safetensors": small(2)}
    for name, data in shards.items():
        (folder / name).write_bytes(data)
    index = {"metadata": {"total_size": 112}, "weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"hidden": 4}')
    (folder / "tokenizer" / "vocab.txt").write_text("größe\n" * 1000, encoding="utf-8")
    (folder / "tokenizer" / "deep" / "empty").touch()
    (folder / ".gitattributes").write_bytes(b"\r\n")
    (folder / "größe 2.txt").write_bytes(b"\xff\x00")
    return folder


@pytest.mark.parametrize("coder", CODERS)
def test_every_type_comes_back(coder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    tensors = {}
    for dtype, size in TYPES.items():
        whole = noise(int(20_000 * size)) if dtype != "BOOL" else bytes(i % 3 == 0 for i in range(20_000))
        for kind, count in {"matrix": 20_000, "scalar": 4, "few": 8, "none": 0}.items():
            shape = {"matrix": [100, 200], "scalar": [] if size >= 1 else [4], "few": [2, 4], "none": [3, 0]}[kind]
            taken = 1 if kind == "scalar" and size >= 1 else count
            tensors[f"{dtype}.{kind}"] = (dtype, shape, whole[: int(taken * size)])
    tensors["BOOL.others"] = ("BOOL", [300], noise(300))
    specials = [0x8000, 0x7FC1, 0xFF80, 0x7F81, 0x0001, 0xFFFF]  # -0, NaN of several payloads, -inf, subnormal
    tensors["bf16.specials"] = ("BF16", [6], np.array(specials, "<u2").tobytes())
    tensors["f32.specials"] = ("F32", [6], np.array([n << 16 | 1 for n in specials], "<u4").tobytes())
    tensors["constant"] = ("F16", [3000], b"\x00\x3c" * 3000)
    tensors["smooth"] = ("F32", [20_000], np.random.default_rng(1).normal(size=20_000).astype("<f4").tobytes())
    (folder / "a.safetensors").write_bytes(stored(tensors, {"format": "pt", "größe": "1"}, pad=5))
    (folder / "b.safetensors").write_bytes(stored({}))
    packed, found = again(folder, coder=coder)
    assert found == contents(folder)
    assert packed.bytes_after < packed.bytes_before
    Reader(packed.path).check_digest()
    held = source(packed.path)
    assert held.dtype("BF16.matrix").name == "bfloat16" and held.dtype("BOOL.matrix") == np.bool_
    assert held.shape("BOOL.others") == (300,) and held.dtype("BOOL.others") == np.uint8


@pytest.mark.parametrize("coder", CODERS)
def test_a_folder_comes_back(coder: Any, folder: Path) -> None:
    packed, found = again(folder, coder=coder)
    assert found == contents(folder) and packed.left_out == ()
    assert source(packed.path).names() == [
        f"model-0000{i}-of-00002.safetensors:{name}" for i in (1, 2) for name in ("a.weight", "steps")
    ]


def test_a_single_file_comes_back(folder: Path, tmp_path: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    packed = pack(str(file), str(tmp_path / "one.lil"))
    assert packed.files == (file.name,) and source(packed.path).names() == ["a.weight", "steps"]
    assert unpack(packed.path, tmp_path / "out").files == (file.name,)
    assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_tensors_of_several_chunks_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(stored({"a": ("U8", [5 << 19], bytes(1 << 20) + noise(3 << 19))}))
    (folder / "asset").write_bytes(noise((1 << 20) + 1))
    told: list[tuple[int, int]] = []
    _, found = again(folder, progress=lambda done, total: told.append((done, total)))
    assert found == contents(folder)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == told[-1][1] == sum(map(len, found.values()))


def test_the_same_bytes_when_packed_twice(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(folder, tmp_path / f"{name}.lil")
    assert (tmp_path / "one.lil").read_bytes() == (tmp_path / "two.lil").read_bytes()


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "snapshots" / "main"
    cache.mkdir(parents=True)
    for path in folder.iterdir():
        (cache / path.name).symlink_to(os.path.relpath(path, cache), target_is_directory=path.is_dir())
    packed, found = again(cache)
    assert found == contents(folder) and not any(path.is_symlink() for path in packed.path.parent.rglob("again/*"))
    (cache / "again").symlink_to(cache, target_is_directory=True)
    with pytest.raises(InputError, match="leads back"):
        pack(cache, tmp_path / "x.lil")
    (cache / "again").unlink()
    (cache / "lost").symlink_to("nowhere")
    with pytest.raises(InputError, match="link to nothing"):
        pack(cache, tmp_path / "x.lil")
    assert pack(cache, tmp_path / "x.lil", without=["lost"]).left_out == ("lost",)


def test_what_is_left_out_is_said(folder: Path) -> None:
    (folder / ".git" / "objects").mkdir(parents=True)
    (folder / ".git" / "config").write_text("token")
    (folder / "tokenizer" / "old.bin").write_bytes(b"pickled")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    before = contents(folder)
    packed, found = again(folder, without=["*.bin", "onnx/", "tokenizer/deep/*", "no such thing"])
    assert packed.left_out == (".git/", "onnx/", "tokenizer/deep/empty", "tokenizer/old.bin")
    assert found == {name: data for name, data in before.items() if not name.startswith(packed.left_out)}


@pytest.mark.parametrize("name", ["a.bin", "deep/b.PT", "c.pth", "d.ckpt", "e.pkl", "f.pickle", "g.joblib"])
def test_pickles_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"anything")
    with pytest.raises(InputError, match=r"pickles can run code.*convert to safetensors.*--without") as caught:
        pack(folder, tmp_path / "x.lil")
    assert name in str(caught.value) and not (tmp_path / "x.lil").exists()
    with pytest.raises(InputError, match="pickles"):
        pack(folder / name, tmp_path / "x.lil")


def test_what_cannot_be_packed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.lil"
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no such file"):
        pack(tmp_path / "nowhere", out)
    with pytest.raises(InputError, match="no safetensors file"):
        pack(tmp_path / "none", out)
    with pytest.raises(InputError, match="no safetensors file"):
        pack(folder, out, without=["*.safetensors"])
    with pytest.raises(InputError, match="did you mean 'dense'"):
        pack(folder, out, coder="dens")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is a folder"):
        pack(folder, tmp_path)
    (folder / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"b\.safetensors: is not a sound safetensors file"):
        pack(folder, out)
    assert not out.exists()


@pytest.mark.parametrize(
    "name", ["a:b", "a\\b", "line\nbreak", "dot.", "space ", "what?", b"\xff".decode(errors="surrogateescape")]
)
def test_names_that_other_systems_cannot_hold_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).touch()
    with pytest.raises(InputError, match=r"cannot be packed.*--without"):
        pack(folder, tmp_path / "x.lil")
    assert pack(folder, tmp_path / "x.lil", without=[name]).left_out == (name,)


def test_names_that_differ_in_case_alone_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "Config.JSON").touch()
    if len({path.name.lower() for path in folder.iterdir()}) == len(list(folder.iterdir())):
        pytest.skip("this file system takes both names for one")
    with pytest.raises(InputError, match=r"beside 'Config\.JSON' cannot be packed"):
        pack(folder, tmp_path / "x.lil")


def test_an_output_inside_the_folder(folder: Path) -> None:
    before = contents(folder)
    out = folder / "net.lil"
    assert pack(folder, out).left_out == ()
    assert pack(folder, out).left_out == ("net.lil",)
    unpack(out, folder.with_name("again"))
    assert contents(folder.with_name("again")) == before
    with pytest.raises(InputError, match="would be overwritten"):
        pack(folder, folder / "model-00001-of-00002.safetensors")
    out.unlink()
    assert contents(folder) == before


def test_an_asset_that_is_no_file_of_ours_may_end_like_one(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "a.SAFETENSORS").write_bytes(small())
    (tmp_path / "net" / "other.lil").write_bytes(b"anything")
    _, found = again(tmp_path / "net")
    assert found == contents(tmp_path / "net")


# Unpacking


@pytest.fixture
def lil(folder: Path) -> Path:
    path = folder.with_suffix(".lil")
    pack(folder, path)
    return path


def test_files_that_are_there_already(lil: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "tokenizer").mkdir(parents=True)
    (out / "own.txt").write_text("mine")
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    untouched = (out / "config.json").stat().st_ino
    unpack(lil, out)
    unpack(lil, out)
    assert contents(out) == {**contents(folder), "own.txt": b"mine"}
    assert (out / "config.json").stat().st_ino == untouched


@pytest.mark.parametrize(
    "way", ["other content", "other size", "folder for file", "file for folder", "link to nothing"]
)
def test_nothing_is_overwritten(way: str, lil: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if way == "other content":
        (out / "config.json").write_text('{"hidden": 5}')
    elif way == "other size":
        (out / "config.json").write_text("{}")
    elif way == "folder for file":
        (out / "config.json").mkdir()
    elif way == "file for folder":
        (out / "tokenizer").write_text("a")
    else:
        (out / "config.json").symlink_to("nowhere")
    before = (sorted(os.listdir(out)), contents(out))
    with pytest.raises(InputError, match="is there already"):
        unpack(lil, out)
    assert (sorted(os.listdir(out)), contents(out)) == before


def test_a_link_out_of_the_folder_is_not_followed(lil: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(InputError, match="through a link"):
        unpack(lil, tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_target_that_is_a_file(lil: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a")
    for target in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(InputError, match=r"no folder|cannot be written"):
            unpack(lil, target)


def test_a_stop_leaves_nothing(lil: Path, folder: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for target in (tmp_path / "new", folder):
        before = contents(folder)
        (folder / "config.json").unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            unpack(lil, target, stop)
        assert not (tmp_path / "new").exists()
        assert contents(folder) == {name: data for name, data in before.items() if name != "config.json"}
    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "x.lil", progress=stop)
    assert not [path for path in tmp_path.iterdir() if "x.lil" in path.name]


def test_a_damaged_file_leaves_nothing(lil: Path, tmp_path: Path) -> None:
    data = bytearray(lil.read_bytes())
    data[40] ^= 1
    lil.write_bytes(data)
    with pytest.raises(FormatError, match="checksum"):
        unpack(lil, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _reheaded(lil: Path, change: Callable[[dict[str, Any]], Any], out: Path) -> Path:
    """The same tensors under a changed header."""
    reader = Reader(lil)
    header = json.loads(json.dumps(reader.header))
    change(header)
    write(out, header, [Part.of(name, reader.read(name)) for name in reader.entries])
    return out


def _renamed(path: str) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header["files"][0]["path"] = path

    return change


ESCAPES = (
    *("../x", "/abs", "C:\\x", "C:x", "c:/x", "a//b", ".", "..", "a/./b", "a/../b", "a/..", "", "/", "a/", "./a"),
    *("a\\b", "..\\x", "x\0y", "x\ny", "trailing.", "a./b", "trailing ", "a /b", "...", "\\\\host\\share", "a" * 5000),
    *(
        "x\ud800",
        "//host/share",
        "CONFIG.json",
        "config.json",
        "config.json/a",
        "Config.JSON/a",
        "tokenizer",
        "TOKENIZER",
    ),
    *(0, None, ["a"]),
)


@pytest.mark.parametrize("path", ESCAPES)
def test_paths_that_lead_elsewhere_are_refused(path: Any, lil: Path, tmp_path: Path) -> None:
    forged = _reheaded(lil, _renamed(path), tmp_path / "forged.lil")
    before = contents(tmp_path)
    with pytest.raises(FormatError):
        unpack(forged, tmp_path / "deep" / "out")
    assert contents(tmp_path) == before and not (tmp_path / "deep").exists()


@pytest.mark.parametrize("path", [path for path in ESCAPES if isinstance(path, str) and path != "config.json"])
def test_paths_of_assets_are_as_strict(path: str, tmp_path: Path) -> None:
    assets = {name: f":asset:{name}" for name in ("config.json", "tokenizer/a", path[:2000])}
    parts = [Part.of(name, np.frombuffer(b"abc", np.uint8)) for name in assets.values()]
    write(tmp_path / "forged.lil", {"kind": "checkpoint", "files": [], "assets": assets}, parts)
    with pytest.raises(FormatError):
        unpack(tmp_path / "forged.lil", tmp_path / "out")
    assert not (tmp_path / "out").exists()


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a module": (lambda h: h.update(kind="module"), "lp.load"),
    "an answer": (lambda h: h.update(kind="answer"), "'answer', no checkpoint"),
    "no kind": (lambda h: h.pop("kind"), "no checkpoint|of kind None"),
    "no files": (lambda h: h.pop("files"), "list of files"),
    "files of another kind": (lambda h: h.update(files={}), "list of files"),
    "a file of another kind": (lambda h: h.update(files=["a"]), "list of files"),
    "a further field": (lambda h: h["files"][0].update(mode=0o777), "list of files"),
    "a missing field": (lambda h: h["files"][0].pop("head"), "list of files"),
    "tensors of another kind": (lambda h: h["files"][0].update(tensors="abc"), "list of files"),
    "names of another kind": (lambda h: h["files"][0].update(tensors=[0]), "list of files"),
    "a head of another kind": (lambda h: h["files"][0].update(head=None), "list of files"),
    "a tensor that is not there": (lambda h: h["files"][0]["tensors"].append("x"), "no tensor 'x'"),
    "a tensor used twice": (lambda h: h["files"][0]["tensors"].append(h["files"][1]["tensors"][0]), "twice"),
    "a head used twice": (lambda h: h["files"][0].update(head=h["files"][1]["head"]), "twice"),
    "a file twice": (lambda h: h["files"][0].update(path=h["files"][1]["path"]), "twice"),
    "a tensor of no file": (lambda h: h["files"][0]["tensors"].pop(), "belong to no file"),
    "a head that is a tensor": (
        lambda h: h["files"][0].update(head=h["files"][0]["tensors"][0], tensors=[h["files"][0]["head"]]),
        "holds no bytes",
    ),
    "tensors of another file": (
        lambda h: (
            h["files"][0].update(tensors=[h["files"][0]["tensors"].pop(), *h["files"][1]["tensors"]])
            or h["files"][1].update(tensors=[])
        ),
        "belong to no file|safetensors",
    ),
    "no sound file": (
        lambda h: h["files"][1]["tensors"].append(h["files"][0]["tensors"].pop()),
        "not a sound safetensors file",
    ),
    "assets of another kind": (lambda h: h.update(assets=[]), "list of files"),
    "an asset elsewhere": (lambda h: h["assets"].update(**{"config.json": ":asset:.gitattributes"}), "asset"),
    "an asset that is not there": (lambda h: h["assets"].update(x=":asset:x"), "no tensor ':asset:x'"),
    "another base": (lambda h: h.update(base="0" * 64, references={"x": "y"}), "needs the file"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_are_not_sound_are_refused(kind: str, lil: Path, tmp_path: Path) -> None:
    change, why = HEADERS[kind]
    forged = _reheaded(lil, change, tmp_path / "forged.lil")
    with pytest.raises(FormatError, match=why):
        unpack(forged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_digest_is_refused(lil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Reader):
        def __init__(self, file: Any) -> None:
            super().__init__(file)
            self.digest = hashlib.sha256().hexdigest()

    monkeypatch.setattr(checkpoint, "Reader", Other)
    with pytest.raises(FormatError, match="not those that were written"):
        unpack(lil, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_may_lie_in_any_order(lil: Path, folder: Path, tmp_path: Path) -> None:
    reader = Reader(lil)
    parts = [Part.of(name, reader.read(name)) for name in reversed(reader.entries)]
    write(tmp_path / "other.lil", reader.header, parts)
    unpack(tmp_path / "other.lil", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.lil").write_bytes(b"nothing")
    for path in (tmp_path / "a.lil", tmp_path / "b.lil"):
        with pytest.raises(LilliputError):
            unpack(path, tmp_path / "out")


# Memory


MEASURED = """
import sys
from pathlib import Path
from lilliput.file.checkpoint import pack, unpack

{"pack": lambda a, b: pack(a, b, "fast"), "unpack": unpack}[sys.argv[1]](*sys.argv[2:])
assert "torch" not in sys.modules
status = Path("/proc/self/status")
if status.exists():  # what getrusage tells includes the process that this one was forked from
    print(next(int(line.split()[1]) // 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")))
else:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1 << 10))
"""


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def test_memory_stays_small(tmp_path: Path) -> None:
    """A file of 300 MB, one tensor and an asset of 50 MB, in under 250 MB at the peak."""
    values = np.random.default_rng(0).normal(size=1 << 20).astype("<f4").view("<u4") >> 16
    chunk = np.where(np.arange(1 << 20) % 3 == 0, values, 0).astype("<u2").tobytes()  # bfloat16, two of three are 0
    folder = tmp_path / "net"
    folder.mkdir()
    header = json.dumps({"a": {"dtype": "BF16", "shape": [150, 1 << 20], "data_offsets": [0, 150 << 21]}}).encode()
    with open(folder / "a.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(150):
            file.write(chunk)
    (folder / "asset").write_bytes(chunk * 25)
    peaks = {}
    for verb, arguments in {"pack": ("net", "net.lil"), "unpack": ("net.lil", "again")}.items():
        command = [sys.executable, "-c", MEASURED, verb, *(str(tmp_path / name) for name in arguments)]
        peaks[verb] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert _digest(folder / "a.safetensors") == _digest(tmp_path / "again" / "a.safetensors")
    assert all(peak < 250 for peak in peaks.values()), peaks


# The commands


@pytest.fixture
def lilliput() -> Callable[..., Any]:
    app = typer.Typer()
    app.command("pack")(commands.pack_command)
    app.command("unpack")(commands.unpack_command)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)


def test_the_commands(lilliput: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    (folder / "old.bin").write_bytes(b"pickled")
    lil, out = tmp_path / "x.lil", tmp_path / "out"
    refused = lilliput("pack", folder, "-o", lil)
    assert refused.exit_code == 2 and "error: " in refused.stderr and "old.bin" in refused.stderr
    assert not refused.stdout and not lil.exists()
    done = lilliput("pack", folder, "-o", lil, "--without", "*.bin", "--without", "config.json", "--coder", "fast")
    assert done.exit_code == 0, done.stderr
    first, *left = done.stdout.splitlines()
    assert first.startswith(f"{lil}: 7 files, 8,505 bytes → ") and "% packed" in first
    assert left == ["left out: config.json", "left out: old.bin"]
    assert "packing, MB" in done.stderr
    done = lilliput("unpack", lil, "-o", out)
    assert done.exit_code == 0 and done.stdout.startswith(f"{out}: 7 files, ") and "unpacking, MB" in done.stderr
    assert contents(out).keys() == contents(folder).keys() - {"old.bin", "config.json"}
    (out / "größe 2.txt").write_bytes(b"??")
    assert lilliput("unpack", lil, "-o", out).exit_code == 2


def test_the_commands_as_json(lilliput: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    lil, out = tmp_path / "x.lil", tmp_path / "out"
    told = json.loads(lilliput("pack", folder, "-o", lil, "--without", "config*", "--json").stdout)
    assert told["left_out"] == ["config.json"] and len(told["files"]) == 7
    assert told["ratio"] == told["bytes_after"] / told["bytes_before"] == lil.stat().st_size / told["bytes_before"]
    back = json.loads(lilliput("unpack", lil, "-o", out, "--json").stdout)
    assert (back["path"], back["ratio"], back["files"]) == (str(out), told["ratio"], told["files"])


def test_the_commands_do_not_import_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lilliput.cli.checkpoint import pack, unpack; "
        "at = Path(sys.argv[1]); pack(at / 'net', at / 'x.lil'); unpack(at / 'x.lil', at / 'out'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    assert contents(tmp_path / "out") == contents(folder)


def test_a_stopped_command(lilliput: Callable[..., Any], folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "pack", stop)
    done = lilliput("pack", folder, "-o", tmp_path / "x.lil")
    assert done.exit_code == 130 and "stopped; nothing was written" in done.stderr


def test_megabytes_are_shown_once_each() -> None:
    shown: list[tuple[str, int, int]] = []
    told = commands.in_megabytes(lambda *args: shown.append(args), "packing")
    for done in (10, 2_000_000, 2_000_001, 3_000_000, 3_600_000, 3_700_000):
        told(done, 3_700_000)
    assert shown == [("packing", n, 3) for n in (0, 2, 3)]


def test_what_killed_runs_left_is_cleared_away(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "net.lil")
    (folder / ".net.lil.0a1b2c3d.part").write_bytes(b"half of it")
    pack(folder, folder / "net.lil")
    assert (folder / "net.lil").read_bytes() == (tmp_path / "net.lil").read_bytes()
    left = tmp_path / "out" / ".folder.0a1b2c3d.part"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / "0").write_bytes(b"half of it")
    unpack(tmp_path / "net.lil", tmp_path / "out")
    assert not [*folder.glob(".*.part"), *(tmp_path / "out").glob(".*.part")]
