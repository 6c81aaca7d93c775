"""`--dry-run`: a plan with estimates, and not one byte written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def _tree(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture
def nowhere(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing a file of ours is an error; torch may make caches of its own elsewhere."""
    here, made, moved, temporary = str(task.parent), os.mkdir, os.replace, tempfile.mkdtemp

    def ours(*places: Any) -> None:
        assert not any(str(place).startswith((here, "lilliput-")) for place in places), "a dry run writes"

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        ours(path)
        made(path, *args, **kwargs)

    def replace(source: Any, path: Any, **kwargs: Any) -> None:
        ours(source, path)
        moved(source, path, **kwargs)

    def mkdtemp(*args: Any, **kwargs: Any) -> str:
        ours(kwargs.get("prefix"))
        return temporary(*args, **kwargs)

    for module, name, guarded in ((os, "mkdir", mkdir), (os, "replace", replace), (tempfile, "mkdtemp", mkdtemp)):
        monkeypatch.setattr(module, name, guarded)


@pytest.mark.usefixtures("nowhere")
def test_the_plan(lilliput: Run, task: Path, tmp_path: Path) -> None:
    before = _tree(tmp_path)
    done = lilliput("compress", task, "-o", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["conv.weight", "conv2d", "16×8×3×3"] in [row[:3] for row in rows]
    assert ["fc.weight", "linear", "64×256"] in [row[:3] for row in rows]
    assert "skipped table: it is read by matmul" in done.stdout
    assert "Estimates, from one calibration batch" in done.stdout
    assert all(word in done.stdout for word in ("  time  ", "  memory  ", "  disk  ", "Nothing was written."))
    assert _tree(tmp_path) == before


@pytest.mark.usefixtures("nowhere")
def test_the_plan_as_json(lilliput: Run, task: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        '[[steps]]\nkind = "Quantize"\nwhere = "fc"\nweights = {kind = "Int", bits = 4}\n'
    )
    done = lilliput("compress", task, "--dry-run", "--json", "--recipe", tmp_path / "recipe.toml")
    plan = json.loads(done.stdout)
    assert plan["recipe"][0]["where"] == "fc"
    assert {row["path"]: row["nominal_bits"] for row in plan["layers"]} == {
        "conv.weight": 32,
        "fc.weight": 4.125,
    }
    assert {entry["path"] for entry in plan["skipped"]} == {"conv.weight", "table"}
    stages = plan["estimate"]["stages_s"]
    assert sum(stages.values()) == pytest.approx(plan["estimate"]["seconds"])


@pytest.mark.usefixtures("nowhere")
def test_bad_input_is_found(lilliput: Run, task: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[[steps]]\nkind = "Quantize"\nweights = {kind = "Int", axis = 9}\n')
    done = lilliput("compress", task, "--dry-run", "--recipe", tmp_path / "recipe.toml")
    assert done.exit_code == 2
    assert "error: conv.weight: axis 9 of a tensor with 4 axes" in done.stderr


def test_estimates_against_a_real_run(lilliput: Run, task: Path, tmp_path: Path) -> None:
    """Disk is told closely where tensors outweigh what describes them; time and memory grow with the network."""
    small = json.loads(lilliput("compress", task, "--dry-run", "--json", "--seconds", 1.5).stdout)["estimate"]
    wide = 4096
    task.write_text(
        task.read_text().replace("Linear(256, 64)", f"Linear(256, {wide})").replace("randn(64", f"randn({wide}")
    )
    plan = json.loads(lilliput("compress", task, "--dry-run", "--json", "--seconds", 1.5).stdout)["estimate"]
    lilliput("compress", task, "-o", tmp_path / "out", "--seconds", 1.5)
    tensors = sum(
        path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.suffix in (".onnx", ".lil", ".answer")
    )
    delivered_twice = sum((tmp_path / "out" / name).stat().st_size for name in ("net.lil", "net.onnx"))
    assert plan["disk_bytes"] == pytest.approx(tensors - delivered_twice, rel=0.15)
    added = 4 * (wide - 64) * (256 + 1 + 64)  # bytes of weights and biases
    assert plan["memory_bytes"] - small["memory_bytes"] >= added
    assert added < plan["disk_bytes"] - small["disk_bytes"] < 2.5 * added
    assert plan["stages_s"]["timing"] == small["stages_s"]["timing"] == 1.5
