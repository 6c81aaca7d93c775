"""A run that was killed, started again in its folder, ends in the very bytes of an undisturbed one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("killed.py")
DELIVERED = ["net.lil", "net.onnx", "report.html", "report.json"]
CHAIN = "chain"  # one folder, killed at every moment in turn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks /proc which file is being written")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def told(place: Path) -> dict[str, Any]:
    """What was found after each kill, and in each folder in the end."""
    done = subprocess.run([sys.executable, str(SCRIPT), str(place)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_every_run_was_killed(told: dict[str, Any]) -> None:
    assert len(told["killed"]) == 10
    survived = [name for name, found in told["killed"].items() if found["signal"] != signal.SIGKILL]
    assert not survived


def test_runs_were_killed_in_the_middle_of_writing(told: dict[str, Any]) -> None:
    whole = [name for name, found in told["killed"].items() if " write" in name and not found["unfinished"]]
    assert not whole


def test_no_result_without_its_report(told: dict[str, Any]) -> None:
    for name, found in told["killed"].items():
        if " deliver" in name:
            assert "report.json" in found["results"], name
        else:
            assert found["results"] == [], name


@pytest.mark.parametrize("name", [CHAIN, "net.lil write", "net.onnx deliver"])
def test_the_same_bytes_in_the_end(name: str, place: Path, told: dict[str, Any]) -> None:
    assert told["folders"][name] == {"results": DELIVERED, "unfinished": []}
    for file in ("net.lil", "net.onnx"):
        assert (place / name / file).read_bytes() == (place / "undisturbed" / file).read_bytes()
