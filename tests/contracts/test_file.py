"""Edits as data, and the `.lil` file: what is read is bit for bit what was written, or it is refused."""

from __future__ import annotations

import copy
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
from compared import close
from torch import Tensor, nn

from lilliput.encodings import Encoding, Float16, Int, Sparse
from lilliput.errors import EncodingError, FormatError
from lilliput.file.lil import load, save
from lilliput.model.carrier.carrier import encoded_tensors, to_dense, unfreeze
from lilliput.model.edits.edit import Edit, structure
from lilliput.model.edits.edits import EDITS, EncodeTensor, EncodeValue, SetTensor, State, Step, edits_of
from lilliput.model.edits.structure import Replace
from lilliput.model.views.values import value_encodings
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


def assert_same(a: nn.Module, b: nn.Module) -> None:
    held, other = a.state_dict(), b.state_dict()
    assert held.keys() == other.keys()
    for name in held:
        assert held[name].dtype == other[name].dtype, name
        close(held[name], other[name], rtol=0, atol=0)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Net]:
    net = Net().eval()
    made(net, every_edit(net))
    path = tmp_path / "net.lil"
    save(path, net)
    return path, net


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


def test_a_model_tells_what_made_it(same: Any) -> None:
    original = Net().eval()
    net, other = copy.deepcopy(original), copy.deepcopy(original)
    made(net, every_edit(net))
    edits = edits_of(net)
    assert [type(edit) for edit in edits] == [SetTensor, Replace, EncodeTensor, EncodeTensor, EncodeValue, EncodeValue]
    held = net.state_dict()
    for edit in edits:
        edit.apply(other, {part: held[name] for part, name in edit.stored(held).items()})
    other.load_state_dict(held)
    x = torch.randn(2, 2, 6, 6)
    same(net(x), other(x))
    assert edits_of(other) == edits and structure(copy.deepcopy(net)) == structure(net) == tuple(edits[:2])
    assert edits_of(to_dense(net)) == edits[:2]


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
    sizes = save(path, carried.model, provenance={"why": "a test"})
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
    save(tmp_path / "again.lil", loaded, provenance={"why": "a test"})
    assert (tmp_path / "again.lil").read_bytes() == path.read_bytes()


def test_edits_of_every_kind_are_saved_and_loaded(small: tuple[Path, Net], same: Any) -> None:
    path, net = small
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
    made(
        net, [of_tensor(("conv.weight",), Int(8), net.conv.weight), of_tensor(("fc.weight",), Sparse(), net.fc.weight)]
    )
    save(tmp_path / "net.lil", net)
    loaded, x = load(tmp_path / "net.lil", Net()), torch.randn(2, 2, 6, 6, dtype=dtype)
    assert_same(loaded, net)
    same(loaded(x), net(x))


def test_a_tied_tensor_is_stored_once(tied: type[nn.Module], tmp_path: Path) -> None:
    net = tied()
    plain = save(tmp_path / "plain.lil", net)
    assert len([name for name in plain if name in ("embed.weight", "head.weight")]) == 1
    loaded = load(tmp_path / "plain.lil", tied())
    assert loaded.head.weight is loaded.embed.weight
    made(net, [of_tensor(("embed.weight", "head.weight"), Int(4), net.embed.weight)])
    sizes = save(tmp_path / "net.lil", net)
    assert len([name for name in sizes if name.endswith(".codes")]) == 1
    loaded = load(tmp_path / "net.lil", tied())
    assert next(paths for paths, _ in encoded_tensors(loaded)) == ("embed.weight", "head.weight")


def test_a_fresh_process_gives_the_same_outputs(small: tuple[Path, Net], tmp_path: Path) -> None:
    path, net = small
    source = Path(__file__).read_text(encoding="utf-8")
    body = source[source.index("class Net(") : source.index("\n\ndef of_tensor")]
    (tmp_path / "theirs.py").write_text(f"import torch\nfrom torch import Tensor, nn\n\n{body}\n")
    x = torch.randn(2, 2, 6, 6)
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import numpy, torch; from theirs import Net; from lilliput.file.lil import load\n"
        "torch.set_num_threads(1)\n"
        f"out = load({str(path)!r}, Net())(torch.from_numpy(numpy.load('x.npy')))\n"
        "numpy.save('out.npy', out.detach().numpy())"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), net(x).detach().numpy())


def test_trained_on_and_saved_again(small: tuple[Path, Net], tmp_path: Path) -> None:
    _, net = small
    with torch.no_grad():
        net.fc.bias.add_(1)
    save(tmp_path / "trained.lil", net)
    assert_same(load(tmp_path / "trained.lil", Net()), net)


def test_an_unfrozen_model_is_not_saved(small: tuple[Path, Net], tmp_path: Path) -> None:
    _, net = small
    with pytest.raises(EncodingError, match="freeze"):
        save(tmp_path / "unfrozen.lil", unfreeze(net))
    assert not (tmp_path / "unfrozen.lil").exists()


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        torch.manual_seed(1)
        net = Net()
        made(net, every_edit(net))
        save(tmp_path / name, net)
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
    small: tuple[Path, Net], make: Callable[[], nn.Module], hint: str
) -> None:
    with pytest.raises(FormatError, match=hint):
        load(small[0], make())


def test_another_width_of_one_layer_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 4))
    made(net, [of_tensor(("0.weight",), Int(8), net[0].weight)])
    save(tmp_path / "net.lil", net)
    with pytest.raises(FormatError, match=r"0\.weight"):
        load(tmp_path / "net.lil", nn.Sequential(nn.Linear(6, 4)))


# tensors


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_fewer_bits_make_smaller_files(bits: int, symmetric: bool, tmp_path: Path) -> None:
    encoding, x = Int(bits, symmetric=symmetric), torch.rand(64, 64) * 2 - 1
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    net[0].weight.data = x
    made(net, [of_tensor(("0.weight",), encoding, x)])
    sizes = save(tmp_path / "net.lil", net)
    assert sizes["0.weight_encoded.codes"] <= 1.01 * 64 * 64 * bits / 8 + 64
    assert_same(load(tmp_path / "net.lil", nn.Sequential(nn.Linear(64, 64, bias=False))), net)
