"""`lilliput diagnose`: a table, or JSON, or a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_the_table_and_the_file(lilliput: Run, task: Path, tmp_path: Path) -> None:
    page = tmp_path / "blame.html"
    done = lilliput("diagnose", task, "--worst", 0, "--samples", 4, "-o", page, "--folder", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    first, _, heads, *rest = done.stdout.splitlines()
    assert first.startswith("tiny in onnxruntime, 4 samples of the calibration batches: its output keeps ")
    assert heads.split() == ["layer", "op", "weight", "values", "alone,", "dB", "share", "reached,", "dB"]
    assert {line.split()[0] for line in rest[:2]} == {"conv.weight", "fc.weight"}
    assert "this is the task speaking" in done.stderr and "looking inside: 4 of 4" not in done.stdout
    assert "Where it loses" in page.read_text()
    again = lilliput("diagnose", task, "--worst", 0, "--samples", 4, "--json", "--folder", tmp_path / "out")
    assert {row["name"] for row in json.loads(again.stdout)["rows"]} == {"conv.weight", "fc.weight"}


def test_bad_input(lilliput: Run, task: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["missing.py"], "missing.py: there is no such file"),
        ([task, "-o", tmp_path / "a.txt"], "a diagnosis as .txt; write .html or .json"),
    ):
        done = lilliput("diagnose", *arguments)
        assert done.exit_code == 2 and message in done.stderr, done.stderr
