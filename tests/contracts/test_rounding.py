"""Rounding by what flows into a layer: the damage falls, the numbers are the encoding's, and data is seen in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.nn import functional

import lilliput as lp
from lilliput.encodings import NF4, Blockwise, Codebook, Encoding, Float16, Int, PowerOfTwo, Sparse
from lilliput.engine.begin import begin, follow
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import EncodingError, InputError, LilliputError, RecipeError
from lilliput.feeding import Batches
from lilliput.model.carrier.parameters import read
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.view import Call, Window
from lilliput.progress import silent
from lilliput.report.layers import layers
from lilliput.targets import OnnxRuntime
from lilliput.techniques.choice import Choice
from lilliput.techniques.encode import encode, set_tensor
from lilliput.techniques.inputs import Stop, gram, moments, patches
from lilliput.techniques.quantize import mean_shift
from lilliput.techniques.rounding import GPTQ, AdaRound, Rounding, compensated, damage, swept, with_damp
from lilliput.techniques.walk import walk, walking

FORMATS: tuple[Encoding, ...] = (
    Int(4),
    Int(3, symmetric=False),
    Int(4, group=8),
    Int(4, group=8, scale=Float16()),
    Int(2, per="tensor"),
    Int(4, group=8, symmetric=False, minimum=Float16()),
    Int(3, group=8, symmetric=False, scale=Int(6, group=4), minimum=Int(6, group=4)),
    Codebook(6),
    Codebook(4, per="channel"),
    NF4(group=16),
    PowerOfTwo(4),
    Blockwise(3, channels=4, group=8),
    Sparse(Int(4)),
)
ROUNDINGS: tuple[Rounding, ...] = (GPTQ(), GPTQ(sweeps=0), GPTQ(ordered=False, correct=False), AdaRound(steps=150))


def correlated(rows: int, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(count // 4, count, generator=generator)
    noise = torch.randn(rows, count, generator=generator)
    return torch.randn(rows, count // 4, generator=generator) @ mixing + 0.3 * noise


def stop_at(x: Tensor, original: Tensor | None = None, op: str = "linear") -> Stop:
    call = Call("linear", op, "fc:linear#0", ("input x", "tensor fc.weight"), (), weights=("fc.weight",))
    return Stop(call, lambda: {0: x}, lambda: {0: x if original is None else original})


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=repr)
@pytest.mark.parametrize("encoding", FORMATS, ids=repr)
def test_damage_falls_and_the_numbers_are_the_encodings(encoding: Encoding, rounding: Rounding) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(24, 32), correlated(512, 32)
    if isinstance(encoding, Sparse):
        weight = weight * (torch.rand(24, 32) > 0.5)
    stop, parameters = stop_at(x), encoding.fit(weight)
    rounded, found = rounding.round(weight, encoding, parameters, stop)
    decoded = encoding.represent(rounded, found).decode()
    close(decoded, rounded, rtol=1e-5, atol=1e-7)
    assert rounded.dtype == weight.dtype and rounded.shape == weight.shape
    if isinstance(encoding, Sparse):
        assert bool((decoded[weight == 0] == 0).all())
    gram = stop.moments.gram
    nearest = encoding.represent(weight, parameters).decode()
    least = damage(weight[None], nearest[None], gram)
    assert damage(weight[None], decoded[None], gram) < 0.9 * least


def test_unrelated_inputs_are_rounded_to_the_nearest() -> None:
    torch.manual_seed(2)
    weights, gram = torch.randn(1, 5, 16).double(), torch.diag(torch.rand(16).double() + 0.5)[None]
    found = compensated(weights, gram, lambda column, j: column.round(), ordered=True)
    assert torch.equal(found, weights.round())


def test_a_sweep_never_does_harm_and_ends_where_no_single_change_helps() -> None:
    torch.manual_seed(3)
    x = correlated(256, 24).double()
    gram, weights = with_damp((x.T @ x / 256)[None], 0.01), 2 * torch.randn(1, 6, 24).double()
    rounded = weights.round()
    before = damage(weights, rounded, gram)
    for _ in range(30):
        rounded = swept(weights, rounded, gram, lambda column, j: column.round())
        after = damage(weights, rounded, gram)
        assert after <= before + 1e-9
        before = after
    for j in range(24):
        for move in (-1.0, 1.0):
            other = rounded.clone()
            other[0, 0, j] += move
            assert damage(weights, other, gram) >= before - 1e-9


def test_adaptive_rounding_stays_beside_the_weight() -> None:
    torch.manual_seed(4)
    weight, x = torch.randn(8, 16), correlated(256, 16)
    encoding = Int(4)
    rounded, found = AdaRound(steps=100, correct=False).round(weight, encoding, encoding.fit(weight), stop_at(x))
    assert bool(((rounded - weight).abs() <= found["scale"][:, None] * 1.0001).all())


def test_what_earlier_layers_did_is_made_up_for() -> None:
    torch.manual_seed(5)
    original, weight = correlated(512, 32), torch.randn(24, 32)
    seen = original + 0.3 * correlated(512, 32, seed=9)
    encoding, errors = Int(8), {}
    for correct in (True, False):
        rounded, found = GPTQ(correct=correct).round(weight, encoding, encoding.fit(weight), stop_at(seen, original))
        errors[correct] = (original @ weight.T - seen @ encoding.represent(rounded, found).decode().T).square().mean()
    assert errors[True] < 0.8 * errors[False]


def stop_of(*batches: Tensor) -> Stop:
    call = Call("linear", "linear", "fc:linear#0", ("input x", "tensor fc.weight"), (), weights=("fc.weight",))
    return Stop(call, lambda: dict(enumerate(batches)), lambda: dict(enumerate(batches)))


def test_what_may_be_chance_follows_from_how_the_batches_differ() -> None:
    batches = [correlated(60 + 20 * i, 8, seed=i) for i in range(5)]  # each with a mixing of its own
    seen = stop_of(*batches).moments.centred()
    mean = torch.cat(batches).mean(0)
    whole = (torch.cat(batches) - mean).T @ (torch.cat(batches) - mean) / len(torch.cat(batches))
    share = [len(x) / sum(map(len, batches)) for x in batches]
    differ = common = 0.0
    for i in range(8):
        for j in range(8):
            if i != j:
                size = float(whole[i, i] * whole[j, j])
                common += float(whole[i, j]) ** 2 / size
                for part, x in zip(share, batches, strict=True):
                    own = float(((x - mean)[:, i] * (x - mean)[:, j]).mean())
                    differ += (part * (own - float(whole[i, j]))) ** 2 / size / (1 - sum(s**2 for s in share))
    assert seen.chance() == pytest.approx(min(1.0, differ / common), rel=1e-3)
    assert stop_of(batches[0]).moments.centred().chance() == 0
    alike = correlated(6000, 8).split(300)
    assert stop_of(*alike).moments.centred().chance() < 0.02
    assert stop_of(*torch.randn(200, 8).split(20)).moments.centred().chance() > 0.3


def test_many_batches_are_seen_in_few_parts_and_dead_inputs_say_nothing() -> None:
    x = correlated(200, 8)
    x[:, 2] = 0
    found = stop_of(*x.split(2)).moments.centred()
    assert len(found.folds) == 16 and sum(rows for rows, _, _ in found.folds) == 200
    assert 0 < found.chance() < 1
    assert stop_of(*torch.zeros(8, 4).split(2)).moments.centred().chance() == 0


def test_weights_are_not_fitted_to_what_single_batches_show() -> None:
    def sources(count: int) -> list[Tensor]:
        return [torch.randn(64, 1) @ (2 * torch.randn(1, 32)) + torch.randn(64, 32) for _ in range(count)]

    torch.manual_seed(11)
    weight, encoding = torch.randn(24, 32), Int(3)
    stop, unseen = stop_of(*sources(6)), torch.cat(sources(200))
    gram = (unseen.T @ unseen / len(unseen))[None]
    errors = []
    for rounding in (GPTQ(), GPTQ(shrink=0.0), GPTQ(shrink=1.0, sweeps=0)):
        rounded, _ = rounding.round(weight, encoding, encoding.fit(weight), stop)
        errors.append(damage(weight[None], rounded[None], gram))
    assert errors[0] < 0.8 * errors[1]
    nearest = encoding.represent(weight, encoding.fit(weight)).decode()
    assert damage(weight[None], nearest[None], gram) == pytest.approx(float(errors[2]), rel=1e-3)


WINDOWS = [
    nn.Conv1d(4, 6, 3, 2, 1),
    nn.Conv2d(4, 6, 3, padding="same", dilation=2),
    nn.Conv2d(4, 8, (3, 1), (1, 2), (1, 0), groups=2),
    nn.Conv2d(6, 6, 3, 1, 1, groups=6),
    nn.Conv3d(2, 4, 2),
]


@pytest.mark.parametrize("layer", WINDOWS, ids=repr)
def test_patches_times_weights_are_the_convolution(layer: nn.Conv2d) -> None:
    x = torch.randn(3, layer.in_channels, *[7] * (layer.weight.dim() - 2))
    call = next(call for call in capture(layer, Inputs.of(x), {}).calls if call.window)
    assert isinstance(call.window, Window)
    seen = patches(x, call.window)
    weight = layer.weight.flatten(1).reshape(layer.groups, -1, seen.shape[2])
    found = (seen @ weight.transpose(1, 2)).transpose(0, 1).flatten(1) + layer.bias
    close(found, layer(x).movedim(1, -1).flatten(0, -2), atol=1e-5)
    wanted = seen.transpose(1, 2) @ seen / seen.shape[1]
    for found in (moments([(x, x)], call).gram, gram([x], call)):
        close(found, wanted, atol=1e-5)


class Branching(nn.Module):
    """A layer used twice, one written as a function, one that only some inputs reach."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.rare = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = functional.linear(x, self.second.weight, self.second.bias)
        return self.first(x)


