"""Convolutions that become several under their old path: how near they are, which may, and what comes after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import LowRank
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import FormatError, RecipeError
from lilliput.model.carrier.parameters import encoding_of
from lilliput.model.edits.division import Divide
from lilliput.model.edits.origins import origins
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.model.views.values import value_encodings
from lilliput.techniques import divide as dividing
from lilliput.techniques.forms import DIVISIONS, Form, Parts, keeping, leaving, most, numbers
from lilliput.techniques.technique import Technique

RANKS: dict[Form, int] = {"spatial": 4, "tucker": 6, "separable": 2}
FORMS = list(RANKS)
ORT = lp.targets.OnnxRuntime(threads=1, seconds=0)


def driven(steps: list[Technique], net: nn.Module, x: Tensor) -> Driver:
    example = Inputs.of(x)
    driver = Driver.start(
        net.eval(),
        example=example,
        dynamic=dynamic_axes(example, None),
        calibrate=None,
        target=ORT,
        store=Store(),
        environment="",
    )
    for step in steps:
        step.apply(driver)
    return driver


def divided(layer: nn.Module, parts: Parts) -> nn.Sequential:
    """The parts of a layer that is alone in a network."""
    net = nn.Sequential(layer)
    given = {f"{i}.weight": x for i, x in enumerate(parts.weights)}
    if layer.bias is not None:
        given[f"{len(parts.weights) - 1}.bias"] = layer.bias.detach()  # type: ignore[operator]
    Divide("0", parts.outputs, parts.axes, parts.groups).apply(net, given)
    assert isinstance(net[0], nn.Sequential)
    return net[0]


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stride and padding": (lambda: nn.Conv2d(6, 8, (3, 5), stride=(2, 3), padding=(1, 2)), (2, 6, 13, 17)),
    "same": (lambda: nn.Conv2d(6, 8, (3, 5), padding="same", bias=False), (2, 6, 9, 9)),
    "dilation": (lambda: nn.Conv2d(6, 8, 3, dilation=(1, 2), padding="valid"), (2, 6, 9, 9)),
    "reflected": (lambda: nn.Conv2d(6, 8, (5, 3), padding=(2, 1), padding_mode="reflect"), (2, 6, 9, 9)),
    "around": (lambda: nn.Conv2d(6, 8, 3, padding=(2, 1), padding_mode="circular", stride=2), (2, 6, 9, 9)),
    "more outputs": (lambda: nn.Conv2d(2, 24, 3), (2, 2, 9, 9)),
    "fewer outputs": (lambda: nn.Conv2d(24, 2, 3), (2, 24, 9, 9)),
    "a line": (lambda: nn.Conv1d(6, 8, 5, stride=2, padding=2), (2, 6, 15)),
    "a volume": (lambda: nn.Conv3d(4, 6, (3, 2, 3), padding=(1, 0, 1)), (2, 4, 6, 6, 6)),
    "double": (lambda: nn.Conv2d(6, 8, 3).double(), (2, 6, 9, 9)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LAYERS)
def test_at_full_rank_the_answers_are_the_same(kind: str, form: Form) -> None:
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make().eval()
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if form == "spatial" and weight.dim() != 4:
        return
    parts = divided(layer, DIVISIONS[form](weight.detach(), most(form, weight.shape)))
    x = torch.randn(shape, dtype=weight.dtype)
    with torch.no_grad():
        expected = layer(x)
        close(parts(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert all(part.weight.dtype == weight.dtype for part in parts)
    assert [part.bias is not None for part in parts] == [False] * (len(parts) - 1) + [layer.bias is not None]


def kernel_of(parts: Parts, shape: tuple[int, ...]) -> Tensor:
    """The one kernel that convolutions come to, by their answers to one number at a time."""
    layer = nn.Conv2d(shape[1], shape[0], shape[2:], bias=False).double()
    net = divided(layer, Parts(parts.outputs, parts.axes, parts.groups, parts.weights, 1.0))
    places = 2 * shape[2] - 1, 2 * shape[3] - 1
    x = torch.zeros(shape[1], shape[1], *places, dtype=torch.float64)
    for i in range(shape[1]):
        x[i, i, shape[2] - 1, shape[3] - 1] = 1
    with torch.no_grad():
        return net(x).transpose(0, 1).flip(2, 3)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_lost_is_what_the_singular_values_hold_that_are_left_out(form: Form) -> None:
    torch.manual_seed(1)
    x = torch.randn(10, 6, 3, 5, dtype=torch.float64)
    for rank in (1, 2, 3):
        ranks = (rank + 2, rank) if form == "tucker" else (rank,)
        parts = DIVISIONS[form](x, ranks)
        assert sum(part.numel() for part in parts.weights) == numbers(form, x.shape, ranks)
        lost = (kernel_of(parts, tuple(x.shape)) - x).square().sum()
        if form == "spatial":
            rows = torch.stack([x[o, :, :, w].flatten() for o in range(10) for w in range(5)])
            left = torch.linalg.svdvals(rows)[rank:].square().sum()
        elif form == "separable":
            left = sum(torch.linalg.svdvals(x[:, i].flatten(1))[rank:].square().sum() for i in range(6))
        else:  # the core holds what is kept, between orthonormal bases
            left = x.square().sum() - parts.weights[1].square().sum()
            columns = torch.linalg.svdvals(x.flatten(1))[rank + 2 :].square().sum()
            rows = torch.linalg.svdvals(x.transpose(0, 1).flatten(1))[rank:].square().sum()
            assert max(columns, rows) <= lost <= columns + rows
        close(lost, left, rtol=1e-8)
        close(parts.kept, float(1 - lost / x.square().sum()), rtol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_ranks_keep_the_energy_and_leave_the_amount(form: Form) -> None:
    torch.manual_seed(2)
    x = torch.randn(16, 12, 3, 3, dtype=torch.float64) * torch.logspace(0, -1.5, 12)[:, None, None]
    for energy in (0.5, 0.9, 0.99):
        ranks = keeping(form, x, energy)
        lost = 1 - DIVISIONS[form](x, ranks).kept
        assert lost <= 1 - energy
        if form != "tucker" and ranks[0] > 1:
            assert 1 - DIVISIONS[form](x, (ranks[0] - 1,)).kept > 1 - energy
    for amount in (0.3, 0.6, 0.8):
        ranks = leaving(form, x.shape, amount)
        more = tuple(rank + 1 for rank in ranks)
        assert numbers(form, x.shape, ranks) <= (1 - amount) * x.numel() < numbers(form, x.shape, more)


class Mixed(nn.Module):
    """Layers that may be divided, and one of each kind that may not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 5, padding=2)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, (1, 5), bias=False))
        self.groups, self.point = nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2)
        self.read, self.asked = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.one = nn.Conv2d(16, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.two.weight = self.one.weight
        self.hooked = nn.Conv2d(16, 16, 3)
        self.hooked.register_forward_hook(lambda module, args, out: 2 * out)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.point(self.groups(self.inner(torch.relu(self.norm(self.first(x)))))))
        x = nn.functional.conv2d(x, self.read.weight, padding=1)
        x = torch.relu(self.asked(x)) * self.asked.kernel_size[0]
        x = self.hooked(torch.relu(self.two(torch.relu(self.one(x)))))
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", FORMS)
def test_every_layer_is_divided_or_listed_with_the_reason(form: Form) -> None:
    x = torch.randn(2, 3, 20, 20)
    driver = driven([lp.techniques.Factorize(RANKS[form], form=form)], Mixed(), x)
    told = driver.told.skipped
    reasons = {
        "groups.weight": "in groups",
        "point.weight": "one point",
        "up.weight": "conv_transpose2d is no convolution",
        "read.weight": "reads its weight too",
        "asked.weight": "cannot be divided: .*kernel_size",
        "one.weight": "tied to two.weight",
        "hooked.weight": "hooks are set on it",
        "last.weight": "linear is no convolution",
    }
    if form == "spatial":
        reasons["inner.2.weight"] = "a line already"
    assert told.keys() == reasons.keys()
    for path, reason in reasons.items():
        with pytest.raises(RecipeError, match=reason):
            raise RecipeError(told[path])
    count = 3 if form == "tucker" else 2
    for path in ("first", "inner.0", *(() if form == "spatial" else ("inner.2",))):
        assert len(driver.model.get_submodule(path)) == count  # type: ignore[arg-type]
        notes = [driver.told.notes[f"{path}.{i}.weight"] for i in range(count)]
        assert all(f"part {i + 1} of {count} of {path}" in note for i, note in enumerate(notes))
    assert driver.view().rung == "whole" and isinstance(driver.model.norm, nn.Identity)


