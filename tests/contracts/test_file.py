"""Edits as data, and the `.lil` file: what is read is bit for bit what was written, or it is refused."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zstandard
from torch import Tensor, nn

from lilliput.encodings import Encoding, Float16, Int, Sparse
from lilliput.errors import EncodingError, FormatError, LilliputError
from lilliput.file import load, save
from lilliput.file.container import MAGIC, Part, Reader, pack, unpack, write
from lilliput.model.carrier import encoded_tensors, to_dense, unfreeze
from lilliput.model.edits import EDITS, Edit, EncodeTensor, EncodeValue, Replace, SetTensor, State, Step
from lilliput.model.values import value_encodings
from lilliput.plain import from_plain, to_plain

if TYPE_CHECKING:
    from conftest import Carried

GRID = {"scale": torch.tensor(0.05), "offset": torch.tensor(128, dtype=torch.uint8)}


class Net(nn.Module):
    def __init__(self, width: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, width, 3, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 4, bias=bias)
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("table", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))  # type: ignore[no-any-return]


def of_tensor(paths: tuple[str, ...], encoding: Encoding, x: Tensor) -> Step:
    edit = EncodeTensor(paths, encoding, tuple(x.shape), str(x.dtype).removeprefix("torch."))
    return Step(edit, encoding.represent(x.detach()).tensors())


def every_edit(net: Net) -> list[Step]:
    return [
        of_tensor(("conv.weight",), Int(8), net.conv.weight),
        Step(SetTensor("conv.bias"), {"value": torch.randn(8)}),
        Step(Replace("norm"), {}),
        Step(SetTensor("fc.bias"), {"value": torch.randn(4)}),
        of_tensor(("conv.weight",), Sparse(Int(3, group=9, scale=Float16(), symmetric=False)), net.conv.weight),
        of_tensor(("fc.weight",), Int(5), net.fc.weight),
        Step(EncodeValue(":relu#0", Int(8, symmetric=False, per="tensor")), GRID),
        Step(EncodeValue("fc:linear#0@0", Int(8, dynamic=True)), {}),
    ]


def made(net: nn.Module, steps: list[Step]) -> State:
    state = State("base")
    for step in steps:
        step.edit.apply(net, step.tensors)
        state = state.after(step)
    return state


def state_of(model: nn.Module) -> State:
    """The state that leads to what is encoded in `model` now."""
    steps = [
        Step(
            EncodeTensor(paths, held.encoding, tuple(held.shape), str(held.dtype).removeprefix("torch.")),
            held.encoded().tensors(),
        )
        for paths, held in encoded_tensors(model)
    ]
    return State("base", tuple(steps))


def assert_same(a: nn.Module, b: nn.Module) -> None:
    held, other = a.state_dict(), b.state_dict()
    assert held.keys() == other.keys()
    for name in held:
        assert held[name].dtype == other[name].dtype, name
        torch.testing.assert_close(held[name], other[name], rtol=0, atol=0)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Net, State]:
    net = Net().eval()
    state = made(net, every_edit(net))
    path = tmp_path / "net.lil"
    save(path, net, state)
    return path, net, state


# edits


@pytest.mark.parametrize("i", range(8))
def test_an_edit_survives_plain_data(i: int) -> None:
    step = every_edit(Net())[i]
    again = from_plain(json.loads(json.dumps(to_plain(step.edit))), EDITS)
    assert again == step.edit and isinstance(again, Edit)
    assert Step(again, step.tensors).digest() == step.digest()


def test_every_edit_replays_from_its_plain_data(same: Any) -> None:
    original = Net().eval()
    net, other = copy.deepcopy(original), copy.deepcopy(original)
    steps, x = every_edit(net), torch.randn(2, 2, 6, 6)
    made(net, steps)
    made(
        other,
        [Step(from_plain(json.loads(json.dumps(to_plain(s.edit))), EDITS), copy.deepcopy(s.tensors)) for s in steps],
    )
    assert_same(net, other)
    same(net(x), other(x))
    assert net.conv.weight.shape == original.conv.weight.shape and net.conv.bias is not None


def test_only_the_last_edit_of_a_slot_is_kept(same: Any) -> None:
    original = Net().eval()
    net, other = copy.deepcopy(original), copy.deepcopy(original)
    state = made(net, every_edit(net))
    assert len(state.steps) == 8 and len(state.settled()) == 7
    for step in state.settled():
        step.edit.apply(other, step.tensors)
    x = torch.randn(2, 2, 6, 6)
    same(net(x), other(x))


def test_states_differ_when_anything_does() -> None:
    net = Net()
    steps = every_edit(net)
    digests = {made(copy.deepcopy(net), steps[:i]).digest for i in range(9)}
    digests.add(made(copy.deepcopy(net), [steps[1], steps[0]]).digest)
    digests.add(made(copy.deepcopy(net), [Step(steps[1].edit, {"value": torch.zeros(8)})]).digest)
    digests.add(State("another base").digest)
    assert len(digests) == 12
    assert made(copy.deepcopy(net), steps).digest == made(copy.deepcopy(net), steps).digest


@pytest.mark.parametrize(
    ("step", "hint"),
    [
        (of_tensor(("conv.wait",), Int(8), torch.randn(8, 2, 3, 3)), "conv.wait"),
        (of_tensor(("cnv.weight",), Int(8), torch.randn(8, 2, 3, 3)), "cnv.weight"),
        (of_tensor(("conv.weight",), Int(8), torch.randn(8, 3, 3, 3)), r"conv.weight.*\(8, 3, 3, 3\).*\(8, 2, 3, 3\)"),
        (Step(SetTensor("fc.bias"), {"value": torch.zeros(5)}), r"fc.bias.*\(5,\).*\(4,\)"),
        (Step(SetTensor("fc.bois"), {"value": torch.zeros(4)}), "fc.bois"),
        (Step(Replace("nrm"), {}), "nrm"),
        (Step(Replace("a.b.c"), {}), "a.b.c"),
        (Step(Replace("norm", "Linear"), {}), "Linear"),
        (Step(EncodeTensor(("conv.weight",), Int(8), (8, 2, 3, 3), "flaot32"), {}), "flaot32"),
        (Step(EncodeTensor(("conv.weight",), Int(8), (8, 2, 3, 3), "float32"), {}), "scale"),
        (
            Step(
                EncodeTensor(("conv.weight",), Sparse(Int(8)), (8, 2, 3, 3), "float32"),
                {"values.codes": torch.zeros(8, 2, 3, 3)},
            ),
            "scale",
        ),
        (
            Step(
                EncodeTensor(("conv.weight",), Int(8), (8, 2, 3, 3), "float32"),
                {"codes": torch.zeros(9), "scale": torch.ones(8)},
            ),
            "do not fit together",
        ),
        (Step(EncodeTensor((), Int(8), (8, 2, 3, 3), "float32"), {}), "path"),
        (Step(EncodeValue("relu", Int(8)), {}), "relu"),
    ],
    ids=lambda x: repr(x.edit) if isinstance(x, Step) else "",
)
def test_an_edit_that_does_not_fit_the_module_is_refused_by_name(step: Step, hint: str) -> None:
    with pytest.raises((FormatError, EncodingError), match=hint):
        step.edit.apply(Net(), step.tensors)


# save and load


def test_what_is_loaded_is_what_was_saved(carried: Carried, tmp_path: Path, same: Any) -> None:
    path = tmp_path / "net.lil"
    sizes = save(path, carried.model, state_of(carried.model), {"why": "a test"})
    assert sum(sizes.values()) == path.stat().st_size
    other = copy.deepcopy(carried.original)
    with torch.no_grad():
        for p in other.parameters():
            p.fill_(7)
    loaded = load(path, other)
    assert loaded is other and not loaded.training and type(loaded) is type(carried.model)
    assert_same(loaded, carried.model)
    with torch.no_grad():
        same(loaded(carried.x), carried.model(carried.x))
    assert [paths for paths, _ in encoded_tensors(loaded)] == list(carried.encoded)
    save(tmp_path / "again.lil", loaded, state_of(loaded), {"why": "a test"})
    assert (tmp_path / "again.lil").read_bytes() == path.read_bytes()


def test_edits_of_every_kind_are_saved_and_loaded(small: tuple[Path, Net, State], same: Any) -> None:
    path, net, _ = small
    loaded, x = load(path, Net()), torch.randn(2, 2, 6, 6)
    assert_same(loaded, net)
    assert type(loaded.norm) is nn.Identity and value_encodings(loaded).keys() == value_encodings(net).keys()
    same(loaded(x), net(x))
    loaded.train()(x).sum().backward()
    assert loaded.fc.bias.grad is not None
    copy.deepcopy(loaded).half()
    same(loaded.eval()(x), net(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_kept(dtype: torch.dtype, tmp_path: Path, same: Any) -> None:
    net = Net().to(dtype).eval()
    state = made(
        net, [of_tensor(("conv.weight",), Int(8), net.conv.weight), of_tensor(("fc.weight",), Sparse(), net.fc.weight)]
    )
    save(tmp_path / "net.lil", net, state)
    loaded, x = load(tmp_path / "net.lil", Net()), torch.randn(2, 2, 6, 6, dtype=dtype)
    assert_same(loaded, net)
    same(loaded(x), net(x))


def test_a_tied_tensor_is_stored_once(tied: type[nn.Module], tmp_path: Path) -> None:
    net = tied()
    plain = save(tmp_path / "plain.lil", net, State("base"))
    assert len([name for name in plain if name in ("embed.weight", "head.weight")]) == 1
    loaded = load(tmp_path / "plain.lil", tied())
    assert loaded.head.weight is loaded.embed.weight
    made(net, [of_tensor(("embed.weight", "head.weight"), Int(4), net.embed.weight)])
    sizes = save(tmp_path / "net.lil", net, state_of(net))
    assert len([name for name in sizes if name.endswith(".codes")]) == 1
    loaded = load(tmp_path / "net.lil", tied())
    assert next(paths for paths, _ in encoded_tensors(loaded)) == ("embed.weight", "head.weight")


def test_a_fresh_process_gives_the_same_outputs(small: tuple[Path, Net, State], tmp_path: Path) -> None:
    path, net, _ = small
    source = Path(__file__).read_text(encoding="utf-8")
    body = source[source.index("class Net(") : source.index("\n\ndef of_tensor")]
    (tmp_path / "theirs.py").write_text(f"import torch\nfrom torch import Tensor, nn\n\n{body}\n")
    x = torch.randn(2, 2, 6, 6)
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import numpy, torch; from theirs import Net; from lilliput.file import load\n"
        "torch.set_num_threads(1)\n"
        f"out = load({str(path)!r}, Net())(torch.from_numpy(numpy.load('x.npy')))\n"
        "numpy.save('out.npy', out.detach().numpy())"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), net(x).detach().numpy())


def test_trained_on_and_saved_again(small: tuple[Path, Net, State], tmp_path: Path) -> None:
    _, net, state = small
    with torch.no_grad():
        net.fc.bias.add_(1)
    save(tmp_path / "trained.lil", net, state)
    assert_same(load(tmp_path / "trained.lil", Net()), net)


def test_an_unfrozen_model_is_not_saved(small: tuple[Path, Net, State], tmp_path: Path) -> None:
    _, net, state = small
    with pytest.raises(EncodingError, match="freeze"):
        save(tmp_path / "unfrozen.lil", unfreeze(net), state)
    assert not (tmp_path / "unfrozen.lil").exists()


def test_a_model_whose_state_says_otherwise_is_not_saved(small: tuple[Path, Net, State], tmp_path: Path) -> None:
    _, net, _ = small
    with pytest.raises(LilliputError, match="state"):
        save(tmp_path / "other.lil", to_dense(net), state_of(net))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        torch.manual_seed(1)
        net = Net()
        save(tmp_path / name, net, made(net, every_edit(net)))
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)


class More(Net):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (Other, "conv"),
        (More, "extra"),
        (lambda: Net(width=6), "conv"),
        (lambda: nn.Sequential(Net()), "conv"),
        (nn.Identity, "conv"),
    ],
)
def test_another_constructor_is_refused_by_name(
    small: tuple[Path, Net, State], make: Callable[[], nn.Module], hint: str
) -> None:
    with pytest.raises(FormatError, match=hint):
        load(small[0], make())


def test_another_width_of_one_layer_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 4))
    save(tmp_path / "net.lil", net, made(net, [of_tensor(("0.weight",), Int(8), net[0].weight)]))
    with pytest.raises(FormatError, match=r"0\.weight"):
        load(tmp_path / "net.lil", nn.Sequential(nn.Linear(6, 4)))


# damage


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    net = nn.Sequential(nn.Linear(4, 2))
    save(tmp_path / "tiny.lil", net, made(net, [of_tensor(("0.weight",), Int(4), net[0].weight)]))
    return tmp_path / "tiny.lil"


def refused(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        load(path, nn.Sequential(nn.Linear(4, 2)))
    except FormatError:
        return True
    return False


def test_every_flipped_byte_is_noticed(tiny: Path) -> None:
    data = tiny.read_bytes()
    assert not refused(tiny, data)
    for i in range(len(data)):
        assert refused(tiny, data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :]), i
        assert refused(tiny, data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :]), i


def test_every_truncation_is_noticed(tiny: Path) -> None:
    data = tiny.read_bytes()
    for i in range(len(data)):
        assert refused(tiny, data[:i]), i
    assert refused(tiny, data + b"\0") and refused(tiny, data + data) and refused(tiny, data[1:])


@pytest.mark.parametrize("data", [b"", b"LILLIPUT", MAGIC * 8, b"PK\x03\x04" + b"\0" * 200, b"\0" * 1000], ids=len)
def test_what_is_no_such_file_is_refused(tmp_path: Path, data: bytes) -> None:
    assert refused(tmp_path / "x.lil", data)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.lil", tmp_path):
        with pytest.raises(FormatError, match=str(tmp_path)):
            load(path, Net())


def with_index(data: bytes, change: Callable[[Any], Any]) -> bytes:
    """The file with another index under a checksum that fits: made by someone who knows the format."""
    length = int.from_bytes(data[-48:-40], "little")
    index = change(json.loads(zstandard.ZstdDecompressor().decompress(data[-48 - length : -48])))
    text = zstandard.ZstdCompressor().compress(json.dumps(index).encode())
    return data[: -48 - length] + text + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + MAGIC


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested lists and dicts."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *itertools.chain.from_iterable(places(child, (*at, key)) for key, child in inner)]


def put(node: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    node = copy.copy(node)
    node[at[0]] = put(node[at[0]], at[1:], value)
    return node


def test_a_forged_index_is_refused_or_harmless(tiny: Path) -> None:
    """Every field of the index, exchanged for something else, with checksums that fit."""
    data = tiny.read_bytes()
    found: list[Any] = []
    with_index(data, lambda index: found.append(index) or index)
    for at in places(found[0]):
        for value in (None, -1, 2**70, 1.5, "x", "", [], {}, [[]], {"kind": "Int"}, [1, 2, 3], True):
            tiny.write_bytes(with_index(data, lambda index, at=at, value=value: put(index, at, value)))
            try:
                loaded = load(tiny, nn.Sequential(nn.Linear(4, 2)))
            except LilliputError:
                continue
            assert [tuple(held().shape) for _, held in encoded_tensors(loaded)] in ([(2, 4)], [])


def test_a_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    write(tmp_path / "x", {}, [Part("x", torch.zeros(1 << 20, dtype=torch.uint8))])
    forged = with_index((tmp_path / "x").read_bytes(), lambda index: put(index, ("tensors", 0, "shape"), [8]))
    (tmp_path / "x").write_bytes(forged)
    with pytest.raises(FormatError, match="more than is declared"):
        Reader(tmp_path / "x").read("x")


# packing


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 5), (2, 3, 4)], ids=str)
def test_codes_are_packed_without_gaps(bits: int, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    for dtype, low in ((torch.uint8, 0), (torch.int8, -(2 ** (bits - 1)))):
        codes = torch.randint(low, low + 2**bits, shape, dtype=torch.int64).to(dtype)
        data = pack(codes, bits)
        assert len(data) == -(-count * bits // 8)
        assert torch.equal(unpack(data, bits, shape, dtype), codes)
        stream = "".join(format(byte, "08b")[::-1] for byte in data)
        slow = [int(stream[i * bits : (i + 1) * bits][::-1], 2) for i in range(count)]
        assert slow == [code % 2**bits for code in codes.flatten().tolist()]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_fewer_bits_make_smaller_files(bits: int, symmetric: bool, tmp_path: Path) -> None:
    encoding, x = Int(bits, symmetric=symmetric), torch.rand(64, 64) * 2 - 1
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    net[0].weight.data = x
    sizes = save(tmp_path / "net.lil", net, made(net, [of_tensor(("0.weight",), encoding, x)]))
    assert sizes["0.weight_encoded.codes"] <= 64 * 64 * bits // 8
    assert_same(load(tmp_path / "net.lil", nn.Sequential(nn.Linear(64, 64, bias=False))), net)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 5)], ids=str)
def test_tensors_of_every_type_are_kept(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    x = (torch.randn(shape) * 3).to(dtype)
    write(tmp_path / "x", {"a": 1}, [Part("x", x), Part("t", x.t() if x.dim() == 2 else x)])
    read = Reader(tmp_path / "x")
    torch.testing.assert_close(read.read("x"), x, rtol=0, atol=0)
    assert read.header == {"a": 1} and read.read("x").dtype == dtype


def test_what_cannot_be_stored_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="complex64"):
        write(tmp_path / "x", {}, [Part("x", torch.zeros(2, dtype=torch.complex64))])
    assert list(tmp_path.iterdir()) == []
