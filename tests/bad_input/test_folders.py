"""Folders that cannot be written, disks that are full, and folders that hold another run."""

from __future__ import annotations

import copy
import gc
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import InputError, ResumeError
from lilliput.targets.onnx import OnnxWriter

Refused = Callable[..., Any]
Tasks = Callable[..., lp.Task]
RECIPE = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.Int(8))])


def _mounted(place: Path, options: str) -> Iterator[Path]:
    """A disk of its own in memory at `place`; a skipped test where nothing may be mounted."""
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    yield from _mounted(tmp_path / "read_only", "ro,size=1m")


@pytest.fixture(params=["size=8k", "size=40k"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Full soon, and full when most is written."""
    yield from _mounted(tmp_path / "small", request.param)


@pytest.mark.parametrize("below", ["", "out"])
def test_a_file_where_the_folder_should_be(below: str, tmp_path: Path, task: Tasks, refused: Refused) -> None:
    file = tmp_path / "results"
    file.write_text("mine")
    error = refused(InputError, task(), RECIPE, folder=file / below)
    assert error.where.startswith(str(file)) and error.why == "Not a directory"
    assert file.read_text() == "mine"


def test_a_place_where_nothing_can_be_made(task: Tasks, refused: Refused) -> None:
    error = refused(InputError, task(), RECIPE, folder=Path("/proc/lilliput"))
    assert error.where.startswith("/proc/lilliput") and error.next == "choose another place"


def test_a_disk_that_is_read_only(read_only: Path, task: Tasks, refused: Refused) -> None:
    assert refused(InputError, task(), RECIPE, folder=read_only / "out").why == "Read-only file system"


def test_a_disk_that_is_full(small_disk: Path, task: Tasks, refused: Refused) -> None:
    error = refused(InputError, task(), RECIPE, folder=small_disk / "out")
    assert error.why == "No space left on device"


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, _net: nn.Module, batches: list[Tensor], quick: lp.targets.OnnxRuntime
) -> lp.results.Result:
    folder = tmp_path_factory.mktemp("finished") / "out"
    task = lp.Task(copy.deepcopy(_net), example=batches[0][:1], calibrate=batches, evaluate=batches[:2])
    return lp.compress(task, RECIPE, folder=folder, target=quick)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CHANGES: dict[str, Callable[[lp.Task], lp.Task]] = {
    "model": lambda task: _with_other_weights(task),
    "calibration data": lambda task: replace(task, calibrate=[x + 1 for x in task.calibrate or ()]),
    "evaluation data": lambda task: replace(task, evaluate=None),
    "example": lambda task: replace(task, example=torch.ones(1, 8, 4, 4)),
    "dynamic axes": lambda task: replace(task, dynamic={0: {0: "samples"}}),
}


def _with_other_weights(task: lp.Task) -> lp.Task:
    with torch.no_grad():
        task.model.get_parameter("fc.weight")[0, 0] += 1
    return task


@pytest.mark.parametrize("changed", [*CHANGES, "recipe", "environment"])
def test_another_run_in_the_same_folder(
    changed: str, finished: lp.results.Result, net: nn.Module, batches: list[Tensor], quick: lp.targets.OnnxRuntime
) -> None:
    """It is refused, what changed is named, and the folder's files stay as they are."""
    before = _contents(finished.folder)
    task = lp.Task(net, example=batches[0][:1], calibrate=batches, evaluate=batches[:2])
    task = CHANGES[changed](task) if changed in CHANGES else task
    recipe = RECIPE if changed != "recipe" else lp.Recipe([lp.Quantize(weights=lp.Int(7))])
    target = quick if changed != "environment" else replace(quick, threads=1)
    with pytest.raises(ResumeError) as caught:
        lp.compress(task, recipe, folder=finished.folder, target=target)
    assert caught.value.what == f"holds a run with another {changed}"
    assert caught.value.where == str(finished.folder) and "delete" in caught.value.next
    assert _contents(finished.folder) == before


def test_the_same_run_again_repeats_nothing(
    finished: lp.results.Result,
    net: nn.Module,
    batches: list[Tensor],
    quick: lp.targets.OnnxRuntime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(*args: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(OnnxWriter, "build", build)
    before = _contents(finished.folder)
    task = lp.Task(net, example=batches[0][:1], calibrate=batches, evaluate=batches[:2])
    again = lp.compress(task, RECIPE, folder=finished.folder, target=quick)
    assert again.data == finished.data
    assert _contents(finished.folder) == before


@pytest.mark.parametrize("name", ["save", "export"])
def test_a_result_saved_where_nothing_can_be_made(name: str, finished: lp.results.Result) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        getattr(finished, name)("/proc/lilliput/net")


def test_a_report_of_an_unknown_ending(finished: lp.results.Result, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"write \.html or \.json"):
        finished.report(tmp_path / "report.pdf")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where folders go that nobody named."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


def test_without_a_folder_nothing_stays_after_an_error(temporary: Path, task: Tasks, refused: Refused) -> None:
    refused(InputError, task(metric=lambda model: 0.5), RECIPE, folder=None)
    assert not list(temporary.iterdir())


def test_without_a_folder_results_live_as_long_as_the_result(
    temporary: Path, task: Tasks, quick: lp.targets.OnnxRuntime
) -> None:
    result = lp.compress(task(), RECIPE, target=quick)
    assert (result.folder / "net.onnx").exists()
    del result
    gc.collect()
    assert not list(temporary.iterdir())
