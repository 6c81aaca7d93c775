"""``done`` beside an accuracy that fell from 87.8 to 10.0.

Reported: a run whose network is no better than chance ends as one that went well: exit code 0, outcome ``done``. Right:
it is called harmed, in the outcome, the first words of the sentence, the page and the exit code; by the user's metric,
whichever way it is better, or without one by the answers.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import lilliput as lp
from lilliput.cli import commands
from lilliput.cli.app import app
from lilliput.engine.answers import Closeness, Likeness
from lilliput.engine.evidence import Judged
from lilliput.measure import Measurement
from lilliput.report.outcome import harm


def near(db: float, place: str = "", **figures: float) -> Likeness:
    """Of an output that keeps so many dB."""
    kind = "classes" if figures else "values"
    held = {name: Measurement(x, x - 0.1, x + 0.1, 100) for name, x in figures.items()}
    error = Measurement(0.1, 0.0, 0.2, 100)
    return Likeness(place, kind, 100, 0.1, db, False, error, 0, 0.2, held)


def answers(*outputs: Likeness) -> Closeness:
    return Closeness("evaluation batches", 100, outputs)


SAME = answers(near(30.0, same_answer=0.99))


def judged(before: float, after: float, spread: float = 0.01, higher: bool = True) -> Judged:
    change = Measurement(after - before, after - before - spread, after - before + spread, 500)
    return Judged("score", higher, *(Measurement(x, x, x, 500) for x in (before, after)), change)


@pytest.mark.parametrize(
    ("before", "after", "spread", "higher", "harmed"),
    [
        (0.878, 0.100, 0.02, True, True),
        (0.878, 0.860, 0.01, True, False),  # a little, surely
        (0.878, 0.700, 0.30, True, False),  # much, but not surely
        (0.100, 0.878, 0.02, True, False),
        (0.10, 0.90, 0.02, False, True),  # an error
        (0.10, 0.12, 0.01, False, False),
        (0.90, 0.10, 0.02, False, False),
        (2.71, 4.91, 0.05, False, True),  # bits a character
        (-1.0, -1.2, 0.01, True, False),  # log-likelihoods
        (-1.0, -2.0, 0.01, True, True),
    ],
)
def test_a_metric_decides(before: float, after: float, spread: float, higher: bool, harmed: bool) -> None:
    found = harm(SAME, judged(before, after, spread, higher))
    assert bool(found) is harmed
    if harmed:
        assert f"from {before:.4g} to {after:.4g}" in found and ("falls" if after < before else "rises") in found


@pytest.mark.parametrize(
    ("found", "harmed"),
    [
        (SAME, False),
        (answers(near(3.0, same_answer=0.49)), True),
        (answers(near(-3.0, same_answer=0.51)), False),
        (answers(near(3.0, same_token=0.49)), True),
        (answers(near(-0.1)), True),
        (answers(near(0.1)), False),
        (answers(near(math.inf)), False),
        (answers(near(30.0, "logits", same_answer=0.99), near(-0.1, "boxes")), True),
        (answers(near(30.0, "logits", same_answer=0.99), near(0.1, "boxes")), False),
    ],
)
def test_without_a_metric_the_answers_do(found: Closeness, harmed: bool) -> None:
    assert bool(harm(found, None)) is harmed
    assert all(one.place in harm(found, None) for one in found.outputs[1:] if harmed)
    one, other = (Measurement(x, -math.inf, math.inf, 1) for x in (1.0, 0.0))
    unsure = Judged("score", True, one, one, other)
    assert bool(harm(found, unsure)) is harmed  # a metric of one sample tells nothing
    assert bool(harm(found, judged(0.0, 0.1, higher=False))) is harmed  # nor one that was 0


@pytest.fixture(scope="module")
def classifier() -> lp.Task:
    """A network that tells the larger of two inputs, and a metric of its answers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
    with torch.no_grad():
        net[0].weight[:] = torch.cat([torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])]).repeat(32, 1)
        net[0].bias[:], net[2].bias[:] = 0.0, 0.0
        net[2].weight[:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(1, 32) / 32
    x = torch.randn(200, 2)

    def accuracy(model: Any) -> Tensor:
        return (model(x).argmax(1) == x.argmax(1)).float()

    return lp.Task(net.eval(), example=x[:4], evaluate=[x], metric=accuracy)


def ruin(task: lp.Task, **fields: Any) -> dict[str, Any]:
    """In steps so coarse that all of its weights become 0."""
    given = {name: getattr(task, name) for name in ("model", "example", "evaluate", "metric")} | fields
    recipe = lp.Recipe([lp.Quantize(weights=lp.formats.Fixed(0, 1), where="2")])
    return lp.compress(lp.Task(**given), recipe, target=lp.targets.OnnxRuntime(threads=1, seconds=5)).data


def test_a_ruined_network_is_harmed_and_says_so(classifier: lp.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ruin(classifier)
    before, after = (data[side]["metric"]["value"] for side in ("before", "after"))
    assert before == 1.0 and after < 0.6
    assert data["outcome"] == "harmed"
    assert data["sentence"].startswith(f"Harmed: accuracy falls from 1 to {after:.4g}. In onnxruntime")

    from lilliput.report.page import page

    shown = page(data)
    assert '<span class="badge harmed">harmed</span>' in shown and "What the network had learned is lost" in shown
    for outcome, code in (("harmed", 4), ("not met", 3), ("done", 0)):
        monkeypatch.setattr(commands, "compress", lambda asked, outcome=outcome: outcome)
        assert CliRunner().invoke(app, ["compress", "task.py"]).exit_code == code
    assert "harmed" in CliRunner().invoke(app, ["compress", "--help"]).stdout


def test_an_error_that_grows_is_a_harm(classifier: lp.Task) -> None:
    class Wrong:
        higher_is_better = False

        def __call__(self, model: Any) -> Tensor:
            score = classifier.metric(model)  # type: ignore[misc]
            return 1.1 - score

    data = ruin(classifier, metric=Wrong())
    assert data["outcome"] == "harmed" and "Wrong rises from 0.1 to" in data["sentence"]
