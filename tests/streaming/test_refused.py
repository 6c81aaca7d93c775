"""What cannot be streamed is refused with the place, before any tensor is read and before a file is begun."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Angles, Decoder, Looping, Skipping, hollow, made, words
from safetensors.torch import save_file
from torch import nn

import lilliput as lp
from lilliput.errors import InputError, RecipeError
from lilliput.streaming.weights import Weights

RECIPE = lp.Recipe([lp.Quantize(weights=lp.Int(4))])


@pytest.fixture(autouse=True)
def _nothing_is_read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.function is not test_what_only_running_shows:

        def read(self: Weights, name: str) -> Any:
            raise AssertionError(f"{name} was read")

        monkeypatch.setattr(Weights, "read", read)


def shards(folder: Path, change: Callable[[dict[str, torch.Tensor]], None] = lambda held: None) -> Path:
    """A checkpoint in two files, with an index."""
    held = dict(made(Decoder).state_dict())
    change(held)
    names = sorted(held)
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    folder.mkdir()
    for file in set(where.values()):
        save_file({name: held[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def refused(
    source: Any, path: Path, make: Any = Decoder, recipe: lp.Recipe = RECIPE, **given: Any
) -> lp.errors.LilliputError:
    with pytest.raises(lp.errors.LilliputError) as caught:
        lp.stream(path / "small.lil", hollow(make), source, recipe, **given)
    assert not (path / "small.lil").exists()
    assert caught.value.next
    return caught.value


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    folder = shards(tmp_path / "net")
    (folder / "part-1.safetensors").unlink()
    assert "part-1.safetensors" in str(refused(folder, tmp_path))


def test_a_shard_that_is_cut_short(tmp_path: Path) -> None:
    file = shards(tmp_path / "net") / "part-1.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    error = refused(file.parent, tmp_path)
    assert "part-1.safetensors" in error.where and "cut short" in error.next


def test_an_index_that_is_wrong(tmp_path: Path) -> None:
    index = shards(tmp_path / "net") / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    other = {name: f"part-{1 - int(file[5])}.safetensors" for name, file in listed["weight_map"].items()}
    for text, told in (
        (json.dumps({"weight_map": other}), "holds no"),
        ("{", "index"),
        ('{"weight_map": {}}', "index"),
    ):
        index.write_text(text)
        assert told in str(refused(index.parent, tmp_path))


def test_an_index_that_leads_elsewhere(tmp_path: Path) -> None:
    folder = shards(tmp_path / "net")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../net/part-0.safetensors"}}')
    assert "index" in str(refused(folder, tmp_path))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda held: held.pop("blocks.1.up.weight"), "lacks 'blocks.1.up.weight'"),
    "unknown": (lambda held: held.update(other=torch.zeros(1)), "has 'other'"),
    "shape": (lambda held: held.update({"norm.bias": torch.zeros(3)}), "(3,)"),
    "double": (lambda held: held.update({"norm.bias": held["norm.bias"].double()}), "float64"),
    "integers": (lambda held: held.update({"norm.bias": held["norm.bias"].int()}), "int32"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_tensors_that_are_not_the_models(kind: str, tmp_path: Path) -> None:
    change, told = CHANGES[kind]
    assert told in str(refused(shards(tmp_path / "net", change), tmp_path))


STEPS: dict[str, Any] = {
    "activations": lp.Quantize(weights=lp.Int(8), activations=lp.Int(8, dynamic=True)),
    "one list": lp.techniques.Share(16, together=True),
    "blocks of its own": lp.Quantize(weights=lp.Int(4), rounding=lp.rounding.BRECQ()),
    "a budget": lp.Prune("channels", macs=0.5),
    "zeros": lp.Prune("weights", 0.5),
    "training": lp.Finetune(epochs=1),
}


@pytest.mark.parametrize("kind", STEPS)
def test_steps_that_need_the_whole(kind: str, tmp_path: Path) -> None:
    error = refused(made(Decoder), tmp_path, recipe=lp.Recipe([STEPS[kind]]), calibrate=words())
    assert isinstance(error, RecipeError) and error.where.startswith("step 1") and "lp.apply" in error.next


def test_steps_that_need_data(tmp_path: Path) -> None:
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(4), rounding=lp.rounding.GPTQ())])
    assert "calibrate" in refused(made(Decoder), tmp_path, recipe=recipe).next


@pytest.mark.parametrize("step", [lp.Quantize(where="bloks.*"), lp.Quantize(weights={"bloks.1.*": lp.Int(4)})])
def test_names_of_no_layer(step: Any, tmp_path: Path) -> None:
    assert isinstance(refused(made(Decoder), tmp_path, recipe=lp.Recipe([step])), RecipeError)


def test_a_model_with_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="meta"):
        lp.stream(tmp_path / "small.lil", made(Decoder), made(Decoder), RECIPE)


class Drawn(Angles):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("speed", torch.rand(width // 2), persistent=False)


class Forgetful(Angles):
    def __init__(self, size: int) -> None:
        super().__init__(size)


@pytest.mark.parametrize(("kind", "why"), [(Drawn, "at random"), (Forgetful, "'size'")])
def test_buffers_that_cannot_be_made_again(kind: Any, why: str, tmp_path: Path) -> None:
    def make() -> nn.Module:
        net = Decoder()
        net.angles = kind(16)
        return net

    error = refused(made(Decoder), tmp_path, make)
    assert error.where == "angles.speed" and why in error.why


def test_the_remedy_for_buffers(tmp_path: Path) -> None:
    """Each tensor is put in its place as it is told; then work begins."""

    def make() -> nn.Module:
        net = Decoder()
        net.angles = Forgetful(16)
        return net

    net, right = hollow(make), made(make)
    for place in ("speed", "scale"):
        with pytest.raises(InputError) as caught:
            lp.stream(tmp_path / "small.lil", net, right, RECIPE)
        assert f"model.angles.{place} = " in caught.value.next
        setattr(net.angles, place, getattr(right.angles, place))
    with pytest.raises(AssertionError, match="was read"):
        lp.stream(tmp_path / "small.lil", net, right, RECIPE)


class Cached(Decoder):
    def forward(self, ids: Any) -> Any:
        return self.blocks[0](self.embed(ids), self.angles(ids), memory=object())


CALLS: dict[str, tuple[type[nn.Module], str]] = {"twice": (Looping, "blocks.0"), "with objects": (Cached, "blocks.0")}


@pytest.mark.parametrize("kind", CALLS)
def test_blocks_that_are_called_otherwise(kind: str, tmp_path: Path) -> None:
    make, where = CALLS[kind]
    assert refused(made(make), tmp_path, make, calibrate=words()).where == where


class Reading(Looping):
    """Runs on no meta device."""

    def forward(self, ids: Any) -> Any:
        x, turned = self.embed(ids), self.angles(ids)
        for block in self.blocks if bool((ids >= 0).all()) else ():
            x = block(x, turned)
        return self.head(self.blocks[0](x, turned))


LATE: dict[str, tuple[type[nn.Module], str]] = {
    "what an earlier block gave": (Skipping, "blocks.2"),
    "a block twice": (Reading, "blocks.0"),
}


@pytest.mark.parametrize("kind", LATE)
def test_what_only_running_shows(kind: str, tmp_path: Path) -> None:
    make, where = LATE[kind]
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(4), where=("*", "!embed"))])
    assert refused(made(make), tmp_path, make, recipe, calibrate=words()).where == where


def test_batches_that_the_model_does_not_take(tmp_path: Path) -> None:
    assert refused(made(Decoder), tmp_path, calibrate=[{"words": words()[0]}]).where == "calibrate[0]"
