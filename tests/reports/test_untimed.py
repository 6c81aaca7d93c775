"""27 seconds of work were lost because one round of timing did not fit into the seconds that were given.

Found by use (the issue about what is wrong in silence). Right is that a result is delivered without a speed, and says
so; that `seconds=0` means "do not time"; and that what goes by timing is refused before any work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import lilliput as lp
from lilliput.cli.app import app

INT8, HERE = lp.Recipe([lp.Quantize()]), lp.targets.OnnxRuntime(threads=1)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


def batches() -> list[torch.Tensor]:
    return [torch.randn(8, 32, generator=torch.Generator().manual_seed(1))]


def check_delivered(small: lp.results.Result, why: str) -> None:
    data = json.loads((small.folder / "report.json").read_text())
    assert data["ratio"]["faster"] is None and data["ratio"]["smaller"] > 1.5 and data["outcome"] == "done"
    assert data["before"]["latency_ms"] is None and data["after"]["latency_ms"] is None
    assert data["speed"].startswith("not timed: ") and why in data["speed"]
    assert f"was not timed ({why}" in str(small)
    page = (small.folder / "report.html").read_text()
    assert "not timed" in page and "None" not in page
    x = batches()[0]
    found, expected = lp.open(small.folder / "net.lil")(x), small.model(x).detach()
    assert float((found - expected).norm()) < 0.1 * float(expected.norm())


@pytest.mark.parametrize("recipe", [INT8, None], ids=["a recipe", "the target's own"])
def test_no_seconds_mean_no_timing(recipe: lp.Recipe | None, tmp_path: Path) -> None:
    target = lp.targets.OnnxRuntime(threads=1, seconds=0, safe=True)  # or its answers differ where there is no VNNI
    small = lp.compress(net(), recipe, calibrate=batches(), target=target, folder=tmp_path)
    check_delivered(small, "seconds=0")
    assert (small.data["tried"] or {}).get("why_not") == (None if recipe else "seconds=0")


def test_no_round_that_fits_loses_no_work(tmp_path: Path) -> None:
    target = lp.targets.OnnxRuntime(threads=1, seconds=1e-9)
    check_delivered(lp.compress(net(), INT8, calibrate=batches(), target=target, folder=tmp_path), "no round of timing")


def test_a_device_that_is_not_timed_is_not_run(tmp_path: Path) -> None:
    target = lp.targets.Device(command="no-such-program {model} {inputs}", builds=HERE, seconds=0)
    check_delivered(lp.compress(net(), INT8, calibrate=batches(), target=target, folder=tmp_path), "seconds=0")


def test_a_device_that_fails_while_it_is_timed_loses_no_work(tmp_path: Path) -> None:
    counter = tmp_path / "count"
    script = tmp_path / "run.py"
    script.write_text(f"c = open({str(counter)!r}, 'a+'); c.write('x'); print(c.tell() == 1 and 3.5 or 'lost contact')")
    target = lp.targets.Device(command=f"{sys.executable} {script} {{model}} {{inputs}}", builds=HERE)
    small = lp.compress(net(), INT8, calibrate=batches(), target=target, folder=tmp_path / "out")
    check_delivered(small, f"{target.command}: the command printed 'lost contact'")


def test_one_figure_of_a_device_has_no_interval(tmp_path: Path) -> None:
    """A device that takes as many milliseconds as the file has bytes, and time for one round."""
    script = tmp_path / "size.py"
    script.write_text("import os, sys; print(os.path.getsize(sys.argv[1]))")
    target = lp.targets.Device(command=f"{sys.executable} {script} {{model}} {{inputs}}", builds=HERE, seconds=1e-9)
    small = lp.compress(net(), INT8, calibrate=batches(), target=target)
    smaller = small.data["ratio"]["smaller"]
    assert small.data["ratio"]["faster"] == {"value": pytest.approx(smaller), "low": None, "high": None, "samples": 1}
    assert f"runs about {smaller:.2f}× faster (no interval: it was timed in one round)" in str(small)


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(lp.errors.LilliputError) as told:
        run()
    return str(told.value)


def test_a_budget_of_latency_is_refused_before_any_work() -> None:
    model, calls = net(), list[object]()
    model.register_forward_pre_hook(lambda *given: calls.append(given))
    recipe, target = lp.Recipe([lp.Prune("channels", latency=0.7)]), lp.targets.OnnxRuntime(threads=1, seconds=0)
    for verb in (lp.compress, lp.diagnose):
        told = refused(lambda verb=verb: verb(model, recipe, calibrate=batches(), target=target))  # type: ignore[misc]
        assert "step 1, Prune, has a budget of latency, and the target has seconds=0" in told and not calls
    instead = lp.Recipe([lp.Prune("channels", parameters=0.7)])  # which is what the message says to do
    small = lp.compress(model, instead, calibrate=batches(), target=target)
    assert small.data["after"]["parameters"] <= 0.7 * small.data["before"]["parameters"]


def test_from_the_shell(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import torch, lilliput as lp\n"
        "net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))\n"
        "task = lp.Task(net, calibrate=[torch.randn(4, 32)])\n"
    )
    asked = ["compress", str(tmp_path / "task.py"), "-o", str(tmp_path / "out"), "--seconds", "0", "--threads", "1"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.stderr
    assert "was not timed (seconds=0)" in done.stdout
    (tmp_path / "budget.toml").write_text('[[steps]]\nkind = "Prune"\nunit = "channels"\nlatency = 0.7\n')
    for more in ([], ["--dry-run"]):
        failed = CliRunner().invoke(app, [*asked, "--recipe", str(tmp_path / "budget.toml"), *more])
        assert failed.exit_code == 2 and "budget of latency, and the target has seconds=0" in failed.stderr


def test_without_measuring_nothing_is_timed_and_no_memory_told() -> None:
    """Of a network large enough for both; what was built is compared all the same."""
    large = nn.Sequential(nn.Linear(32, 1024), nn.ReLU(), nn.Linear(1024, 1024)).eval()
    target = lp.targets.OnnxRuntime(threads=1, seconds=2, safe=True)
    small = lp.compress(large, INT8, calibrate=batches(), target=target, measure=False)
    check_delivered(small, "seconds=0")
    measured = lp.compress(large, INT8, calibrate=batches(), target=target)
    for side in ("before", "after"):
        assert small.data[side]["loading"] is None and measured.data[side]["loading"]["seconds"] > 0
    assert measured.digest == small.digest
    with pytest.raises(lp.errors.LilliputError, match="measure: is 3"):
        lp.compress(net(), INT8, calibrate=batches(), measure=3)  # type: ignore[arg-type]
