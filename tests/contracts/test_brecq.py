"""Rounding the weights of a block together: the block gives what it gave, whatever it is called with and returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import NF4, Codebook, Encoding, Int
from lilliput.engine.begin import begin, follow
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import EncodingError, InputError, RecipeError
from lilliput.model.carrier.parameters import encoding_of, read
from lilliput.model.edits.edits import SetTensor
from lilliput.model.surgery.depth import repeated
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs
from lilliput.progress import silent
from lilliput.targets import OnnxRuntime
from lilliput.techniques.blocks import Block, BlockStop, blocks
from lilliput.techniques.choice import JointChoice
from lilliput.techniques.encode import encode_block, set_tensor
from lilliput.techniques.rounding import BRECQ, Rounding
from lilliput.techniques.soft import UpOrDown, decide, reconstruct
from lilliput.techniques.walk import walk

QUICK = BRECQ(steps=150, lr=0.03)


class Residual(nn.Module):
    """Changes its input in place, takes a tensor by keyword, and returns a tuple beside a number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, *, gate: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x.tanh_()
        y = self.down(torch.relu(self.up(x)))
        return x + gate * y, {"hidden": y, "count": 3}


class Blocks(nn.Module):
    def __init__(self, width: int = 12, count: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.layers = nn.ModuleList(Residual(width) for _ in range(count))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(x[:, :1])
        for layer in self.layers:
            x, _ = layer(x, gate=gate)
        return self.head(x)


def net() -> Blocks:
    torch.manual_seed(0)
    return Blocks().eval()


def batches(count: int = 4, size: int = 32) -> list[Tensor]:
    torch.manual_seed(1)
    return list((torch.randn(count * size, 3) @ torch.randn(3, 6)).split(size))


def driven(
    model: nn.Module, rounding: Rounding | None, weights: Encoding | None = None, folder: Path | None = None
) -> Driver:
    given = batches()
    task = lp.Task(model, calibrate=given, example=given[0][:1], dynamic={})
    driver, _ = begin(task, OnnxRuntime(), Store(folder), silent)
    follow(lp.Recipe([lp.Quantize(weights=weights or Int(3), rounding=rounding)]), driver)
    return driver


@torch.no_grad()
def error(model: nn.Module, exact: nn.Module) -> float:
    x = torch.cat(batches())
    return float((model(x) - exact(x)).square().mean())


@pytest.mark.parametrize("encoding", [Int(3), Int(3, group=6), Codebook(6), NF4()], ids=repr)
def test_blocks_come_closer_to_what_they_were_with_numbers_of_the_encoding(encoding: Encoding) -> None:
    exact = net()
    rounded = driven(net(), QUICK, encoding)
    assert error(rounded.model, exact) < 0.6 * error(driven(net(), None, encoding).model, exact)
    for path in ("layers.0.up.weight", "layers.1.down.weight"):
        assert encoding_of(rounded.model, path) == encoding.for_weight(None)
        assert path not in rounded.told.notes
    assert rounded.told.notes["stem.weight"] == rounded.told.notes["head.weight"] == "in no block: rounded by itself"
    assert not [thread for thread in threading.enumerate() if type(thread).__name__ == "_Pass"]
    assert not any(module._forward_pre_hooks for module in rounded.model.modules())


def test_convolutions_of_every_kind_are_rounded_within_a_block() -> None:
    def block() -> nn.Sequential:
        up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        return nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(True), nn.Conv2d(8, 8, 3, 1, 1, groups=8), up)

    torch.manual_seed(5)
    model = nn.Sequential(block(), block()).eval()
    data = list(torch.nn.functional.interpolate(torch.randn(24, 4, 3, 3), 8, mode="bilinear").split(8))
    errors = []
    for rounding in (None, QUICK):
        driver, _ = begin(lp.Task(model, calibrate=data), OnnxRuntime(), Store(), silent)
        follow(lp.Recipe([lp.Quantize(weights=Int(3), rounding=rounding)]), driver)
        with torch.no_grad():
            errors.append(sum((driver.model(x) - model(x)).square().sum() for x in data))
    assert not driver.told.notes
    assert errors[1] < 0.6 * errors[0]


def test_pruned_weights_stay_zero() -> None:
    model, data = net(), batches()
    task = lp.Task(model, calibrate=data, example=data[0][:1], dynamic={})
    driver, _ = begin(task, OnnxRuntime(), Store(), silent)
    follow(lp.Recipe([lp.Prune("weights", 0.5), lp.Quantize(weights=Int(4), rounding=QUICK)]), driver)
    for path in ("layers.0.up.weight", "layers.1.down.weight"):
        assert float((read(driver.model, path) == 0).float().mean()) >= 0.4


