"""Plug-ins of the training loop: what they add counts, what they keep lasts, what cannot work is refused at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
import lilliput.training.loop
from lilliput.engine.begin import begin
from lilliput.engine.store import Store
from lilliput.errors import InputError, RecipeError
from lilliput.progress import silent
from lilliput.techniques import gradual, group_lasso
from lilliput.techniques.plugin import Moment, Plugin
from lilliput.techniques.surgery import Slices

ORT = lp.targets.OnnxRuntime(threads=1, seconds=0)
STEP = lp.Finetune(epochs=3, lr=0.01, accumulate=2)


class Net(nn.Module):
    """Two convolutions whose sum is normed, so that their channels are coupled, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.a(x) + self.b(x))).mean((2, 3)))  # type: ignore[no-any-return]


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(0)
    y = [torch.arange(16) % 3 for _ in range(count)]
    return [(torch.randn(16, 1, 6, 6, generator=made) + one[:, None, None, None].float() - 1, one) for one in y]


def loss(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def task(net: nn.Module | None = None, **fields: Any) -> lp.Task:
    return lp.Task(net or Net(), **{"train": batches(), "loss": loss, "example": batches(1)[0][0], **fields})


@dataclass(frozen=True, repr=False, kw_only=True)
class Notes(Plugin):
    """Notes what is done to it, in its state."""

    def begin(self, moment: Moment) -> None:
        moment.state.update(calls=["begin"], seen=torch.zeros(()))

    def loss(self, moment: Moment) -> Tensor:
        moment.state["calls"].append("loss")
        return moment.tensor("fc.weight").square().sum()

    def before_step(self, moment: Moment) -> None:
        assert all(p.grad is not None for p in moment.weights.values())
        moment.state["calls"].append("before")

    def after_step(self, moment: Moment) -> None:
        moment.state["calls"].append(f"step {moment.step} of {moment.steps}")
        moment.state["seen"] += moment.tensor("fc.weight").abs().sum()

    def after_epoch(self, moment: Moment) -> None:
        moment.state["calls"].append(f"epoch {moment.epoch} of {moment.epochs}")
        KEPT.append(moment.state["calls"])


KEPT: list[list[str]] = []


def test_each_moment_comes_in_its_order() -> None:
    KEPT.clear()
    lp.train(task(train=batches(3)), replace(STEP, epochs=2, plugins=(Notes(),)))
    step = ["loss", "loss", "before", "step {} of 4", "loss", "before", "step {} of 4", "epoch {} of 2"]
    found = KEPT[-1]
    assert found[0] == "begin" and len(found) == 1 + 2 * len(step)
    assert found[1:] == [text.format(*n) for text, n in zip(step * 2, [[]] * 3 + [[1], [], [], [2], [1]] + [[]] * 3
                                                            + [[3], [], [], [4], [2]], strict=True)]  # fmt: skip


def test_what_is_added_to_the_loss_counts() -> None:
    plain, noted = (lp.train(task(), replace(STEP, plugins=given)) for given in ((), (Notes(),)))
    size = [float(one.model.get_parameter("fc.weight").detach().norm()) for one in (noted, plain)]
    assert size[0] < 0.95 * size[1]
    assert noted.history[0]["loss"] > plain.history[0]["loss"]


class Ended(BaseException):
    """As if the process were killed."""


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("at", [1, 4, 7, 12, 18])
def test_a_training_that_was_killed_goes_on_to_the_same_bits(
    at: int, quantized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lilliput.training.loop, "SAVE_S", 0.0)
    plugins: tuple[Plugin, ...] = (Notes(), lp.plugins.Gradual(amount=0.6, every=2))
    if quantized:
        net = lp.apply(task(calibrate=[batches(1)[0][0]]), lp.Recipe([lp.Quantize(activations=lp.Int(8))]))
    else:
        net, plugins = Net(), (*plugins, lp.plugins.GroupLasso(weight=1e-3))
    given, step = task(net), replace(STEP, plugins=plugins, learn_encodings=quantized, ema=0.9)
    whole = lp.train(given, step)

    def ends(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training", at):
            raise Ended

    with pytest.raises(Ended):
        lp.train(given, step, folder=tmp_path, progress=ends)
    again = lp.train(given, step, folder=tmp_path)
    one, other = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(x, other[name]) for name, x in one.items()) and again.history == whole.history


def test_gradual_zeros_stay_and_pruning_finds_them() -> None:
    steps = [
        replace(STEP, plugins=(lp.plugins.Gradual(amount=0.75, where="fc", every=1),)),
        lp.Prune("weights", 0.75, where="fc"),
    ]
    net = lp.apply(task(), lp.Recipe(steps), target=ORT)
    trained = lp.train(task(), steps[0]).model  # type: ignore[arg-type]
    zero = trained.fc.weight == 0  # type: ignore[union-attr]
    assert int(zero.sum()) == 18 and int((trained.a.weight == 0).sum()) == 0  # type: ignore[union-attr]
    assert torch.equal(net.fc.weight == 0, zero)  # type: ignore[union-attr,arg-type]
    told = [lp.plugins.Gradual(amount=0.8, begins=0.2, ends=0.6).fraction(share) for share in (0.1, 0.2, 0.4, 0.6, 1.0)]
    close(told, [0.0, 0.0, 0.7, 0.8, 0.8])


def test_group_lasso_shrinks_what_is_coupled_together() -> None:
    """The penalty of every slice is that of its weights in all tensors, written out here."""
    driver = begin(task(), ORT, Store(), silent)[0]
    (group,) = [one for one in Slices.of(driver).coupling.groups if one.size == 8]
    net = Net()
    found = group_lasso.penalty(group, lambda path: dict(net.named_parameters()).get(path, net.norm.bias))
    slices = [torch.cat([net.a.weight[i].flatten(), net.b.weight[i].flatten(), net.fc.weight[:, i]]) for i in range(8)]
    close(float(found.detach()), sum(float(x.detach().norm()) * len(x) ** 0.5 for x in slices))
    trained = [
        lp.train(task(), replace(STEP, epochs=8, plugins=given)).model
        for given in ((), (lp.plugins.GroupLasso(weight=0.02),))
    ]
    norms = [sum(float(x.detach().norm()) for x in (m.a.weight, m.b.weight, m.fc.weight)) for m in trained]  # type: ignore[union-attr,operator]
    assert norms[1] < 0.8 * norms[0]


def test_weights_stay_near_to_what_they_were() -> None:
    """By as much as its weight says; the penalty of a network that has moved is written out."""
    moved, first = list[float](), Net()
    for given in ((), (lp.plugins.L2SP(weight=3.0),), (lp.plugins.L2SP(weight=30.0),)):
        net = lp.train(task(), replace(STEP, optimizer="SGD", plugins=given)).model
        apart = (
            (p - first.get_parameter(name)).detach().square().sum() for name, p in net.named_parameters() if p.dim() > 1
        )
        moved.append(float(sum(apart)))
    assert moved[0] > 1.2 * moved[1] > 3 * moved[2] > 0, moved
    moment = Moment(first, 1, 1, tuple)
    plugin = lp.plugins.L2SP(weight=0.5)
    plugin.begin(moment)
    with torch.no_grad():
        first.fc.weight += 0.25
    found = plugin.loss(moment)
    assert found is not None
    close(float(found.detach()), 0.25 * first.fc.weight.numel() * 0.25**2)


@dataclass(frozen=True, repr=False, kw_only=True)
class Keeping(Plugin):
    """Keeps what no file can hold."""

    def begin(self, moment: Moment) -> None:
        moment.state["how"] = print


@dataclass(frozen=True, repr=False, kw_only=True)
class Failing(Plugin):
    def loss(self, moment: Moment) -> Tensor:
        raise ZeroDivisionError("of mine")


@dataclass(frozen=True, repr=False, kw_only=True)
class Adding(Plugin):
    what: str = "a number"

    def loss(self, moment: Moment) -> Any:
        return {"a number": 3.0, "many": torch.zeros(2, requires_grad=True)}[self.what]


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (Adding(), "Adding: its loss is float; return one number"),
        (Adding(what="many"), r"Adding: its loss is of shape \(2,\); return one number"),
        (Keeping(), "Keeping: its state cannot be saved.*keep numbers"),
        (Failing(), "Failing: loss failed.*ZeroDivisionError: of mine"),
        (lp.plugins.Gradual(where="nothing"), "Gradual: where='nothing' means no weight"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_cannot_work_is_refused_before_any_step(plugin: Plugin, said: str) -> None:
    steps = [lp.Quantize(), replace(STEP, plugins=(plugin,))]
    told = list[str]()
    with pytest.raises(InputError, match=f"(?s){said}"):
        lp.apply(task(), lp.Recipe(steps), target=ORT, progress=lambda stage, *_: told.append(stage))
    assert "encoding" not in told


def test_labels_weigh_the_loss_beside_teachers_alone() -> None:
    """A plug-in makes no difference to that."""
    whole, half = (
        lp.train(task(), replace(STEP, task_loss=weight, plugins=(lp.plugins.Gradual(),))) for weight in (1.0, 0.5)
    )
    assert whole.history == half.history


def test_a_state_may_hold_infinity(tmp_path: Path) -> None:
    lp.train(task(), replace(STEP, plugins=(Best(),)), folder=tmp_path)


@dataclass(frozen=True, repr=False, kw_only=True)
class Best(Plugin):
    def begin(self, moment: Moment) -> None:
        moment.state["best"] = float("inf")


def test_knobs_that_make_no_sense_are_refused() -> None:
    for make in (
        lambda: lp.plugins.Gradual(amount=1.0),
        lambda: lp.plugins.Gradual(begins=0.8, ends=0.2),
        lambda: lp.plugins.GroupLasso(weight=0),
    ):
        with pytest.raises(RecipeError):
            make()
    with pytest.raises(RecipeError, match="over shards"):
        replace(STEP, plugins=(Notes(),), shard=True)


def test_a_recipe_with_plug_ins_is_text() -> None:
    recipe = lp.Recipe([replace(STEP, plugins=(lp.plugins.Gradual(amount=0.8), lp.plugins.GroupLasso(weight=0.1)))])
    assert lp.Recipe.from_toml(recipe.to_toml()) == recipe


def test_each_is_a_file_under_eighty_lines() -> None:
    for module in (gradual, group_lasso):
        assert module.__file__ and len(Path(module.__file__).read_text().splitlines()) < 80
