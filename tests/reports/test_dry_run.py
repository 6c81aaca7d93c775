"""A dry run checks and estimates; it trains nothing, searches nothing and builds nothing.

Found in use: `lilliput compress --dry-run` took 5:39, for it followed the whole recipe on one batch. Right is: what is
known without doing it is told, what only doing it tells is named, and what a step would fail by is an error all the
same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import lilliput as lp
from lilliput.cli.app import app
from lilliput.engine import estimate
from lilliput.model.surgery.coupling import Shrinking
from lilliput.targets.onnx import OnnxWriter
from lilliput.targets.onnxruntime import OrtSession
from lilliput.techniques.rounding import AdaRound, Rounding
from lilliput.training.loop import Trainer

TASK = """
import torch
from torch import nn

import lilliput as lp


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


torch.manual_seed(0)
net = nn.Sequential(nn.Linear(16, 32), *(Block() for _ in range(3)), nn.Linear(32, 4))
batches = [torch.randn(4, 16) for _ in range(3)]
loss = lambda model, batch: model(batch).square().mean()
task = lp.Task(net, calibrate=batches, train=batches, loss=loss, metric=lambda model: model(batches[0])[:, 0])
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    return tmp_path / "task.py"


@pytest.fixture
def plan(task: Path) -> Callable[..., dict[str, Any]]:
    def plan(*steps: Any, code: int = 0) -> dict[str, Any]:
        recipe = task.with_name("recipe.toml")
        recipe.write_text(lp.Recipe(steps).to_toml())
        given = ["compress", str(task), "--dry-run", "--json", "--recipe", str(recipe), "--seconds", "1"]
        done = CliRunner().invoke(app, given, catch_exceptions=False)
        assert done.exit_code == code, done.stderr
        return json.loads(done.stdout) if code == 0 else {"error": done.stderr}  # type: ignore[no-any-return]

    return plan


@pytest.fixture(autouse=True)
def nothing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, epochs, candidates, builds, timings and rounding by what flows are errors."""

    def forbid(owner: Any, name: str) -> None:
        monkeypatch.setattr(owner, name, lambda *given, **named: pytest.fail(f"{name} in a dry run"))

    for owner, name in (
        (torch.optim.AdamW, "step"),
        (Trainer, "run"),
        (OnnxWriter, "build"),
        (OrtSession, "open"),
        (OrtSession, "latencies"),
        (Rounding, "round"),
        (lp.rounding.GPTQ, "rows"),
        (AdaRound, "rows"),
        (lp.rounding.BRECQ, "block"),
        (Shrinking, "refused"),
        (Shrinking, "changes"),
        (Shrinking, "described"),
    ):
        forbid(owner, name)


@pytest.mark.parametrize(
    "rounding", [lp.rounding.GPTQ(), lp.rounding.AdaRound(steps=10**9), lp.rounding.BRECQ(steps=10**9)], ids=repr
)
def test_rounding(rounding: Any, plan: Callable[..., Any]) -> None:
    found = plan(lp.Quantize(weights=lp.Int(4), rounding=rounding))
    rows = {row["path"]: row for row in found["layers"]}
    assert len(rows) == 8 and all(4 <= row["nominal_bits"] <= 6 for row in rows.values())
    assert not any(row["note"] and "nearest" in row["note"] for row in rows.values())
    assert found["estimate"]["apart"] == ["step 1, Quantize"]


def test_training(plan: Callable[..., Any]) -> None:
    found, longer = (plan(lp.Quantize(), lp.Finetune(epochs=epochs)) for epochs in (1000, 10**6))
    stages = [one["estimate"]["stages_s"] for one in (found, longer)]
    assert stages[0]["training"] > 0 and stages[1]["training"] > 20 * stages[0]["training"]
    assert all(row["encoding"] != "float32" for row in found["layers"])
    assert found["undecided"] == {} and found["estimate"]["apart"] == []


PRUNES = {
    "to a latency": lp.Prune("channels", latency=0.5),
    "to macs": lp.Prune("channels", macs=0.5),
    "channels": lp.Prune("channels", 0.5),
    "layers": lp.Prune("layers", 0.5),
    "layers to a latency": lp.Prune("layers", latency=0.5),
    "blocks": lp.Prune("blocks", 0.5),
}


@pytest.mark.parametrize("kind", PRUNES)
def test_pruning(kind: str, plan: Callable[..., Any]) -> None:
    found = plan(PRUNES[kind], lp.Quantize(weights=lp.Int(4)))
    assert list(found["undecided"]) == ["step 1, Prune"]
    assert found["estimate"]["apart"] == ["step 1, Prune"]
    assert all(row["nominal_bits"] <= 6 for row in found["layers"])  # the step after it is planned


def test_weights_to_be_pruned_are_known(plan: Callable[..., Any]) -> None:
    found = plan(lp.Prune("weights", 0.5), lp.Quantize(weights=lp.Int(4)))
    assert found["undecided"] == {} and all("sparse" in row["encoding"].lower() for row in found["layers"])


@pytest.mark.parametrize(
    "by", [lp.rescaling.SmoothQuant(), lp.rescaling.AWQ(lp.Int(4, group=16)), lp.rescaling.CrossLayer()], ids=repr
)
def test_scales(by: Any, plan: Callable[..., Any]) -> None:
    found = plan(lp.techniques.Equalize(by), lp.Quantize(weights=lp.Int(4, group=16)))
    assert all(row["nominal_bits"] < 8 for row in found["layers"])


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ((lp.Quantize(where="nowhere"),), "nowhere"),
        ((lp.Prune("channels", 0.5, where="nowhere"),), "nowhere"),
        ((lp.Prune("heads", 0.5),), "no heads"),
        ((lp.Quantize(), lp.Finetune(patience=3)), "validation batches"),
    ],
    ids=["where of weights", "where of channels", "no heads", "no validation"],
)
def test_what_would_fail_is_told(steps: Any, told: str, plan: Callable[..., Any]) -> None:
    assert told in plan(*steps, code=2)["error"]


def test_a_bad_metric_is_told(task: Path, plan: Callable[..., Any]) -> None:
    task.write_text(TASK.replace("[:, 0])", ".mean())"))
    assert "return one score a sample" in plan(lp.Quantize(), code=2)["error"]


def test_the_words(task: Path) -> None:
    recipe = task.with_name("recipe.toml")
    recipe.write_text(
        lp.Recipe([lp.Prune("channels", latency=0.5), lp.Quantize(rounding=lp.rounding.GPTQ())]).to_toml()
    )
    done = CliRunner().invoke(app, ["compress", str(task), "--dry-run", "--recipe", str(recipe)])
    assert "step 1, Prune: " in done.stdout and "the layers are told without it" in done.stdout
    assert "what step 1, Prune tries and what step 2, Quantize tries and your metric comes on top" in done.stdout


def test_calibration_is_multiplied(task: Path, plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch is read, and each of the others counts as long."""
    now = iter(range(10**6))
    monkeypatch.setattr(estimate, "perf_counter", lambda: float(next(now)))
    taken = []
    for count in (2, 16):
        task.write_text(TASK.replace("range(3)]", f"range({count})]"))
        taken.append(plan(lp.Quantize(activations=lp.Int(8)))["estimate"]["stages_s"]["calibrating"])
    assert taken[0] > 0 and taken[1] / taken[0] == pytest.approx(8)
