"""What every target keeps to, ours and those of users: its three parts, its files, its answers and what it refuses."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from chromium import LACKS, RUNTIME
from compared import close
from torch import Tensor, nn
from typer.testing import CliRunner

import lilliput as lp
from lilliput.cli.app import app
from lilliput.errors import ExportError, InputError, RecipeError
from lilliput.exporters.profiles import PROFILES
from lilliput.model.edits.edits import EncodeTensor, EncodeValue
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.signature import Signature
from lilliput.registry import forget
from lilliput.targets import TARGETS, OnnxFile, OnnxRuntime, Preferences, Runtime, Target, Writer
from lilliput.techniques.run import Wanted

SCRIPT = """
import sys
import numpy as np
from lilliput.runtimes.session import session
model, inputs, outputs = sys.argv[1:]
np.savez(outputs, *session(model, 1).run(None, dict(np.load(inputs))))
print(2.0)
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("device") / "run.py"
    path.write_text(SCRIPT)
    return f"{sys.executable} '{path}' {{model}} {{inputs}} {{outputs}}"


APART = ("gguf", "executorch", "litert")  # for decoders alone, or in another environment: tests/targets/ has theirs
NAMED = [name for name in TARGETS if name not in APART]
OURS = (
    *NAMED,
    "device",
    *(f"onnx for {name}" for name in PROFILES if name != "ort-cpu"),
)
HERE = [name for name in OURS if not name.startswith("onnx") or name == "onnxruntime"]
FILES = [name for name in OURS if name not in HERE]


@pytest.fixture
def target(request: pytest.FixtureRequest, command: str) -> Target:
    if request.param == "device":
        return lp.targets.Device(command=command, builds=OnnxRuntime(threads=1), seconds=0, threads=1)
    if request.param == "web" and RUNTIME is None:
        pytest.skip(LACKS)
    kind, _, name = request.param.partition(" for ")
    made = TARGETS[kind](seconds=0, threads=1)
    return replace(made, profile=name) if name else made  # type: ignore[call-arg]


every = pytest.mark.parametrize("target", OURS, indirect=True)
that_run = pytest.mark.parametrize("target", HERE, indirect=True)
that_only_write = pytest.mark.parametrize("target", FILES, indirect=True)


@cache
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 5)
    ).eval()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 8, 8, 8, generator=torch.Generator().manual_seed(count))


def written(target: Target, folder: Path) -> tuple[Path, Signature]:
    path, example = folder / f"net.{target.writes.format}", Inputs.of(images())
    target.writes.build(path, net(), example, {0: {0: "batch"}})
    return path, Signature.of(example, net()(images()), net().forward)


@every
def test_its_parts_are_what_they_are_for(target: Target) -> None:
    assert isinstance(target.prefers, Preferences) and isinstance(target.writes, Writer)
    assert isinstance(target.runs, Runtime | None)
    assert target.prefers.multiple >= 1 and target.multiple_here % target.prefers.multiple == 0
    assert repr(target) == repr(replace(target)) and {"threads", "seconds"} <= {one.name for one in fields(target)}
    kept = replace(target, seconds=1)
    assert target.untimed and bool(kept.untimed) == (target.runs is None)


@every
def test_what_is_opened_answers_as_the_module_does(target: Target, tmp_path: Path) -> None:
    path, signature = written(target, tmp_path)
    run = target.opened(path, signature, net())
    for count in (6, 2):
        close(run(images(count)), net()(images(count)), rtol=1e-3, atol=1e-4)