def test_what_is_encoded_is_left() -> None:
    x = torch.randn(2, 3, 12, 12)
    for step in (lp.Quantize(weights=lp.Int(8), where="b"), lp.techniques.Factorize(4, where="b")):
        driver = driven([step, lp.techniques.Factorize(4, form="spatial")], Net(), x)
        assert "encoded already" in driver.told.skipped["b.weight"]
        assert isinstance(driver.model.get_submodule("a"), nn.Sequential)
    both = driven([lp.techniques.Factorize(8, form="tucker"), lp.techniques.Factorize(2, where="b.*")], Net(), x)
    assert encoding_of(both.model, "b.1.weight") == LowRank(2)


def test_a_rank_that_saves_nothing_is_told() -> None:
    driver = driven([lp.techniques.Factorize(10**6, form="spatial", where="b")], Net(), torch.randn(2, 3, 12, 12))
    told = "parts of rank 48 hold 6,912 numbers, no fewer than its 4,608"  # 48 times 16 · 3 + 32 · 3
    assert driver.told.skipped["b.weight"] == told


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"rank": 4, "form": "spacial"}, "did you mean 'spatial'"),
        ({"rank": 4, "form": "tucker", "by": "inputs"}, 'form="product"'),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        lp.techniques.Factorize(**given)
    assert hint in caught.value.next


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 5, padding=2), nn.BatchNorm2d(16)
        self.b, self.c = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.norm(self.a(x))))).mean((2, 3)))  # type: ignore[no-any-return]


