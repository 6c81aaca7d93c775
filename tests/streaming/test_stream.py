"""A network that is streamed comes out as it does from `lp.apply`, bit for bit, whatever stands around its blocks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from compared import close
from nets import WIDTH, WORDS, Decoder, Pair, Pictures, hollow, made, state, words
from safetensors.torch import save_file
from torch import Tensor, nn

import lilliput as lp
from lilliput.file.inspect import verify
from lilliput.file.sources import OfModule
from lilliput.techniques.encode import Asked

INT4 = lp.Int(4, group=8, scale=lp.formats.Float16())
BLOCKS = ("*", "!embed", "!head")
Make = Callable[[], nn.Module]


def both(path: Path, make: Make, recipe: lp.Recipe, batches: list[Tensor] | None, example: Any) -> tuple[Any, Any]:
    """The network as it is loaded from what was streamed, and as `lp.apply` makes it."""
    net = made(make)
    lp.stream(path, hollow(make), net, recipe, calibrate=batches)
    whole = lp.apply(lp.Task(net, calibrate=batches, example=example), recipe, target="eager")
    verify(path)
    return lp.load(path, into=made(make, seed=7)), whole


def same(one: nn.Module, other: nn.Module, *, rescaled: bool = False) -> None:
    """All tensors are the same, to the bit; of `rescaled` networks, codes and scales are."""
    found, right = state(one), state(other)
    assert found.keys() == right.keys()
    unlike = [name for name in right if not torch.equal(found[name], right[name])]
    assert [name for name in unlike if not rescaled or "_encoded" in name] == []
    for name in unlike:
        close(found[name], right[name], msg=name)


STEPS: dict[str, list[Any]] = {
    "nearest": [lp.Quantize(weights=INT4, where=BLOCKS)],
    "GPTQ": [lp.Quantize(weights=INT4, rounding=lp.rounding.GPTQ(), where=BLOCKS)],
    "GPTQ, the head too": [lp.Quantize(weights=INT4, rounding=lp.rounding.GPTQ(), where=("*", "!embed"))],
    "AWQ": [lp.techniques.Equalize(lp.rescaling.AWQ(INT4), where="blocks.*"), lp.Quantize(weights=INT4, where=BLOCKS)],
    "by path": [lp.Quantize(weights={"*": lp.Int(8), "blocks.1.*": lp.Int(3), "head": None})],
    "factors, then GPTQ": [lp.techniques.Factorize(4, where="blocks.*"), lp.Quantize(weights=lp.Int(6), where=BLOCKS)],
    "shared numbers": [lp.techniques.Share(8, where=BLOCKS)],
}


@pytest.mark.parametrize("steps", STEPS)
def test_as_the_whole_network(steps: str, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return Decoder(bias=True)

    streamed, whole = both(tmp_path / "net.lil", make, lp.Recipe(STEPS[steps]), words(), words()[0])
    same(streamed, whole, rescaled=steps == "AWQ")  # which looks at what flowed after earlier blocks were rescaled
    with torch.no_grad():
        close(streamed(words()[0]), whole(words()[0]))
    assert torch.equal(streamed.angles.speed, made(make).angles.speed)


@pytest.mark.parametrize("tied", [False, True])
def test_without_data(tied: bool, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return Decoder(tied=tied)

    streamed, whole = both(tmp_path / "net.lil", make, lp.Recipe([lp.Quantize(weights=INT4)]), None, words()[0])
    same(streamed, whole)
    assert (streamed.head.weight_encoded is streamed.embed.weight_encoded) == tied


@pytest.mark.parametrize("tied", [False, True])
def test_what_comes_back_on_the_meta_device(tied: bool, tmp_path: Path) -> None:
    """Whoever streams has no module but a hollow one: it gets numbers, and its ties stay ties."""

    def make() -> nn.Module:
        return Decoder(tied=tied)

    for name, recipe in {"all": [lp.Quantize(weights=INT4)], "blocks": STEPS["nearest"]}.items():
        path = tmp_path / f"{name}.lil"
        lp.stream(path, hollow(make), made(make), lp.Recipe(recipe))
        found = lp.load(path, into=hollow(make))
        same(found, lp.load(path, into=made(make, seed=7)))
        assert (found.head.weight.data_ptr() == found.embed.weight.data_ptr()) == tied or name == "all"
        with torch.no_grad():
            close(found(words()[0]), lp.load(path, into=make())(words()[0]))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    sizes = []
    for tied in (False, True):
        net = made(lambda tied=tied: Decoder(tied=tied))  # type: ignore[misc]
        told = lp.stream(tmp_path / "net.lil", hollow(lambda: Decoder(tied=tied)), net, lp.Recipe([lp.Quantize()]))  # noqa: B023
        sizes.append([name for name in told.sizes if name.endswith("codes")])
    assert len(sizes[0]) == len(sizes[1]) + 1


def test_what_a_list_gives_in_the_end_is_kept(tmp_path: Path) -> None:
    recipe = lp.Recipe([lp.Quantize(weights=INT4, rounding=lp.rounding.GPTQ(), where=("*", "!embed"))])
    same(*both(tmp_path / "net.lil", Pair, recipe, words(), words()[0]))


@pytest.mark.parametrize("flowing", [False, True])
def test_pictures(flowing: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    rounding = lp.rounding.GPTQ() if flowing else None
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(4), rounding=rounding)])
    same(*both(tmp_path / "net.lil", Pictures, recipe, batches if flowing else None, batches[0]))


def test_lengths_that_vary(tmp_path: Path) -> None:
    batches = [words(1)[0], words(1)[0][:, :4]]
    net, recipe, dynamic = made(Decoder), lp.Recipe(STEPS["GPTQ"]), {"ids": {0: "batch", 1: "words"}}
    given = [{"ids": x} for x in batches]
    lp.stream(tmp_path / "net.lil", hollow(Decoder), net, recipe, calibrate=given, dynamic=dynamic)
    whole = lp.apply(lp.Task(net, calibrate=given, dynamic=dynamic), recipe, target="eager")
    same(lp.load(tmp_path / "net.lil", into=made(Decoder)), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_stored_as_it_comes(dtype: torch.dtype, tmp_path: Path) -> None:
    """What is encoded is what the same numbers in float32 become; the module that comes back is all in half."""
    half = made(lambda: Decoder(bias=True)).to(dtype)
    save_file(half.state_dict(), tmp_path / "net.safetensors")
    recipe = lp.Recipe([lp.Quantize(weights=INT4, rounding=lp.rounding.GPTQ(), where=BLOCKS, bias_correction=False)])
    path = tmp_path / "small.lil"
    lp.stream(path, hollow(lambda: Decoder(bias=True)), tmp_path / "net.safetensors", recipe, calibrate=words())
    found = lp.load(path, into=Decoder(bias=True))
    net = Decoder(bias=True).eval()
    net.load_state_dict({name: x.float() for name, x in half.state_dict().items()})
    right = lp.apply(lp.Task(net, calibrate=words()), recipe)
    codes = {name: x for name, x in state(right).items() if "_encoded" in name}
    assert all(torch.equal(state(found)[name], x) for name, x in codes.items()) and codes
    assert {x.dtype for name, x in state(found).items() if name not in codes} == {dtype}
    assert found.blocks[0].up.weight.dtype == found.embed.weight.dtype == dtype
    assert torch.equal(found.embed.weight, half.embed.weight)
    with torch.no_grad():
        close(found.float()(words()[0]), right(words()[0]), share=0.02)


class Watched(OfModule):
    """A source that knows which of its arrays are still held, and fails on request."""

    def __init__(self, model: nn.Module, fails: str = "") -> None:
        super().__init__(model)
        self.held: dict[str, Any] = {}
        self.fails, self.most = fails, 0

    def _elements(self, name: str, first: int, last: int) -> np.ndarray:
        if name.startswith("blocks"):
            gc.collect()
            alive = {other.split(".")[1] for other, array in self.held.items() if array() is not None}
            self.most = max(self.most, len(alive | {name.split(".")[1]}))
        if self.fails and name.startswith(self.fails):
            raise OSError("the disk is gone")
        made = super()._elements(name, first, last).copy()
        if name.startswith("blocks"):
            self.held[name] = weakref.ref(made)
        return made


@pytest.mark.parametrize("steps", ["GPTQ", "without data"])
def test_one_block_is_in_memory(steps: str, tmp_path: Path) -> None:
    source = Watched(made(lambda: Decoder(5)))
    recipe = lp.Recipe(STEPS.get(steps) or [lp.Quantize(weights=INT4)])
    batches = words() if steps in STEPS else None
    lp.stream(tmp_path / "net.lil", hollow(lambda: Decoder(5)), source, recipe, calibrate=batches)
    assert source.most == 1


def test_a_run_that_failed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[str] = []
    chosen = Asked.chosen

    def counted(self: Asked, choice: Any) -> Any:
        fitted.append(self.paths[0])
        return chosen(self, choice)

    monkeypatch.setattr(Asked, "chosen", counted)
    net, recipe = made(Decoder), lp.Recipe(STEPS["GPTQ"])
    given: dict[str, Any] = {"calibrate": words(), "folder": tmp_path / "run"}
    with pytest.raises(lp.errors.LilliputError, match="the disk is gone"):
        lp.stream(tmp_path / "net.lil", hollow(Decoder), Watched(net, "blocks.2"), recipe, **given)
    assert not (tmp_path / "net.lil").exists() and len(fitted) == 4
    lp.stream(tmp_path / "net.lil", hollow(Decoder), net, recipe, **given)
    assert len(fitted) == len(set(fitted)) == 6
    lp.stream(tmp_path / "again.lil", hollow(Decoder), net, recipe, calibrate=words())
    assert (tmp_path / "net.lil").read_bytes() == (tmp_path / "again.lil").read_bytes()
    with pytest.raises(lp.errors.LilliputError, match="another recipe"):
        lp.stream(tmp_path / "net.lil", hollow(Decoder), net, lp.Recipe([lp.Quantize()]), **given)


class Own:
    """A source of a user's: no class of ours, and numbers that are made as they are asked for."""

    def __init__(self) -> None:
        self.shapes = {"0.weight": (WIDTH, WIDTH), "2.weight": (WORDS, WIDTH)}

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16)

    def read(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        shape = self.shapes[name]
        whole = (np.arange(shape[0] * shape[1]) % 7).astype(ml_dtypes.bfloat16)
        return whole.reshape(shape) if (first, last) == (0, None) else whole[first:last]


def test_a_source_of_the_users(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, WORDS, bias=False))

    lp.stream(tmp_path / "net.lil", hollow(make), Own(), lp.Recipe([lp.Quantize(where="2")]))
    found = lp.load(tmp_path / "net.lil", into=make())
    right = torch.arange(WORDS * WIDTH).remainder(7).reshape(WORDS, WIDTH).float()
    assert torch.equal(found[0].weight.float().flatten(), torch.arange(WIDTH * WIDTH).remainder(7).float())
    close(found[2].weight.float(), right, share=0.01)


def test_what_is_told(tmp_path: Path) -> None:
    recipe = lp.Recipe([lp.Quantize(weights=INT4, rounding=lp.rounding.GPTQ(), where=("blocks.*", "embed"))])
    stages = []
    told = lp.stream(
        tmp_path / "net.lil",
        hollow(Decoder),
        made(Decoder),
        recipe,
        calibrate=words(),
        assets={"words.txt": b"a b"},
        progress=lambda doing, done, of: stages.append((done, of)),
    )
    assert told.notes == {"embed.weight": "rounded to the nearest: what embedding reads is not looked at"}
    assert sum(told.sizes.values()) == (tmp_path / "net.lil").stat().st_size
    assert stages == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
