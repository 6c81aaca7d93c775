"""A run that was killed, or ran out of space, ends in the very bytes of an undisturbed one when started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lilliput as lp
from lilliput.disk import clear_parts, whole_file
from lilliput.errors import ResumeError

SCRIPT = Path(__file__).with_name("killed.py")
DELIVERED = ["net.lil", "net.onnx", "report.html", "report.json"]
CHAIN = "chain"  # one folder, killed at every moment in turn
JOBS = {"compress": 16, "save": 10, "pack": 10}  # random moments that each was killed at


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def everything(place: Path) -> dict[str, Any]:
    """What was found after each kill and each full disk, and in each folder in the end."""
    if sys.platform != "linux":
        pytest.skip("forks, and asks /proc which file is being written")
    done = subprocess.run([sys.executable, str(SCRIPT), str(place)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture
def told(everything: dict[str, Any]) -> Any:
    """Of the named moments."""
    return everything["named"]


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


def test_most_random_kills_fell_within_the_writing(everything: dict[str, Any]) -> None:
    phases = {job: Counter(found["phase"] for found in everything[f"killed {job}"]["killed"]) for job in JOBS}
    print(*(f"{job}: {dict(counted)}" for job, counted in phases.items()), sep="\n")
    assert {job: counted.total() for job, counted in phases.items()} == JOBS
    assert sum(counted["during"] for counted in phases.values()) > sum(JOBS.values()) / 2, phases


@pytest.mark.parametrize("job", JOBS)
def test_killed_at_any_moment(job: str, everything: dict[str, Any]) -> None:
    """What has its own name is whole, and running again gives the undisturbed bytes and removes what was unfinished."""
    for found in everything[f"killed {job}"]["killed"]:
        assert found["signal"] == signal.SIGKILL or found["phase"] == "after"
        assert (found["damaged"], found["same"], found["unfinished"]) == ([], True, []), found


@pytest.mark.parametrize("job", JOBS)
def test_killed_again_and_again(job: str, everything: dict[str, Any]) -> None:
    chain = everything[f"killed {job}"]["chain"]
    assert chain["kills"] >= 1
    assert (chain["damaged"], chain["same"], chain["unfinished"]) == ([], True, []), chain


@pytest.mark.parametrize("job", JOBS)
def test_a_full_disk_at_any_moment(job: str, everything: dict[str, Any]) -> None:
    """The error tells the file and the reason, nothing is left, and with space again come the undisturbed bytes."""
    tried = everything[f"full {job}"]
    assert len(tried) == 10
    for found in tried:
        error = found["error"]
        assert error["kind"] == "InputError" and error["why"] == "File too large" and error["next"]
        assert Path(error["where"]).is_relative_to(found["folder"]) and Path(error["where"]).suffix
        assert found["kept"] and (found["damaged"], found["left"]) == ([], []), found
        assert (found["same"], found["unfinished"]) == (True, []), found


def test_only_what_killed_writers_of_the_same_file_left_is_removed(tmp_path: Path) -> None:
    left, other = tmp_path / ".net.lil.0123abcd.part", tmp_path / ".other.net.lil.0123abcd.part"
    mine = tmp_path / ".net.lil.part"
    for path in (left, other, mine):
        path.touch()
    with whole_file(tmp_path / "net.lil"):
        assert not left.exists()
    assert sorted(tmp_path.iterdir()) == sorted([other, mine, tmp_path / "net.lil"])
    clear_parts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, tmp_path / "net.lil"])


def test_two_writers_of_the_same_file_leave_each_other_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.lil"
    with whole_file(path) as slow:
        slow.write(b"slow")
        with whole_file(path) as quick:
            quick.write(b"quick")
        clear_parts(tmp_path)
        assert path.read_bytes() == b"quick"
    assert path.read_bytes() == b"slow"
    assert list(tmp_path.iterdir()) == [path]


Tasks = Callable[..., lp.Task]
RECIPE = lp.Recipe([lp.Quantize(weights=lp.Int(8))])


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run has noted what it is made of."""
    return tmp_path_factory.mktemp("begun")


@pytest.fixture
def refusal(
    begun: Path, task: Tasks, quick: lp.targets.OnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """What a run is told whose folder holds one with another entry in its record."""

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lilliput.verbs.follow", stop)
    record = begun / "work" / "run.json"
    if not record.exists():
        with pytest.raises(KeyboardInterrupt):
            lp.compress(task(), RECIPE, folder=begun, target=quick)
    noted = record.read_text()

    def refusal(earlier: dict[str, Any], target: lp.targets.OnnxRuntime = quick) -> str:
        run = json.loads(noted)
        record.write_text(json.dumps({**run, "environment": {**run["environment"], **earlier}}))
        try:
            with pytest.raises(ResumeError) as caught:
                lp.compress(task(), RECIPE, folder=begun, target=target)
        finally:
            record.write_text(noted)
        error = caught.value
        assert error.what == "holds a run with another environment" and error.where == str(begun)
        assert error.next.startswith("run under the same conditions again, ")
        return error.why

    return refusal


def test_another_version_of_torch(refusal: Callable[..., str]) -> None:
    assert refusal({"torch": "2.0.1"}) == f"torch 2.0.1 there, {torch.__version__} here"


def test_another_version_of_what_writes_the_files(refusal: Callable[..., str]) -> None:
    assert refusal({"zstandard": "0.1", "onnxscript": None}).startswith("onnxscript unknown there, ")
    assert "zstandard 0.1 there" in refusal({"zstandard": "0.1"})


def test_another_number_of_threads(refusal: Callable[..., str], quick: lp.targets.OnnxRuntime) -> None:
    assert refusal({}, replace(quick, threads=7)) == f"threads {quick.threads_used} there, 7 here"
    assert refusal({"torch_threads": 5}) == f"torch threads 5 there, {torch.get_num_threads()} here"


def test_another_target(refusal: Callable[..., str], quick: lp.targets.OnnxRuntime) -> None:
    assert refusal({}, replace(quick, opset=21)) == "target opset 20 there, 21 here"


def test_another_processor(refusal: Callable[..., str]) -> None:
    assert refusal({"cpu": "Some CPU"}).startswith("cpu Some CPU there, ")
    why = refusal({"flags": ["mmx"]})
    assert why.startswith("flags ") and "mmx only there" in why


def test_a_record_without_conditions_and_another_machine(refusal: Callable[..., str]) -> None:
    """Of many differences some are told."""
    why = refusal({"cpu": "x", "machine": "y", "logical_cores": 64, "os": "z", "python": "3.0", "numpy": "1.0"})
    assert why.count(" there, ") == 4 and why.endswith("; and 2 more")


def test_a_record_that_cannot_be_read(begun: Path, refusal: Callable[..., str], task: Tasks) -> None:
    record = begun / "work" / "run.json"
    noted = record.read_text()
    for damaged in ("", "[]", noted[:-9]):
        record.write_text(damaged)
        with pytest.raises(ResumeError, match=r"of which nothing is known \(run\.json cannot be read\); .*delete"):
            lp.compress(task(), RECIPE, folder=begun)
    record.write_text(noted)
