"""A pooled embedding, a box, a picture of two channels: called "the same answer", for their largest number was.

Reported: outputs [samples, 2 or more] were judged as classes whatever they were, and a headline of 100 % stayed as it
was with outputs ten times as large. Right: an answer is what the task says, or its metric; else values. Whatever it is,
the sentence has a figure that sees a factor of ten, and each output is told by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.report.likeness import agreement
from lilliput.targets.onnxruntime import OrtSession

T = lp.targets.OnnxRuntime(threads=1, seconds=0)


class Boxes(nn.Module):
    """Scores of classes and a box, as a detector of one object gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.score, self.box = nn.Linear(16, 64), nn.Linear(64, 5), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.body(x).relu()
        return {"boxes": self.box(found), "logits": self.score(found)}


def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(16, 16) for _ in range(2)]


def outputs(net: nn.Module, **fields: Any) -> list[dict[str, Any]]:
    data = lp.compress(lp.Task(net.eval(), calibrate=batches(), **fields), target=T).data
    assert agreement(data["agreement"]["outputs"]) in data["sentence"]
    found: list[dict[str, Any]] = data["agreement"]["outputs"]
    return found


def test_an_answer_is_values_unless_somebody_says_more() -> None:
    [one] = outputs(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)))
    assert one["kind"] == "values" and not one["figures"]
    net = Boxes()
    assert {one["place"]: one["kind"] for one in outputs(net)} == {"boxes": "values", "logits": "values"}


def test_the_metric_says_what_it_looks_at() -> None:
    net, labels = Boxes(), torch.zeros(16, dtype=torch.int64)
    metric = lp.metrics.top1([(x, labels) for x in batches()])
    kinds = {one["place"]: one["kind"] for one in outputs(net, metric=metric)}
    assert kinds == {"boxes": "values", "logits": "classes"}
    only = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    error = lp.metrics.squared_error([(x, torch.zeros(16, 1)) for x in batches()])
    assert [one["kind"] for one in outputs(only, metric=error)] == ["values"]


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        ("classes", {"boxes": "values", "logits": "classes"}),
        ({"boxes": "embedding"}, {"boxes": "embedding", "logits": "values"}),
        ({"boxes": "values", "logits": "classes"}, {"boxes": "values", "logits": "classes"}),
    ],
)
def test_the_task_says_what_an_answer_is(said: str | Mapping[str, str], kinds: dict[str, str]) -> None:
    found = outputs(Boxes(), output=said)
    assert {one["place"]: one["kind"] for one in found} == kinds
    net, x = Boxes().eval(), torch.cat(batches())
    weights = lp.Recipe([lp.Quantize(weights=lp.Int(4))])  # alone, so that module and file agree
    small = lp.compress(lp.Task(net, calibrate=batches(), output=said), weights, target=T)
    with torch.no_grad():
        exact, now = net(x), small.model(x)
    for one in small.data["agreement"]["outputs"]:
        a, b = exact[one["place"]].double(), now[one["place"]].double()
        error = (a - b).norm(dim=1) / a.square().sum(1).mean().sqrt()
        assert one["relative_error"]["value"] == pytest.approx(float(error.mean()), rel=1e-3)
        assert one["worst_error"] == pytest.approx(float(error.max()), rel=1e-3) and one["samples"] == 32
        if one["kind"] == "embedding":
            lengths = float((b.norm(dim=1) / a.norm(dim=1)).mean())
            assert one["figures"]["norm_ratio"]["value"] == pytest.approx(lengths, rel=1e-4)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("class", "output: is 'class'; did you mean 'classes'"),
        (3, "output: is 3; give one of classes"),
        ({"box": "values"}, "the model has no output 'box'; did you mean 'boxes'"),
        ({"boxes": "tokens"}, r"output boxes: tokens of shape \[1, 4\].*tokens are \[samples, tokens, vocabulary\]"),
    ],
)
def test_what_no_output_is_is_refused_before_any_work(said: Any, told: str) -> None:
    steps: list[str] = []
    task = lp.Task(Boxes().eval(), calibrate=batches(), output=said)
    with pytest.raises(lp.errors.LilliputError, match=told):
        lp.compress(task, target=T, progress=lambda what, done, of: steps.append(what))
    assert not any("encod" in step or "calib" in step for step in steps)


def test_an_output_that_is_always_the_same_is_named() -> None:
    class Dead(Boxes):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            found = super().forward(x)
            return {**found, "boxes": found["boxes"].relu() * 0 + 0.5}

    data = lp.compress(lp.Task(Dead().eval(), calibrate=batches()), target=T)
    [doubt] = data.data["agreement"]["doubts"]
    assert doubt.startswith("boxes is the same for every sample") and "give evaluation batches" in doubt
    assert "oxes is the same for every sample" in (data.folder / "report.html").read_text()


def test_nan_in_one_output_of_many_is_named() -> None:
    class Roots(Boxes):
        """The root of a number that is hardly ever below zero, which a rounded weight can bring there."""

        def __init__(self) -> None:
            super().__init__()
            nn.init.constant_(self.box.weight, 0.0)
            nn.init.constant_(self.box.bias, 0.0)
            self.box.weight.data[:, 0] = 1.0

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            found = super().forward(x)
            return {**found, "boxes": (found["boxes"] - 1e-4).sqrt()}

    net, x = Roots().eval(), batches()
    held = [torch.cat([one for one in x[0] if bool(net(one[None])["boxes"].isfinite().all())]).reshape(-1, 16)]
    with torch.no_grad():
        level = net.body(held[0])[:, 0]
    worse = held[0][level.argmin()][None]
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(2, per="tensor"))])
    with pytest.raises(lp.errors.LilliputError, match="NaN or infinity in different places") as caught:
        lp.compress(lp.Task(net, example=worse, evaluate=[held[0]], output={"logits": "classes"}), recipe, target=T)
    assert "output boxes" in caught.value.where and "evaluate[0]" in caught.value.where


class CrossedSession(OrtSession):
    def load(self, built: Any) -> Any:
        held = super().load(built)
        return replace(held, run=lambda given: list(held.run(given))[::-1])


class CutSession(OrtSession):
    def load(self, built: Any) -> Any:
        held = super().load(built)
        return replace(held, run=lambda given: [x[:, :-1] for x in held.run(given)])


class Crossed(lp.targets.OnnxRuntime):
    """A runtime that gives its outputs in another order."""

    @property
    def runs(self) -> OrtSession:
        return CrossedSession(self.threads_used)


class Cut(lp.targets.OnnxRuntime):
    """One that leaves the last column of each output out."""

    @property
    def runs(self) -> OrtSession:
        return CutSession(self.threads_used)


@pytest.mark.parametrize("kind", [Crossed, Cut])
@pytest.mark.parametrize("sizes", [(4, 4), (4, 5)])
def test_a_target_that_answers_otherwise_is_refused(kind: type[lp.targets.OnnxRuntime], sizes: tuple[int, int]) -> None:
    net = Boxes()
    net.box, net.score = nn.Linear(64, sizes[0]), nn.Linear(64, sizes[1])
    with pytest.raises(lp.errors.LilliputError) as caught:
        lp.compress(lp.Task(net.eval(), calibrate=batches()), target=kind(threads=1, seconds=0))
    told = "shapes" if kind is Cut or sizes[0] != sizes[1] else "computes something else than the module"
    assert told in str(caught.value) and caught.value.next
