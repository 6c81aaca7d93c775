"""`lilliput clean`: what a run kept to go on with goes, what it made stays, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from typer.testing import CliRunner

import lilliput as lp
from lilliput.cli.app import app


def test_what_was_made_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, out = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), tmp_path / "out"
    task = lp.Task(net, example=torch.randn(4, 64))
    first = lp.compress(task, target=lp.targets.OnnxRuntime(threads=1, seconds=0), folder=out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert (out / "work").exists() and "net.lil" in before
    done = CliRunner().invoke(app, ["clean", str(out)])
    assert done.exit_code == 0 and "removed" in done.stdout and not (out / "work").exists()
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert "nothing to remove" in CliRunner().invoke(app, ["clean", str(out)]).stdout
    again = lp.compress(task, target=lp.targets.OnnxRuntime(threads=1, seconds=0), folder=out)
    assert again.digest == first.digest


def test_what_is_no_folder_of_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    refused = CliRunner().invoke(app, ["clean", str(tmp_path)])
    assert refused.exit_code == 2 and "is no folder of a run" in refused.stderr
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"
    assert CliRunner().invoke(app, ["clean", str(tmp_path / "none")]).exit_code == 2


def test_a_run_that_was_cut_off_goes_only_when_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "run.json").write_text("{}")
    refused = CliRunner().invoke(app, ["clean", str(tmp_path)])
    assert refused.exit_code == 2 and "cut off" in refused.stderr and (tmp_path / "work").exists()
    assert CliRunner().invoke(app, ["clean", str(tmp_path), "--unfinished"]).exit_code == 0
    assert not (tmp_path / "work").exists()