def test_a_layer_stays_beside_the_weight_and_biases_stay_where_they_are_not_to_move() -> None:
    exact, encoding = net(), Int(4)
    task = lp.Task(exact, calibrate=batches(), example=batches()[0][:1], dynamic={})
    driver, _ = begin(task, OnnxRuntime(), Store(), silent)
    follow(lp.Recipe([lp.Quantize(weights=encoding, rounding=QUICK, bias_correction=False)]), driver)
    for path, module in exact.named_modules():
        if isinstance(module, nn.Linear):
            assert torch.equal(read(driver.model, f"{path}.bias"), module.bias)
    for path in ("layers.0.up", "layers.1.down"):
        weight = exact.get_parameter(f"{path}.weight").detach()
        step = lp.ranges.MSE().fit(weight, Int(4).for_weight(None))["scale"][:, None]
        inside = weight.abs() <= 7 * step
        assert bool(((read(driver.model, f"{path}.weight") - weight).abs() <= step * 1.0001)[inside].all())


def test_what_earlier_blocks_did_is_made_up_for() -> None:
    exact = net()
    errors = [error(driven(net(), BRECQ(steps=200, lr=0.03, correct=c), Int(2)).model, exact) for c in (True, False)]
    assert errors[0] < errors[1]


def test_a_resumed_run_goes_on_at_the_block_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, once = [], BRECQ.block
    whole = driven(net(), BRECQ(steps=10), folder=tmp_path)

    def counted(self: BRECQ, *given: Any) -> dict[str, Tensor]:
        seen.append("block")
        if len(seen) == 2:
            raise KeyboardInterrupt
        return once(self, *given)

    monkeypatch.setattr(BRECQ, "block", counted)
    assert driven(net(), BRECQ(steps=10), folder=tmp_path).state.digest == whole.state.digest
    assert not seen
    with pytest.raises(KeyboardInterrupt):
        driven(net(), BRECQ(steps=9), folder=tmp_path)
    again = driven(net(), BRECQ(steps=9), folder=tmp_path)
    assert len(seen) == 3  # one was kept, one was cut off, one was left
    assert again.state.digest == driven(net(), BRECQ(steps=9)).state.digest