def calls_of(model: nn.Module, x: Tensor) -> list[Call]:
    return [calls[0] for calls in capture(model, Inputs.of(x), {}).weights.values()]


def batches_of(*data: Tensor) -> Batches:
    return Batches.checked(list(data), "calibrate", Inputs.of(data[0]), {0: {0: "batch"}})


def test_batches_wait_where_the_model_is_changed_and_go_on_as_it_then_is() -> None:
    torch.manual_seed(6)
    model, data = Branching().eval(), [torch.randn(3, 6), torch.randn(2, 6)]
    calls = calls_of(model, data[0])
    with torch.no_grad(), walking(model, batches_of(*data), calls) as walk:
        first = walk.inputs(calls[0])
        assert all(torch.equal(first[i], x) for i, x in enumerate(data)) and len(first) == 2
        model.first.weight.mul_(2)
        walk.leave(calls[0])
        second = walk.inputs(calls[1])
        assert len(second) == 2
        for i, x in enumerate(data):
            close(second[i], torch.relu(model.first(x)))
    assert not [thread for thread in threading.enumerate() if type(thread).__name__ == "_Pass"]


class Turning(nn.Module):
    """A layer reached by batches whose sum, as the layer before gives it, is above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if torch.compiler.is_exporting() or float(x.sum()) > 0 else x


FIRST, LAST = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])


def at_a_turn(*data: Tensor) -> tuple[Driver, Iterator[Stop]]:
    """A walk that has come to a layer which batches of positive `FIRST` reached before, and negative ones do now."""
    model = Turning().eval()
    nn.init.eye_(model.first.weight)
    nn.init.zeros_(model.first.bias)
    driver = Driver.start(
        model,
        example=Inputs.of(data[0]),
        dynamic={},
        calibrate=batches_of(*data),
        target=OnnxRuntime(),
        store=Store(),
        environment="a test",
    )
    stops = walk(driver, calls_of(model, data[0]))
    next(stops)
    set_tensor(driver, "first.weight", torch.diag(LAST - FIRST))
    return driver, stops


def test_a_batch_that_now_goes_another_way_is_left_out() -> None:
    torch.manual_seed(14)
    data = [(0.1 + torch.rand(7, 4)) * way for way in (FIRST, -FIRST, LAST)]
    driver, stops = at_a_turn(*data)
    stop = next(stops)
    assert list(stop.inputs) == [1, 2] and list(stop.batches) == [2]
    close(stop.moments.gram[0], data[2].T @ data[2] / 7)
    close(stop.gram[0], (data[1].T @ data[1] + data[2].T @ data[2]) / 14)
    encode(driver, "second.weight", Int(3), Choice(rounding=GPTQ(), stop=stop))
    assert driver.told.notes["second.weight"].startswith("2 calibration batches do not reach it as they did before")


def test_where_all_go_another_way_it_is_as_if_none_came() -> None:
    torch.manual_seed(15)
    driver, stops = at_a_turn(*((0.1 + torch.rand(7, 4)) * way for way in (FIRST, -FIRST)))
    stop, exact = next(stops), read(driver.model, "second.weight")
    encode(driver, "second.weight", Int(3), Choice(rounding=GPTQ(), stop=stop))
    assert torch.equal(read(driver.model, "second.weight"), Int(3).represent(exact).decode())
    assert "no calibration batch reaches it as they did before" in driver.told.notes["second.weight"]
    assert not mean_shift(exact, read(driver.model, "second.weight"), stop).any()


def test_what_is_told_of_a_layer_is_told_once_and_until_it_is_encoded_again() -> None:
    driver, _ = at_a_turn(torch.randn(2, 4))
    driver.note("second.weight", "2 of 4 channels left", lasting=True)
    for text in ("seen once", "seen once", "by itself"):
        driver.note("second.weight", text)
    assert driver.told.notes == {"second.weight": "2 of 4 channels left; seen once; by itself"}
    encode(driver, "second.weight", Int(3))
    assert driver.told.notes == {"second.weight": "2 of 4 channels left"}


def test_the_original_runs_only_where_it_is_asked_for() -> None:
    runs: list[int] = []
    model, x = Branching().eval(), torch.randn(2, 6)
    calls = calls_of(model, x)
    now, then = ({0: x}, {0: x})

    def original() -> dict[int, Tensor]:
        runs.append(1)
        return then

    stop = Stop(calls[0], lambda: now, original)
    assert stop.gram.shape == (1, 6, 6) and not runs
    close(stop.moments.gram, stop.gram)
    assert runs


def test_nothing_runs_until_inputs_are_asked_for() -> None:
    model, x = Branching().eval(), torch.randn(2, 6)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(1))
    calls = calls_of(model, x)
    seen.clear()
    with walking(model, batches_of(x), calls) as walk:
        for call in calls:
            walk.leave(call)
    assert not seen


def test_what_fails_on_the_way_is_raised_where_it_is_awaited() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.rows = nn.Linear(4, 4), nn.Linear(4, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            if self.rows and x.shape[0] > self.rows:
                raise ValueError("too many rows")
            return self.two(x)

    model = Fails().eval()
    calls = calls_of(model, torch.randn(2, 4))
    model.rows = 2
    data = batches_of(torch.randn(2, 4), torch.randn(5, 4))
    with walking(model, data, calls) as walk:
        walk.inputs(calls[0])
        walk.leave(calls[0])
        with pytest.raises(InputError, match=r"calibrate\[1\].*too many rows"):
            walk.inputs(calls[1])
    assert not [thread for thread in threading.enumerate() if type(thread).__name__ == "_Pass"]


def net() -> nn.Sequential:
    torch.manual_seed(7)
    convolutions = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8))
    return nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


def pictures(count: int = 3, size: int = 16) -> list[Tensor]:
    torch.manual_seed(8)
    smooth = functional.interpolate(torch.randn(count * size, 3, 3, 3), 8, mode="bilinear")
    return list((smooth + 0.1 * torch.randn(count * size, 3, 8, 8)).split(size))


def compressed(rounding: Rounding | None, folder: Path | None = None, **task: object) -> lp.results.Result:
    given = {"calibrate": pictures(), **task}
    recipe = lp.Recipe([lp.Quantize(weights=Int(3), rounding=rounding)])
    return lp.compress(lp.Task(net(), **given), recipe, target=OnnxRuntime(seconds=3), folder=folder)  # type: ignore[arg-type]


def rounded(rounding: Rounding | None) -> nn.Module:
    driver, _ = begin(lp.Task(net(), calibrate=pictures()), OnnxRuntime(), Store(), silent)
    follow(lp.Recipe([lp.Quantize(weights=Int(3), rounding=rounding)]), driver)
    return driver.model


@pytest.mark.parametrize("rounding", [GPTQ(), AdaRound(steps=150)], ids=repr)
def test_a_network_comes_closer_to_what_it_was(rounding: Rounding) -> None:
    x, exact = torch.cat(pictures()), net()
    with torch.no_grad():
        errors = [(rounded(r)(x) - exact(x)).square().mean() for r in (None, rounding)]
    assert errors[1] < 0.6 * errors[0]


def test_a_resumed_run_rounds_nothing_again_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compressed(GPTQ(), tmp_path / "whole")
    seen: list[str] = []
    round_once = GPTQ.round

    def counted(self: GPTQ, x: Tensor, *rest: object) -> object:
        seen.append("round")
        if len(seen) == 2:
            raise KeyboardInterrupt
        return round_once(self, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(GPTQ, "round", counted)
    with pytest.raises(KeyboardInterrupt):
        compressed(GPTQ(), tmp_path / "cut")
    again = compressed(GPTQ(), tmp_path / "cut")
    assert len(seen) == 2 + 2  # one was kept, one was cut off, two were left
    assert (tmp_path / "cut" / "net.lil").read_bytes() == (whole.folder / "net.lil").read_bytes()
    assert again.state.digest == whole.state.digest


def test_without_batches_it_is_refused() -> None:
    with pytest.raises(InputError, match="calibration batches"):
        compressed(GPTQ(), calibrate=None, example=pictures()[0])


def told(model: nn.Module, data: list[Tensor], example: Tensor) -> dict[str, str]:
    """By the path of each weight, what a report tells of it after GPTQ."""
    task = lp.Task(model.eval(), calibrate=data, example=example, dynamic={})
    driver, _ = begin(task, OnnxRuntime(), Store(), silent)
    follow(lp.Recipe([lp.Quantize(weights=Int(4), rounding=GPTQ())]), driver)
    with torch.no_grad():
        assert (driver.model(data[0]) - model(data[0])).abs().max() < 1.0
    return {row["path"]: row["note"] for row in layers(driver, {}, {})}


def test_what_could_not_be_rounded_by_what_flows_is_told() -> None:
    class Rare(Branching):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x + self.table.weight[1]) + self.table((x[:, 0] > 0).long())
            return self.rare(y) if len(x) == 1 else y

    torch.manual_seed(9)
    rows = told(Rare(), [torch.randn(8, 6), torch.randn(8, 6)], torch.randn(1, 6))
    assert "at the first of its 2 uses" in rows["first.weight"]
    assert "no calibration batch reaches it" in rows["rare.weight"]
    assert "what embedding reads is not looked at" in rows["table.weight"]
    assert "rounded" not in rows["second.weight"]


class Forked(nn.Module):
    """A layer that single samples alone reach."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.rare = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.often(x))
        return self.rare(y) if len(x) == 1 else y


