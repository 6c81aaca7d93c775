"""Sources: the same tensors from a module, safetensors files and a `.lil`, in slices too; unsound files refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lilliput import Int
from lilliput.errors import FormatError, InputError, LilliputError
from lilliput.file.container import Part, write
from lilliput.file.sources import Folder, Safetensors, Source, source, walk
from lilliput.model.carrier.carrier import attach

DTYPES: dict[str, tuple[Any, int]] = {  # of safetensors: what it is read as, and bits of an element
    "F64": (np.float64, 64),
    "F32": (np.float32, 32),
    "F16": (np.float16, 16),
    "BF16": (ml_dtypes.bfloat16, 16),
    "F8_E4M3": (ml_dtypes.float8_e4m3fn, 8),
    "F8_E5M2": (ml_dtypes.float8_e5m2, 8),
    **{f"I{bits}": (f"i{bits // 8}", bits) for bits in (8, 16, 32, 64)},
    **{f"U{bits}": (f"u{bits // 8}", bits) for bits in (8, 16, 32, 64)},
    "BOOL": (np.bool_, 8),
    **{name: (None, 8) for name in ("F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F9_OF_TOMORROW")},
    **{"F4": (None, 4), "F6_E2M3": (None, 6), "F6_E3M2": (None, 6), "C64": (None, 64)},
}


def stored(header: Any, data: bytes = b"", pad: bytes = b"") -> bytes:
    """A safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text + pad).to_bytes(8, "little") + text + pad + data


