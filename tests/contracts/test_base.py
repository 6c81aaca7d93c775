"""A file that holds only what differs from another: smaller, read to the bit with its base, refused without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.entropy import dtype_called
from lilliput.errors import FormatError
from lilliput.file.container import Part, Reader, write
from lilliput.file.delta import added, difference
from lilliput.file.inspect import inside, verify
from lilliput.file.second import Second

X = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def lenet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    ).eval()


def loss(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def tuned(net: nn.Module, lr: float) -> nn.Module:
    """The network trained on a little, its first layer kept."""
    net[0].requires_grad_(False)  # type: ignore[index]
    batches = [(X, torch.tensor([0, 1, 2, 3]))]
    return lp.train(lp.Task(net, train=batches, loss=loss), lp.Finetune(epochs=3, lr=lr)).model.eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    held = other.state_dict()
    return all(torch.equal(x, held[name]) for name, x in one.state_dict().items())


@pytest.mark.parametrize("recipe", [None, lp.Recipe([lp.Quantize(weights=lp.Int(8))])], ids=["floats", "codes"])
def test_a_fine_tuned_network_costs_what_has_changed(recipe: lp.Recipe | None, tmp_path: Path) -> None:
    first = lenet() if recipe is None else lp.apply(lp.Task(lenet(), example=X), recipe)
    later = tuned(first, 1e-5)
    lp.save(tmp_path / "first.lil", first, example=X)
    whole = sum(lp.save(tmp_path / "later.lil", later, example=X).values())
    part = sum(lp.save(tmp_path / "delta.lil", later, example=X, base=tmp_path / "first.lil").values())
    assert not same(first, later) and part < (0.75 if recipe is None else 0.5) * whole, (part, whole)
    base = Reader(tmp_path / "first.lil")
    told = inside(tmp_path / "delta.lil", base)
    assert any(name.startswith("0.") for name in told["references"]) and told["deltas"] and told["version"] == 3
    assert sum(told["sizes"].values()) == told["bytes"] == part
    read = lp.load(tmp_path / "delta.lil", into=lenet(), base=tmp_path / "first.lil")
    assert same(read, later) and same(later, read)
    assert torch.equal(read(X), later(X))
    opened = lp.open(tmp_path / "delta.lil", base=tmp_path / "first.lil", threads=1)
    assert torch.equal(opened(X), lp.open(tmp_path / "later.lil", threads=1)(X))
    assert "reads the same" in dict(verify(tmp_path / "delta.lil", base, thorough=True))["second decoder"]


def test_without_its_base_or_with_another_it_is_refused(tmp_path: Path) -> None:
    first, later = lenet(), tuned(lenet(), 1e-4)
    lp.save(tmp_path / "first.lil", first)
    lp.save(tmp_path / "delta.lil", later, base=tmp_path / "first.lil")
    lp.save(tmp_path / "other.lil", later)
    for base in (None, tmp_path / "other.lil"):
        with pytest.raises(FormatError, match=r"needs the file that it was made from.*give base="):
            lp.load(tmp_path / "delta.lil", into=lenet(), base=base)
        with pytest.raises(FormatError, match="needs the file that it was made from"):
            Second(tmp_path / "delta.lil", base)


def test_the_base_is_never_written_over(tmp_path: Path) -> None:
    lp.save(tmp_path / "first.lil", lenet())
    held = (tmp_path / "first.lil").read_bytes()
    (tmp_path / "link.lil").symlink_to(tmp_path / "first.lil")
    for name in ("first.lil", "link.lil"):
        with pytest.raises(FormatError, match=r"place of its own base.*a name of its own"):
            lp.save(tmp_path / name, tuned(lenet(), 1e-4), base=tmp_path / "first.lil")
    assert (tmp_path / "first.lil").read_bytes() == held


def test_a_network_of_other_sizes_shares_what_is_alike(tmp_path: Path) -> None:
    first, later = lenet(), lenet()
    later[11] = nn.Linear(84, 20)
    lp.save(tmp_path / "first.lil", first)
    lp.save(tmp_path / "delta.lil", later, base=tmp_path / "first.lil")
    into = lenet()
    into[11] = nn.Linear(84, 20)
    assert same(lp.load(tmp_path / "delta.lil", into=into, base=tmp_path / "first.lil"), later)
    found = inside(tmp_path / "delta.lil", Reader(tmp_path / "first.lil"))
    assert not found["deltas"] and found["version"] == 2 and len(found["weights"]) == 2


def test_a_file_without_a_base_is_what_it_was(tmp_path: Path) -> None:
    lp.save(tmp_path / "one.lil", lenet())
    assert (tmp_path / "one.lil").read_bytes()[8] == 2


KINDS = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
]


@pytest.mark.parametrize("name", KINDS)
def test_any_bits_come_back(name: str) -> None:
    """Also NaN, infinities, both zeros and the ends: whatever bits there are."""
    kind, dice = dtype_called(name), np.random.default_rng(0)
    assert kind is not None
    raw = dice.integers(0, 256, (2, 400, kind.itemsize), np.uint8)
    raw[0, :50], raw[1, 25:75] = 0, 255
    x, base = (part.reshape(-1).view(np.uint8 if name == "bool" else kind) for part in raw)
    if name == "bool":
        x, base = x > 99, base > 99
    bits = 1 if name == "bool" else 8 * kind.itemsize
    back = added(difference(x, base, bits), base, bits)
    assert back.dtype == x.dtype and back.tobytes() == x.tobytes()
    assert not difference(x, x, bits).view(np.uint8).any()


@pytest.mark.parametrize("bits", range(1, 8))
def test_codes_stay_within_their_bits(bits: int) -> None:
    every = np.arange(1 << bits, dtype=np.int64)
    x, base = (grid.reshape(-1) for grid in np.meshgrid(every, every))
    for kind, least in ((np.uint8, 0), (np.int8, -(1 << bits - 1))):
        one, other = (x + least).astype(kind), (base + least).astype(kind)
        apart = difference(one, other, bits)
        assert apart.min() == least and apart.max() == least + (1 << bits) - 1
        assert np.array_equal(added(apart, other, bits), one)


def test_a_small_change_is_a_small_number() -> None:
    base = np.float32([1.0, -1.0, 3e-5, 0.5])
    near = np.nextafter(base, np.float32(9), dtype=np.float32)
    turned = difference(near, base, 32).view(np.uint32)
    assert set(((turned << 1) | (turned >> 31)).tolist()) == {1, 2}


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "of nothing": ({"y": "x"}, "no tensor 'y'"),
    "from nothing": ({"x": "y"}, "no tensor 'y'"),
    "from another type": ({"x": "z"}, "another kind"),
    "from another shape": ({"x": "w"}, "another kind"),
    "in codes of other bits": ({"c": "d"}, "another kind"),
    "no table": (["x"], "no sound way"),  # type: ignore[dict-item]
    "from no name": ({"x": 3}, "no tensor 3"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_differences_are_refused(name: str, tmp_path: Path) -> None:
    deltas, said = FORGED[name]
    x = np.arange(6, dtype=np.int8)
    held = [
        Part.of("x", x),
        Part.of("z", x.astype(np.uint8)),
        Part.of("w", x[:5]),
        Part.of("c", x % 4, 4),
        Part.of("d", x % 4, 5),
    ]
    base = write(tmp_path / "base.lil", {"kind": "answer"}, held)
    write(
        tmp_path / "delta.lil",
        {"kind": "answer", "base": base.digest, "deltas": deltas},
        [Part.of("x", x + 1), held[3]],
    )
    with pytest.raises(FormatError, match=said):
        Reader(tmp_path / "delta.lil", Reader(tmp_path / "base.lil"))
    with pytest.raises(FormatError):
        Second(tmp_path / "delta.lil", tmp_path / "base.lil")
    with pytest.raises(FormatError):
        Reader(tmp_path / "delta.lil")


def test_a_damaged_base_is_noticed(tmp_path: Path) -> None:
    first = lenet()
    lp.save(tmp_path / "first.lil", first)
    lp.save(tmp_path / "delta.lil", tuned(lenet(), 1e-4), base=tmp_path / "first.lil")
    data = bytearray((tmp_path / "first.lil").read_bytes())
    data[Reader(tmp_path / "first.lil").entries["7.weight"].offset + 30] ^= 1
    (tmp_path / "first.lil").write_bytes(data)
    with pytest.raises(FormatError, match="checksum"):
        lp.load(tmp_path / "delta.lil", into=lenet(), base=tmp_path / "first.lil")