def task() -> lp.Task:
    torch.manual_seed(0)
    net, xs = Net().eval(), [torch.randn(8, 3, 12, 12) for _ in range(4)]
    train = [(x, net(x).detach()) for x in xs]
    return lp.Task(net, xs[0], calibrate=xs[:2], evaluate=xs[2:], train=train, loss=error)


def error(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("form", FORMS)
def test_it_is_rounded_built_compared_stored_loaded_told_and_resumed(
    form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = task()
    steps = [lp.techniques.Factorize(RANKS[form], form=form), lp.Quantize(lp.Int(8))]
    recipe = lp.Recipe.from_toml(lp.Recipe(steps).to_toml())
    found = lp.compress(given, recipe, folder=tmp_path / "run", target=ORT, measure=False)
    x = given.evaluate[0]  # type: ignore[index]
    expected = found.model(x).detach()
    file = tmp_path / "run" / "net.lil"
    close(lp.load(file, Net()).eval()(x).detach(), expected, rtol=0, atol=0)
    close(lp.open(file, threads=1)(x), expected, rtol=1e-4, atol=1e-5)
    count = 3 if form == "tucker" else 2
    rows = {row["path"]: row for row in found.data["layers"]}
    assert rows.keys() == {"c.weight", *(f"{layer}.{i}.weight" for layer in "ab" for i in range(count))}
    for path, row in rows.items():
        layer = path[0]
        assert row["was"] == (None if layer == "c" else f"{layer}.weight")
        assert row["shape_before"] == list(given.model.get_parameter(f"{layer}.weight").shape)
        assert (f"of {layer}, which keep" in row["note"]) is (layer != "c")
    assert found.data["after"]["macs"] < found.data["before"]["macs"]
    monkeypatch.setattr(dividing, "DIVISIONS", {})  # all of it is remembered
    again = lp.compress(given, recipe, folder=tmp_path / "run", target=ORT, measure=False)
    close(again.model(x).detach(), expected, rtol=0, atol=0)


def test_what_flows_between_the_parts_is_rounded_too() -> None:
    steps = [lp.techniques.Factorize(8, form="spatial"), lp.Quantize(lp.Int(8), activations=lp.Int(8))]
    found = lp.compress(task(), lp.Recipe(steps), target=ORT, measure=False)
    told = {row["path"]: (row["activations"], row["runs_as"]) for row in found.data["layers"]}
    assert told["b.0.weight"] == told["b.1.weight"] == ("uint8 per tensor", "int8 kernel")
    between = {name for name in value_encodings(found.model) if name.startswith(("a", "b"))}
    assert between == {"a.0:conv2d#0", "b.0:conv2d#0"}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_trained_and_pruned_after(form: Form, tmp_path: Path) -> None:
    given = task()
    before = lp.apply(given, lp.Recipe([lp.techniques.Factorize(2, form=form)]), target=ORT)
    after = lp.apply(
        given, lp.Recipe([lp.techniques.Factorize(2, form=form), lp.Finetune(epochs=4, lr=1e-2)]), target=ORT
    )
    with torch.no_grad():
        losses = [sum(float(error(net, batch)) for batch in given.train) for net in (before, after)]  # type: ignore[union-attr]
    assert losses[1] < 0.7 * losses[0]
    steps = [lp.techniques.Factorize(RANKS[form], form=form), lp.Prune("channels", 0.3), lp.Quantize(lp.Int(8))]
    small = lp.apply(given, lp.Recipe(steps), target=ORT)
    assert small.b[-1].weight.shape[0] < 32  # type: ignore[index,union-attr]
    lp.save(tmp_path / "net.lil", small, example=given.example)
    x = given.evaluate[0]  # type: ignore[index]
    expected = small(x).detach()
    close(lp.load(tmp_path / "net.lil", Net()).eval()(x).detach(), expected, rtol=0, atol=0)
    close(lp.open(tmp_path / "net.lil", threads=1)(x), expected, rtol=1e-4, atol=1e-5)


def test_channels_pruned_before_are_divided_as_they_are_left(tmp_path: Path) -> None:
    steps = [lp.Prune("channels", 0.3), lp.techniques.Factorize(amount=0.5, multiple=1, form="tucker")]
    small = lp.apply(task(), lp.Recipe(steps), target=ORT)
    assert isinstance(small.b, nn.Sequential) and small.b[0].weight.shape[1] < 16  # type: ignore[union-attr,index]
    lp.save(tmp_path / "net.lil", small)
    x = torch.randn(2, 3, 12, 12)
    close(lp.load(tmp_path / "net.lil", Net()).eval()(x).detach(), small(x).detach(), rtol=0, atol=0)


def test_diagnosis_names_the_parts_under_the_old_path() -> None:
    recipe = lp.Recipe([lp.techniques.Factorize(4, form="spatial"), lp.Quantize(lp.Int(4))])
    found = lp.diagnose(task(), recipe, target=ORT, worst=0)
    assert {row.name for row in found.rows} == {"a.0.weight", "a.1.weight", "b.0.weight", "b.1.weight", "c.weight"}


def test_origins_know_what_became_of_a_layer() -> None:
    net = Net()
    edits = [Divide("b", (6, 4, 32), ((), (0, 1), ()), (1, 1, 1))]
    assert {now: was for now, was in origins(net, edits).items() if was == "b"} == {
        "b": "b", "b.0": "b", "b.1": "b", "b.2": "b"
    }  # fmt: skip


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no module": ({"path": "nothing"}, "no such module"),
    "the model itself": ({"path": ""}, "no such module"),
    "no convolution": ({"path": "c"}, "Linear is not a plain convolution"),
    "one part": ({"outputs": (32,), "axes": ((0, 1),), "groups": (1,)}, "parts of"),
    "no part": ({"outputs": (), "axes": (), "groups": ()}, "parts of"),
    "other outputs": ({"outputs": (4, 31)}, "parts of"),
    "an axis twice": ({"axes": ((0, 1), (1,))}, "parts of"),
    "an axis that no part goes over": ({"axes": ((0,), ())}, "parts of"),
    "an axis that is not there": ({"axes": ((0, 1), (2,))}, "parts of"),
    "an axis below zero": ({"axes": ((0,), (-1,))}, "parts of"),
    "no channels": ({"outputs": (0, 32)}, "parts of"),
    "fewer than no channels": ({"outputs": (-4, 32)}, "parts of"),
    "channels without end": ({"outputs": (1 << 40, 32)}, "parts of"),
    "more numbers than a form needs": ({"outputs": (400, 32)}, "parts of"),
    "groups that do not divide": ({"groups": (3, 1)}, "parts of"),
    "no groups": ({"groups": (0, 1)}, "parts of"),
    "groups for one part": ({"groups": (1,)}, "parts of"),
    "truths": ({"outputs": (True, 32)}, "parts of"),
    "parts by the thousand": (
        {"outputs": (*[1] * 5000, 32), "axes": ((0, 1), *[()] * 5000), "groups": (1,) * 5001},
        "parts of",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_parts_that_cannot_stand_in_its_place_are_refused(kind: str) -> None:
    fields, hint = WRONG[kind]
    plain: dict[str, Any] = {"path": "b", "outputs": (4, 32), "axes": ((0,), (1,)), "groups": (1, 1)}
    with pytest.raises(FormatError, match=hint):
        Divide(**{**plain, **fields}).apply(Net(), {})
    Divide(**plain).apply(Net(), {})


def test_tensors_of_other_shapes_are_refused() -> None:
    edit = Divide("b", (4, 32), ((0,), (1,)), (1, 1))
    with pytest.raises(FormatError, match=r"shape \(4, 16, 3\) for one of \(4, 16, 3, 1\)"):
        edit.apply(Net(), {"0.weight": torch.zeros(4, 16, 3)})
    net = Net()
    edit.apply(net, {})
    with pytest.raises(FormatError, match="Sequential is not a plain convolution"):
        edit.apply(net, {})