def one(dtype: str = "U8", shape: tuple[int, ...] = (4,), offsets: Any = (0, 4), data: bytes = b"abcd") -> bytes:
    return stored({"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}, data)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_of_safetensors(dtype: str, tmp_path: Path) -> None:
    kind, bits = DTYPES[dtype]
    data = np.random.default_rng(0).integers(0, 256 if dtype != "BOOL" else 2, 24 * bits // 8, np.uint8).tobytes()
    (tmp_path / "a.safetensors").write_bytes(one(dtype, (2, 12), (0, len(data)), data))
    held = source(tmp_path / "a.safetensors")
    if kind is None:
        assert held.dtype("a") == np.uint8 and held.shape("a") == (len(data),)
    else:
        assert held.dtype("a") == np.dtype(kind) and held.shape("a") == (2, 12)
        assert same(held.read("a", 5, 9), np.frombuffer(data, kind)[5:9])
    assert held.read("a").shape == held.shape("a") and held.read("a").tobytes() == data


def test_truth_values_of_other_bytes_are_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(one("BOOL", (2, 2), (0, 4), b"\0\1\1\2"))
    held = source(tmp_path / "a.safetensors")
    assert held.dtype("a") == np.uint8 and held.shape("a") == (4,) and held.read("a").tobytes() == b"\0\1\1\2"


@pytest.mark.parametrize("shape", [(0, 1 << 60), (1,) * 65, (0,) * 70, (1 << 47, 1 << 47, 0)])
def test_shapes_that_a_lil_cannot_say_are_bytes(shape: tuple[int, ...], tmp_path: Path) -> None:
    size = math.prod(shape)
    (tmp_path / "a.safetensors").write_bytes(one("U8", shape, (0, size), b"a" * size))
    held = source(tmp_path / "a.safetensors")
    assert held.dtype("a") == np.uint8 and held.read("a").shape == held.shape("a") == (size,)


def _net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    net.register_buffer("mask", torch.tensor([[True], [False]]))
    net.register_buffer("halves", torch.tensor([[1.5, -0.0], [math.nan, math.inf]], dtype=torch.bfloat16).t())
    net.register_buffer("eighth", torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn))
    net.register_buffer("scalar", torch.tensor(7.0, dtype=torch.float64))
    net.register_buffer("empty", torch.empty(3, 0))
    return net.eval()


def _lil(net: nn.Module, path: Path) -> Path:
    held = source(net)
    write(path, {"kind": "module"}, [Part.of(name, held.read(name)) for name in held.names()])
    return path


def _sharded(net: nn.Module, folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    tensors = {name: x.contiguous() for name, x in net.state_dict().items()}
    save_file(dict(list(tensors.items())[:3]), folder / "one.safetensors")
    save_file(dict(list(tensors.items())[3:]), folder / "deep" / "two.safetensors")
    return folder


def _file(net: nn.Module, path: Path) -> Path:
    save_file({name: x.contiguous() for name, x in net.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("kind", ["module", "safetensors", "folder", "lil"])
def test_the_same_tensors_from_everywhere(kind: str, tmp_path: Path) -> None:
    net = _net()
    ways: dict[str, Callable[[], Any]] = {
        "module": lambda: net,
        "safetensors": lambda: _file(net, tmp_path / "net.safetensors"),
        "folder": lambda: str(_sharded(net, tmp_path / "net")),
        "lil": lambda: _lil(net, tmp_path / "net.lil"),
    }
    held, expected = source(ways[kind]()), net.state_dict()
    assert isinstance(held, Source) and source(held) is held
    assert sorted(held.names()) == sorted(expected)
    for name, x in expected.items():
        bits = x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        whole = held.read(name)
        assert whole.tobytes() == bits and whole.shape == tuple(x.shape) == held.shape(name)
        assert whole.dtype == held.dtype(name)
        for first, last in [(0, 1), (1, 3), (-2, None), (3, 1), (0, 10**6)]:
            assert same(held.read(name, first, last), whole.reshape(-1)[first:last])
    with pytest.raises(LilliputError, match="nowhere"):
        held.read("nowhere")


def test_encoded_tensors_come_as_they_are_stored() -> None:
    net = nn.Sequential(nn.Linear(6, 5))
    attach(net, ("0.weight",), Int(4).represent(net[0].weight.detach()))
    held = source(net)
    assert held.names() == list(net.state_dict()) and "0.weight" not in held.names()
    assert held.dtype("0.weight_encoded.codes") == np.int8 and held.shape("0.weight_encoded.scale") == (5,)


def test_types_that_a_module_may_not_have() -> None:
    net = nn.Linear(1, 1)
    net.register_buffer("odd", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(FormatError, match=r"odd: tensors of torch\.complex64"):
        source(net)


def test_a_name_in_two_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    shapes = {"a": (1,), "b/a": (2,)}
    for path, shape in shapes.items():
        tensor = {"dtype": "U8", "shape": shape, "data_offsets": [0, shape[0]]}
        tail = {"dtype": "U8", "shape": [0], "data_offsets": [shape[0]] * 2}
        header = {"twice": tensor, ":odd": tail, **({"a.safetensors:twice": tail} if path == "b/a" else {})}
        (tmp_path / f"{path}.safetensors").write_bytes(stored(header, b"x" * shape[0]))
    held = source(tmp_path)
    assert isinstance(held, Folder)
    assert set(held.names()) == {
        "a.safetensors::odd",
        "a.safetensors:twice:2",  # its name with the path is the name of another tensor
        "a.safetensors:twice",
        "b/a.safetensors::odd",
        "b/a.safetensors:twice",
    }
    assert held.shape("a.safetensors:twice:2") == (1,) and held.shape("b/a.safetensors:twice") == (2,)
    assert held.shape("a.safetensors:twice") == (0,)


def test_names_longer_than_a_lil_holds(tmp_path: Path) -> None:
    header = {f"{'n' * 5000}{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(3)}
    (tmp_path / "a.safetensors").write_bytes(stored(header, b"abc"))
    held = source(tmp_path)
    assert len(set(held.names())) == 3 and all(len(name) <= 4096 for name in held.names())
    assert b"".join(held.read(name).tobytes() for name in held.names()) == b"abc"


def test_what_nothing_can_be_read_from(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for thing, why in [
        (tmp_path / "a.txt", "nothing that tensors can be read from"),
        (tmp_path / "b.txt", "no such file"),
        (tmp_path, "no safetensors file"),
        (tmp_path / "b.safetensors", "cannot be read"),
        (3, "a int is nothing"),
    ]:
        with pytest.raises(InputError, match=why):
            source(thing)


_A = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
_ENTRY = b'{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
BAD = {
    "empty": (b"", "too short"),
    "short": (b"1234567", "too short"),
    "header past the end": ((100).to_bytes(8, "little") + b"{}", "past the end"),
    "pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "no object": (stored([1]), "does not begin"),
    "white space first": (stored(b" {}"), "does not begin"),
    "no JSON": (stored(b"{nothing"), "cannot be read"),
    "no UTF-8": (stored(b'{"\xff": 1}'), "cannot be read"),
    "too deep": (stored(b'{"a":' + b"[" * 100_000), "cannot be read"),
    "not a number": (stored(b'{"a": NaN}'), "cannot be read"),
    "a long number": (stored(b'{"a": ' + b"1" * 5000 + b"}"), "cannot be read"),
    "no header": (stored(b""), "does not begin"),
    "a name twice": (stored(b'{"a":' + _ENTRY + b',"a":' + _ENTRY + b"}", b"abcd"), "twice"),
    "a field twice": (stored(b'{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"abcd"), "twice"),
    "metadata twice": (stored(b'{"__metadata__":{"a":"b","a":"c"}}'), "twice"),
    "metadata of numbers": (stored({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata a list": (stored({"__metadata__": []}), "__metadata__"),
    "an entry that is none": (stored({"a": 4}), "data_offsets"),
    "no offsets": (stored({"a": {"dtype": "U8", "shape": [4]}}, b"abcd"), "data_offsets"),
    "three offsets": (one(offsets=(0, 4, 4)), "data_offsets"),
    "a negative offset": (one(offsets=(-4, 0)), "data_offsets"),
    "offsets of truth values": (one(shape=(1,), offsets=(False, True), data=b"a"), "data_offsets"),
    "offsets of floats": (one(offsets=(0.0, 4.0)), "data_offsets"),
    "offsets the wrong way": (one(offsets=(4, 0)), "overlaps"),
    "a gap at the start": (one(offsets=(1, 5), data=b"abcde"), "gap"),
    "a gap": (stored({"a": _A, "b": {**_A, "data_offsets": [5, 9]}}, b"x" * 9), "gap"),
    "an overlap": (stored({"a": _A, "b": {**_A, "data_offsets": [3, 7]}}, b"x" * 7), "overlaps"),
    "the same bytes twice": (stored({"a": _A, "b": _A}, b"x" * 4), "overlaps"),
    "bytes left over": (one(data=b"abcde"), "file has 5"),
    "bytes missing": (one(data=b"abc"), "file has 3"),
    "another size than the shape": (one(shape=(5,)), "does not take 4 bytes"),
    "another size than the type": (one("F32"), "does not take 4 bytes"),
    "half a byte": (one("F4", (7,)), "does not take 4 bytes"),
    "a product past all bounds": (one(shape=(2**62,) * 50_000), "does not take"),
    "a negative axis": (one(shape=(-4,)), "no shape"),
    "an axis of a float": (one(shape=(4.0,)), "no shape"),  # type: ignore[arg-type]
    "no type": (stored({"a": {"shape": [4], "data_offsets": [0, 4]}}, b"abcd"), "no dtype"),
    "a type that is a number": (one(4), "no dtype"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", BAD)
def test_unsound_files_are_refused(kind: str, tmp_path: Path) -> None:
    data, why = BAD[kind]
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match=why) as caught:
        source(tmp_path / "a.safetensors")
    assert "a.safetensors" in caught.value.where and caught.value.next


def test_a_header_larger_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # a hole, no bytes on the disk
    with pytest.raises(FormatError, match="more than 100,000,000"):
        source(path)


def test_what_the_library_writes_and_padding_and_any_order_are_read(tmp_path: Path) -> None:
    header = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [4, 6]},
        "__metadata__": {"format": "pt"},
        "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [4, 4]},
        "a": _A,
    }
    (tmp_path / "a.safetensors").write_bytes(stored(header, b"abcdef", b"   "))
    held = Safetensors(tmp_path / "a.safetensors")
    assert held.names() == ["a", "none", "b"] and held.read("b").tobytes() == b"ef"
    assert held.read("none").shape == (0, 3)
    (tmp_path / "b.safetensors").write_bytes(stored(b"{}"))
    assert source(tmp_path / "b.safetensors").names() == []


def test_a_file_cut_short_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(one())
    held = source(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match="became shorter"):
        held.read("a")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (folder / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "blob").write_bytes(one())
    (folder / "a.safetensors").symlink_to(elsewhere / "blob")
    (folder / "deep" / "linked").symlink_to(elsewhere, target_is_directory=True)
    assert list(walk(folder)[0]) == ["a.safetensors", "deep/linked/blob"]
    assert source(folder).read("a").tobytes() == b"abcd"
    (folder / "deep" / "back").symlink_to(folder, target_is_directory=True)
    with pytest.raises(InputError, match="leads back"):
        walk(folder)
    (folder / "deep" / "back").unlink()
    (folder / "itself").symlink_to("itself")
    with pytest.raises(InputError, match="link to nothing"):
        walk(folder)
    (folder / "itself").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        walk(folder)
    assert walk(folder, lambda path: path in ("pipe", "deep")) == (
        {"a.safetensors": folder / "a.safetensors"},
        ["deep/", "pipe"],
    )


def test_files_are_read_without_torch(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(one())
    code = (
        "import sys; from lilliput.file.sources import source; source(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