@every
def test_what_is_written_is_the_same_again(target: Target, tmp_path: Path) -> None:
    """And in its numbers the module's: a file of another module says otherwise."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (first, signature), (second, _) = (written(target, tmp_path / name) for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    run = target.writes.reference(first, signature, rounded=True)
    assert (run is None) == (target.writes.format == "lil")
    if run is not None:
        close(run(images()), net()(images()), rtol=1e-3, atol=1e-4)


@every
def test_what_it_wants_encoded_is_there_and_what_it_leaves_is_told(target: Target) -> None:
    view = capture(net(), Inputs.of(images()), {0: {0: "batch"}})
    weights = dict.fromkeys(view.weights, lp.Int(8))
    placed = target.prefers.place(view, Wanted(dict.fromkeys(weights, lp.Int(8)), weights))
    names = {call.value for call in view.calls}
    assert placed.values and {one.value.partition("@")[0] for one in placed.values} <= names
    assert placed.left.keys() <= weights.keys() and all(placed.left.values())
    calls = [call for call in view.calls if call.weights]
    assert all(target.prefers.remark(call, lp.Int(8), lp.Int(8)) for call in calls)
    assert {target.prefers.remark(call, None, None) for call in calls} == {"float"}


@every
def test_its_own_recipe_makes_the_network_smaller(target: Target, tmp_path: Path) -> None:
    small = lp.compress(net(), calibrate=[images()], target=target, folder=tmp_path, measure=False)
    assert small.built == tmp_path / f"net.{target.writes.format}" and small.data["target"] == target.name
    assert small.data["ratio"]["smaller"] > 1.5
    close(small.model(images()), net()(images()), share=0.05)
    assert any(isinstance(step.edit, EncodeTensor) for step in small.state.steps)
    flows = any(isinstance(step.edit, EncodeValue) for step in small.state.steps)
    assert flows == (target.name != "eager")
    assert small.data["runs_here"] == (target.runs is not None) and small.data["ratio"]["faster"] is None


@that_run
def test_what_runs_is_timed_within_its_seconds(target: Target, tmp_path: Path) -> None:
    runtime = target.runs
    assert runtime is not None
    path, signature = written(target, tmp_path)
    run = runtime.open(path, signature, net())
    taken = runtime.latencies({"one": run, "two": run}, Inputs.of(images()), 0.3)
    assert taken.rounds >= 1 and set(taken.rounds_ms) == {"one", "two"}
    assert all(ms > 0 for rounds in taken.rounds_ms.values() for ms in rounds)
    told = runtime.operators(path, signature, Inputs.of(images()), 0.1)
    assert len([one for one in told if one.multiplies]) in (0, 3) and all(one.ms >= 0 for one in told)


@pytest.mark.parametrize("target", NAMED, indirect=True)
def test_what_travels_inside_a_file_is_opened_or_told(target: Target, tmp_path: Path) -> None:
    lp.save(tmp_path / "net.lil", net(), example=images(), target=target)
    if target.writes.opened_by:
        close(lp.open(tmp_path / "net.lil")(images()), net()(images()), rtol=1e-3, atol=1e-4)
    else:
        with pytest.raises(lp.errors.FormatError, match=f"made for {target.name}, which runs the module itself"):
            lp.open(tmp_path / "net.lil")


@pytest.mark.parametrize(("threads", "seconds", "where"), [(0, 1, "threads"), (1, -1, "seconds"), (1, True, "seconds")])
@every
def test_settings_that_make_no_sense_are_refused(target: Target, threads: int, seconds: float, where: str) -> None:
    with pytest.raises(InputError, match=where):
        replace(target, threads=threads, seconds=seconds).check()


# where nothing runs here


@that_only_write
def test_a_file_that_is_not_run_keeps_its_rules_and_has_no_times(target: Any, tmp_path: Path) -> None:
    small = lp.compress(net(), calibrate=[images()], target=replace(target, seconds=60), folder=tmp_path)
    assert lp.targets.check(small.built, target.profile) == {target.profile: []}
    assert small.data["speed"] == "not run here: no times" and small.data["slower"] == []
    assert [small.data[side]["latency_ms"] for side in ("before", "after")] == [None, None]
    assert small.data["tried"]["why_not"] == "not run here" and not small.data["tried"]["rows"]
    assert "was not run here (no times)" in str(small) and "answers are those of reference kernels" in str(small)
    page = small.report(tmp_path / "copy.html").read_text()
    assert "Not run here." in page and "ms a call" not in page and "faster" not in page.partition("<h2>Layers")[0]
    assert "answers are those of reference kernels" in page
    written = small.data["export"]["after"]["written"]
    assert written is not None and 0 <= written["relative"] < 1e-3


def test_it_is_written_as_for_a_runtime_that_is_here(tmp_path: Path) -> None:
    """One recipe and one profile give one file, whatever runs it."""
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.Int(8))])
    here, file = (
        lp.compress(net(), recipe, calibrate=[images()], target=one, measure=False)
        for one in (OnnxRuntime(profile="tensorrt"), OnnxFile(profile="tensorrt"))
    )
    assert here.built.read_bytes() == file.built.read_bytes()
    assert (here.folder / "net.lil").read_bytes() == (file.folder / "net.lil").read_bytes()


def test_its_answers_are_judged_as_they_are_written() -> None:
    """A metric is given what the file says, on both sides."""
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(3), activations=lp.Int(8))])

    def apart(run: Any) -> Tensor:
        return (run(images()) - net()(images())).square().mean(1)

    task = lp.Task(net(), calibrate=[images()], metric=apart)
    small = lp.compress(task, recipe, target=OnnxFile(profile="tensorrt"))
    with torch.no_grad():
        right = float((small.model(images()) - net()(images())).square().mean())
    close(small.data["after"]["metric"]["value"], right, rtol=0.01)
    assert small.data["before"]["metric"]["value"] < 1e-6 < 1e-4 < right


def test_a_diagnosis_says_what_judged() -> None:
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(3), activations=lp.Int(8))])
    found = lp.diagnose(net(), recipe, calibrate=[images()], target=OnnxFile(profile="tensorrt"), worst=1)
    assert "not run here: answers are those of reference kernels" in str(found)
    assert found.rows[0].own_on == "target" and 5 < float(found.output_db or 0) < 40


@pytest.mark.parametrize("target", [OnnxFile(), OnnxFile(seconds=0)])
def test_a_budget_of_time_is_refused_before_any_work(target: Target) -> None:
    asked = list[int]()

    class Untouched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(1)
            return x

    with pytest.raises(RecipeError, match="the target is onnx, which is not run here") as caught:
        lp.compress(
            lp.Task(Untouched(), example=images()), lp.Recipe([lp.Prune("channels", latency=0.5)]), target=target
        )
    assert not asked and "take a target that runs here, or give the step macs= or parameters=" in caught.value.next
    small = lp.compress(  # the remedy
        lp.Task(net(), example=images()), lp.Recipe([lp.Prune("channels", macs=0.7)]), target=target
    )
    assert small.data["after"]["macs"] < 0.75 * small.data["before"]["macs"]


@dataclass(frozen=True)
class Sealed(Writer):
    """A file that nothing here reads."""

    format: ClassVar[str] = "sealed"

    def build(self, path: Path, model: nn.Module, example: Inputs, dynamic: Dynamic) -> None:
        path.write_bytes(b"".join(x.numpy().tobytes() for x in model.state_dict().values()))


@dataclass(frozen=True)
class Vault(OnnxFile):
    name: ClassVar[str] = "vault"

    @property
    def writes(self) -> Writer:  # type: ignore[override]
        return Sealed()


def test_what_nothing_here_reads_is_refused() -> None:
    with pytest.raises(ExportError, match="nothing here computes what vault writes"):
        lp.compress(net(), calibrate=[images()], target=Vault())


def test_rules_that_are_broken_are_refused(tmp_path: Path) -> None:
    line = nn.Sequential(nn.Conv1d(8, 8, 3))
    with pytest.raises(ExportError, match="tensorrt does not take a convolution over 1 dimension"):
        lp.export(tmp_path / "net.onnx", line, torch.randn(2, 8, 16), target=OnnxFile(profile="tensorrt"))
    assert lp.export(tmp_path / "net.onnx", line, torch.randn(2, 8, 16), target="onnx").exists()
    with pytest.raises(InputError, match="unknown profile 'tensort'; did you mean 'tensorrt'"):
        OnnxFile(profile="tensort")


def test_a_device_runs_what_is_only_written_elsewhere(command: str) -> None:
    """And prefers what that does: this machine's kernels say nothing of it."""
    builds = OnnxFile(profile="tensorrt")
    device = lp.targets.Device(command=command, builds=builds, seconds=0.01)
    assert (device.prefers, device.writes) == (builds.prefers, builds.writes)
    assert device.multiple_here == builds.prefers.multiple
    small = lp.compress(net(), calibrate=[images()], target=device)
    assert small.data["after"]["latency_ms"]["value"] == 2.0 and small.data["runs_here"]
    told = replace(device, command=device.command.replace("{outputs}", "out.npz"))
    path = small.built
    run = told.opened(path, Signature.of(Inputs.of(images()), net()(images())), net())
    close(run(images()), small.model(images()), share=0.02)  # by reference kernels, where the command tells none


# from the shell


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.py"
    path.write_text(
        "import torch, lilliput as lp\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 3))\n"
        "task = lp.Task(net, calibrate=[torch.randn(4, 8, 8, 8)])\n"
    )
    return path


def test_from_the_shell(task: Path, tmp_path: Path) -> None:
    asked = ["compress", str(task), "-o", str(tmp_path / "out"), "--profile", "tensorrt"]
    done = CliRunner().invoke(app, [*asked, "--target", "onnx"])
    assert done.exit_code == 0, done.stderr
    assert "was not run here (no times)" in done.stdout
    assert lp.targets.check(tmp_path / "out" / "net.onnx", "tensorrt") == {"tensorrt": []}
    planned = CliRunner().invoke(app, [*asked, "--target", "onnx", "--dry-run"])
    assert planned.exit_code == 0 and "integers for tensorrt: not run here" in planned.stdout
    refused = CliRunner().invoke(app, [*asked, "--target", "openvino"])
    assert refused.exit_code == 2 and "a profile for openvino, which has none" in refused.stderr


# of a user's


def test_a_class_is_reached_by_its_name() -> None:
    lp.register(Vault)
    try:
        assert lp.targets.target("vault") == Vault()
    finally:
        forget(Vault)