def test_a_range_that_no_batch_shows_is_refused_and_a_bias_left() -> None:
    task = lp.Task(Forked().eval(), calibrate=[torch.randn(8, 6)], example=torch.randn(1, 6), dynamic={})
    driver, _ = begin(task, OnnxRuntime(), Store(), silent)
    with pytest.raises(InputError, match=r"rare:linear#0@0: no calibration batch reaches it.*where=\"!rare\""):
        follow(lp.Recipe([lp.Quantize(activations=Int(8))]), driver)
    driver, _ = begin(task, OnnxRuntime(), Store(), silent)
    follow(lp.Recipe([lp.Quantize()]), driver)
    assert "its bias is not corrected" in {row["path"]: row["note"] for row in layers(driver, {}, {})}["rare.weight"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(GPTQ, damp=0.0), "damp"),
        (partial(GPTQ, sweeps=-1), "sweeps"),
        (partial(AdaRound, steps=0), "steps"),
        (partial(GPTQ, shrink=1.5), "shrink"),
        (partial(AdaRound, damp=2.0), "damp"),
    ],
)
def test_knobs_that_cannot_be_are_refused(make: Callable[[], Rounding], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make()


def test_what_has_no_numbers_to_choose_from_is_refused_by_name() -> None:
    with pytest.raises(EncodingError, match="GPTQ onto"):
        GPTQ().round(torch.randn(4, 8), Float16(), {}, stop_at(correlated(16, 8)))

    with pytest.raises(RecipeError, match="leave rounding= out"):
        lp.Quantize(weights=Sparse(Float16()), rounding=GPTQ())


def test_infinite_inputs_are_named() -> None:
    x = correlated(16, 8)
    x[3, 2] = torch.inf
    with pytest.raises(LilliputError, match=r"fc\.weight.*NaN or infinite"):
        GPTQ().round(torch.randn(4, 8), Int(4), Int(4).fit(torch.randn(4, 8)), stop_at(x))


def test_dead_inputs_change_nothing() -> None:
    torch.manual_seed(10)
    x, weight = correlated(64, 8), torch.randn(4, 8)
    x[:, :3] = 0
    rounded, _ = GPTQ().round(weight, Int(4), Int(4).fit(weight), stop_at(x))
    assert bool(torch.isfinite(rounded).all())
    everything: Sequence[Tensor] = (torch.zeros(16, 8),)
    rounded, found = GPTQ().round(weight, Int(4), Int(4).fit(weight), stop_at(everything[0]))
    assert torch.equal(rounded, Int(4).represent(weight, found).decode())
