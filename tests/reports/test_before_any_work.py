"""What a run needs in the end is tried on one batch before it begins.

Found in use: a metric that returns a scalar failed after 44 s of work, a missing accelerate after all earlier steps.
Right is: whatever can be known from one batch is told before the model is captured, and nothing that works is refused.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
import lilliput.engine.run
from lilliput.engine import preflight
from lilliput.engine.begin import begin
from lilliput.engine.store import Store
from lilliput.errors import InputError
from lilliput.progress import silent

TARGET = lp.targets.OnnxRuntime(threads=1, seconds=1)
RECIPE = lp.Recipe([lp.Quantize()])
TRAINS = lp.Recipe([lp.Quantize(), lp.Finetune()])


class Named(nn.Module):
    """Takes two inputs, gives a dict and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.calls = nn.Linear(8, 4), 0

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"logits": self.fc(x * scale), "hidden": x}


def inputs(size: int = 4, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {"x": torch.randn(size, 8), "scale": torch.randn(size, 1)}


def loss(model: Any, batch: Any) -> Tensor:
    return model(**batch)["logits"].square().mean()


def task(**fields: Any) -> lp.Task:
    given = {"calibrate": [inputs()], "train": [inputs()], "loss": loss, **fields}
    return lp.Task(given.pop("model", None) or Named().eval(), **given)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capturing the model is where work begins."""

    def capture(*given: Any, **named: Any) -> None:
        raise AssertionError("captured already")

    monkeypatch.setattr(lilliput.engine.run, "capture", capture)


def refused(given: lp.Task, recipe: lp.Recipe = RECIPE, target: Any = TARGET) -> InputError:
    with pytest.raises(InputError) as caught:
        lp.compress(given, recipe, target=target)
    return caught.value


def begun(given: lp.Task, recipe: lp.Recipe | None = None) -> None:
    begin(given, TARGET, Store(), silent, recipe, judges=True)


# metrics


def forms() -> Iterator[tuple[str, Callable[[Any], Any], str]]:
    def each(model: Any) -> Tensor:
        return torch.cat([model(**inputs(4, i))["logits"][:, 0] for i in range(20)])

    yield "a scalar", lambda model: float(each(model).mean()), "shape ()"
    yield "a scalar tensor", lambda model: each(model).mean(), "shape ()"
    yield "a table", lambda model: each(model)[:, None], "shape (80, 1)"
    yield "nothing", lambda model: [], "shape (0,)"
    yield "a NaN", lambda model: each(model) * torch.tensor([1.0] * 79 + [float("nan")]), "1 of 80 scores"
    yield "an attribute that is not there", lambda model: each(model).logit, "failed"
    yield "positions for keywords that fail", lambda model: model(**inputs(), y=torch.ones(1))["logits"], "called with"


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("real_s", [0.0, 1e9], ids=["answers repeated", "all computed"])
@pytest.mark.parametrize(("metric", "told"), [form[1:] for form in forms()], ids=[form[0] for form in forms()])
def test_metrics_of_another_form(metric: Any, told: str, real_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_REAL_S", real_s)
    error = refused(task(metric=metric))
    assert told in error.what and error.next


@pytest.mark.usefixtures("no_work")
def test_labels_of_another_number() -> None:
    @dataclasses.dataclass
    class Clustered:
        clusters: tuple[int, ...] = (1, 2, 3)

        def __call__(self, model: Any) -> Tensor:
            return model(**inputs())["logits"][:, 0]

    assert "3 cluster labels for 4 scores" in refused(task(metric=Clustered())).what
    assert refused(task(metric="top1")).where == "metric"


def test_a_metric_is_called_as_in_the_end() -> None:
    """Named outputs by key and as attributes, the module's own numbers, and nothing of a module about it."""
    net, seen = Named().eval(), []

    def metric(model: Any) -> Tensor:
        found = model(**inputs(3))
        seen.append((found, isinstance(model, nn.Module)))
        return found.logits[:, 0]

    begun(task(model=net, metric=metric))
    (found, module), expected = seen[0], net(**inputs(3))
    close(found["logits"], expected["logits"])
    close(found.hidden, expected["hidden"])
    assert not module and not found.logits.requires_grad


def test_a_long_metric_is_answered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as there are shapes the module is run, whatever the number of batches."""
    monkeypatch.setattr(preflight, "_REAL_S", 0.0)
    net, sizes, runs = Named().eval(), [4] * 500 + [3], []
    net.register_forward_hook(lambda module, given, out: runs.append(1))
    answers: list[Tensor] = []

    def metric(model: Any) -> Tensor:
        answers.extend(model(**inputs(size, i))["logits"] for i, size in enumerate(sizes))
        return torch.cat([one.mul_(2)[:, 0] for one in answers])  # what it does to one is done to no other

    begun(task(model=net, metric=metric))
    assert len(answers) == 501 and len(runs) < 20
    close(answers[1], answers[0])


def test_what_only_repeated_answers_show_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric of how answers differ divides by zero where one is the other's."""
    monkeypatch.setattr(preflight, "_REAL_S", 0.0)

    def spread(model: Any) -> Tensor:
        first, second = (model(**inputs(4, i))["logits"][:, 0] for i in range(2))
        return (first - second) / (first - second)

    def stops(model: Any) -> Tensor:
        found = [model(**inputs(4, i))["logits"][:, 0] for i in range(2)]
        assert not torch.equal(*found)
        return found[0]

    begun(task(metric=spread))
    begun(task(metric=stops))


def test_a_metric_that_waits_for_another_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a text that ends when the model says so."""
    monkeypatch.setattr(preflight, "_REAL_S", 0.0)
    monkeypatch.setattr(preflight, "_GIVEN_UP_S", 0.01)

    def metric(model: Any) -> Tensor:
        first, seed = model(**inputs())["logits"], 1
        while torch.equal(model(**inputs(4, seed))["logits"], first):
            seed += 1
        return first[:, 0]

    begun(task(metric=metric))


def test_what_the_model_writes_over_is_not_the_metrics_data() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.div_(2))

    data = torch.ones(4, 8)
    net = InPlace().eval()
    preflight.check_metric(
        lilliput.engine.run.Driver.start(
            net,
            example=preflight.Inputs.of(torch.ones(4, 8)),
            dynamic={},
            calibrate=None,
            target=TARGET,
            store=Store(),
            environment="",
        ),
        lambda model: model(data)[:, 0],
    )
    assert torch.equal(data, torch.ones(4, 8))


# training


def no_gradient(model: Any, batch: Any) -> Tensor:
    with torch.no_grad():
        return loss(model, batch)


def in_place(model: Any, batch: Any) -> Tensor:
    out = model(**batch)["logits"].exp()
    total = out.sum()
    out.zero_()
    return total


class OfTraining(nn.Module):
    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        raise KeyError("teacher")


LESSONS: dict[str, tuple[dict[str, Any], str]] = {
    "no batches": ({"train": None}, "needs batches to train with"),
    "no loss": ({"loss": None}, "needs something to train by"),
    "another kind of loss": ({"loss": "mse"}, "is a str"),
    "a loss that fails": ({"loss": lambda model, batch: model(batch["image"]).mean()}, "the loss failed"),
    "no tensor": ({"loss": lambda model, batch: 0.5}, "the loss is float"),
    "many numbers": ({"loss": lambda model, batch: model(**batch)["logits"]}, "the loss is Tensor"),
    "NaN": ({"loss": lambda model, batch: loss(model, batch) * float("nan")}, "the loss is nan"),
    "no gradient": ({"loss": no_gradient}, "depends on no parameter by a gradient"),
    "detached": ({"loss": lambda model, batch: loss(model, batch).detach()}, "depends on no parameter by a gradient"),
    "changed in place": ({"loss": in_place}, "the loss has no gradients"),
    "a generator": ({"train": (inputs() for _ in "12")}, "can be read only once"),
    "an empty list": ({"train": []}, "holds no batches"),
    "NaN among the data": ({"train": [{**inputs(), "x": torch.full((4, 8), float("nan"))}]}, "holds NaN"),
    "validation of another kind": ({"validate": [(torch.ones(4, 8), torch.ones(4, 1))]}, "the loss failed"),
    "a generator to validate with": ({"validate": (inputs() for _ in "12")}, "can be read only once"),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("kind", LESSONS)
def test_training_that_would_fail(kind: str) -> None:
    fields, told = LESSONS[kind]
    error = refused(task(**fields), TRAINS)
    assert told in error.what and (error.next or error.why)


@pytest.mark.usefixtures("no_work")
def test_a_teacher_that_fails() -> None:
    step = lp.Finetune(distill=(lp.distill.LogitKD(),))
    error = refused(task(teacher=OfTraining()), lp.Recipe([lp.Quantize(), step]))
    assert error.where == "teacher 0" and "KeyError" in error.why and error.next


@pytest.mark.usefixtures("no_work")
def test_patience_without_validation() -> None:
    error = refused(task(), lp.Recipe([lp.Quantize(), lp.Finetune(patience=2)]))
    assert "needs validation batches" in error.what and "validate=" in error.next


@pytest.mark.usefixtures("no_work")
def test_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    error = refused(task(), TRAINS)
    assert "accelerate" in error.what and error.next == "pip install accelerate"


def test_nothing_is_trained_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the network, its statistics, its modes or random numbers; and no step is made."""
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).eval()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *given: pytest.fail("a step"))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    x = [torch.randn(4, 8, generator=torch.Generator().manual_seed(0))]
    begun(lp.Task(net, calibrate=x, train=x, loss=lambda model, x: model(x).square().mean()), TRAINS)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert not any(part.training for part in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_gradients_whatever_mode_is_on() -> None:
    with torch.no_grad():
        begun(task(), TRAINS)


# what steps need, and targets


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("step", "follow"),
    [
        (lp.Quantize(activations=lp.Int(8)), lp.Quantize(activations=lp.Int(8, dynamic=True))),
        (lp.Quantize(rounding=lp.rounding.GPTQ()), lp.Quantize(rounding=None)),
        (lp.techniques.Equalize(lp.rescaling.SmoothQuant()), lp.techniques.Equalize(lp.rescaling.CrossLayer())),
    ],
    ids=["static activations", "GPTQ", "SmoothQuant"],
)
def test_calibration_that_is_not_there(step: Any, follow: Any) -> None:
    given = task(calibrate=None, example=inputs())
    error = refused(given, lp.Recipe([lp.Quantize(), step] if not isinstance(step, lp.techniques.Equalize) else [step]))
    assert "needs calibration batches" in error.what and "calibrate=" in error.next
    preflight.check_given(given, lp.Recipe([follow]), TARGET)
    preflight.check_given(task(), lp.Recipe([step]), TARGET)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("target", "where"),
    [
        (lp.targets.OnnxRuntime(seconds=-1), "seconds"),
        (lp.targets.OnnxRuntime(seconds=float("nan")), "seconds"),
        (lp.targets.OnnxRuntime(seconds="20"), "seconds"),  # type: ignore[arg-type]
        (lp.targets.OnnxRuntime(threads=0), "threads"),
        (lp.targets.OpenVino(threads=1.5), "threads"),  # type: ignore[arg-type]
        (lp.targets.Device(command="no-such-program {model} {inputs}"), "no-such-program {model} {inputs}"),
        (
            lp.targets.Device(
                command=f"{sys.executable} {{model}} {{inputs}}", builds=lp.targets.OnnxRuntime(threads=-2)
            ),
            "threads",
        ),
    ],
    ids=str,
)
def test_targets_that_cannot_work(target: Any, where: str) -> None:
    error = refused(task(), target=target)
    assert error.where == where and error.next


def test_a_device_that_is_there() -> None:
    lp.targets.Device(command=f"'{sys.executable}' run.py {{model}} {{inputs}}").check()
    lp.targets.Device(command="{model} {inputs}").check()  # what is built is run


@pytest.mark.usefixtures("no_work")
def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert refused(task(), target="openvino").next == "pip install openvino"