def test_a_block_that_no_batch_reaches_is_told() -> None:
    class Rare(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            for layer in self.layers if len(x) == 1 else self.layers[:1]:
                y, _ = layer(y, gate=y[:, :1])
            return self.head(y)

    torch.manual_seed(0)
    notes = driven(Rare().eval(), QUICK).told.notes
    assert "no calibration batch reaches it" in notes["layers.1.up.weight"]
    assert "layers.0.up.weight" not in notes


class Turning(nn.Module):
    """A block that batches enter whose sum, as the layer before gives it, is above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.body(x) if torch.compiler.is_exporting() or float(x.sum()) > 0 else x


FIRST, LAST = torch.tensor([1.0] * 3 + [0.0] * 3), torch.tensor([0.0] * 3 + [1.0] * 3)


@pytest.mark.parametrize(
    ("ways", "left", "told"),
    [
        ((FIRST, LAST, -FIRST, FIRST + LAST), [1, 3], "2 calibration batches do not reach it as they did before"),
        ((FIRST, FIRST), [], "no calibration batch reaches it as they did before other layers were rounded: rounded"),
    ],
    ids=["some", "all"],
)
def test_batches_that_enter_a_block_in_one_walk_only_are_left_out(
    ways: Sequence[Tensor], left: list[int], told: str
) -> None:
    torch.manual_seed(4)
    model, data = Turning().eval(), [(0.1 + torch.rand(7, 6)) * way for way in ways]
    nn.init.eye_(model.first.weight)
    nn.init.zeros_(model.first.bias)
    task = lp.Task(model, calibrate=data, example=data[0], dynamic={})
    driver, _ = begin(task, OnnxRuntime(), Store(), silent)
    weights = driver.view().weights
    paths = ["body.0.weight", "body.2.weight"]
    block = Block("body", {path: weights[path][0] for path in paths})
    exact = {path: read(driver.model, path) for path in paths}
    with closing(walk(driver, [weights["first.weight"][0], block])) as stops:
        next(stops)
        set_tensor(driver, "first.weight", torch.diag(LAST - FIRST))
        entry = next(stops)
        assert isinstance(entry, BlockStop)
        assert list(entry.batches) == left
        for correct in (True, False):
            assert list(entry.targets(correct)) == left
        encode_block(driver, dict.fromkeys(paths, Int(3)), JointChoice(None, BRECQ(steps=20, lr=0.1), entry))
    for path in paths:
        assert driver.told.notes[path].startswith(told)
        plain = Int(3).represent(exact[path]).decode()
        assert left or torch.equal(read(driver.model, path), plain)


def test_biases_are_set_in_the_order_of_the_layers() -> None:
    torch.manual_seed(6)
    many = nn.Sequential(*(nn.Linear(6, 6) for _ in range(8)))
    steps = driven(nn.Sequential(many, nn.ReLU()).eval(), BRECQ(steps=30, lr=0.03, blocks="0"), Int(2)).state.steps
    assert [step.edit.path for step in steps if isinstance(step.edit, SetTensor)] == [f"0.{i}.bias" for i in range(8)]


def test_what_is_used_twice_is_rounded_by_itself() -> None:
    class Twice(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            for layer in [*self.layers, self.layers[1]]:
                y, _ = layer(y, gate=y[:, :1])
            return self.head(y)

    torch.manual_seed(0)
    notes = driven(Twice(count=3).eval(), QUICK).told.notes
    assert "at the first of its 2 uses; in no block" in notes["layers.1.up.weight"]
    assert "layers.0.up.weight" not in notes


def chosen(model: nn.Module, x: Tensor, repeated: list[str], patterns: str | tuple[str, ...] = ()) -> list[str]:
    return [block.path for block in blocks(capture(model, Inputs.of(x), {}).weights, repeated, patterns, ())]


def test_blocks_are_the_innermost_repeated_modules_or_those_that_are_named() -> None:
    def pair() -> nn.Sequential:
        return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))

    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(pair(), pair()), nn.Sequential(pair(), pair()))
    x = torch.randn(2, 6)
    found = repeated(model)
    assert {"1", "2", "1.0", "2.1"} <= set(found)
    assert chosen(model, x, found) == ["1.0", "1.1", "2.0", "2.1"]
    assert chosen(model, x, found, "1*") == ["1"]
    assert chosen(model, x, found, ("1.*", "2", "!1.0*")) == ["1.1", "2"]
    with pytest.raises(RecipeError, match="modules are called"):
        chosen(model, x, found, "layers.*")
    with pytest.raises(RecipeError, match=r"no blocks found.*AdaRound"):
        chosen(model, x, [])


class Odd(nn.Module):
    """A block that gives something else than numbers that can be compared."""

    def __init__(self, gives: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.gives = nn.Linear(6, 6), nn.Linear(6, 6), gives

    def forward(self, x: Tensor) -> Tensor:
        return self.gives(self.two(torch.relu(self.one(x))))


@pytest.mark.parametrize(
    ("gives", "words"),
    [(lambda y: y.argmax(1), "floating-point"), (lambda y: (y - y) / (y - y), "NaN or infinite")],
    ids=["integers", "nan"],
)
def test_what_cannot_be_compared_is_named(gives: Callable[[Tensor], Tensor], words: str) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Odd(gives)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.nan_to_num(self.body(x)).sum()

    with pytest.raises(InputError, match=rf"(?s)body.*{words}|{words}.*body") as found:
        driven(Whole().eval(), BRECQ(steps=2, blocks="body"))
    assert "!body" in str(found.value)


def test_what_has_no_numbers_to_choose_from_and_knobs_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match="leave rounding= out"):
        lp.Quantize(weights=lp.formats.Float16(), rounding=BRECQ())
    with pytest.raises(RecipeError, match="steps"):
        BRECQ(steps=0)
    with pytest.raises(EncodingError, match="BRECQ onto"):
        BRECQ().numbers(lp.formats.Float16())
    driver, _ = begin(lp.Task(net(), example=batches()[0][:1], dynamic={}), OnnxRuntime(), Store(), silent)
    with pytest.raises(InputError, match="calibration batches"):
        follow(lp.Recipe([lp.Quantize(rounding=BRECQ())]), driver)


def test_a_recipe_comes_back_from_toml() -> None:
    recipe = lp.Recipe([lp.Quantize(weights=Int(4), rounding=BRECQ(blocks=("layers.*", "!layers.0"), steps=9))])
    assert lp.Recipe.from_toml(recipe.to_toml()) == recipe


def test_soft_choices_begin_at_the_weights_and_end_at_a_side() -> None:
    torch.manual_seed(2)
    weights = torch.rand(4, 5) * 0.9 + 0.05
    choice = UpOrDown(weights, torch.zeros(4, 5), torch.ones(4, 5))
    close(choice.soft(), weights, atol=1e-5)
    assert torch.equal(choice.hard(), weights.round())
    target = (torch.rand(4, 5) > 0.5).float()
    decide({"": choice}, lambda step: (choice.soft() - target).square().sum(), 200, 0.05, 0.01)
    assert torch.equal(choice.hard(), target)


def test_where_learning_does_harm_plain_rounding_is_kept() -> None:
    torch.manual_seed(3)
    weights, x = torch.rand(3, 4), torch.randn(8, 4)
    choice = UpOrDown(weights, weights.floor(), weights.floor() + 1)
    answer = partial(lambda batch, tensors: [x @ tensors["w"].T])
    found, _ = reconstruct({"w": choice}, {}, answer, {0: [x @ weights.round().T]}, 50, 1.0, 100.0)
    assert torch.equal(found["w"], weights.round())
