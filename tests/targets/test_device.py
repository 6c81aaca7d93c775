"""Another device, reached by a command: its figures, its answers, and every way in which it can fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import lilliput as lp
from lilliput.cli.app import app
from lilliput.errors import InputError, LilliputError, MeasureError
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature

RUN = """
import os, sys, time
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime
model, inputs, *outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
feed = dict(np.load(inputs))
began = time.process_time()
found = session.run(None, feed)
print("a word before it")
print(1e3 * (time.process_time() - began))
if outputs:
    np.savez(outputs[0], *found)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "a folder").mkdir()
    path = tmp_path / "a folder" / "run.py"
    path.write_text(RUN)
    return path


def command(script: Path, places: str) -> str:
    return f"{sys.executable} '{script}' {places}"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).eval()


@pytest.mark.parametrize("places", ["{model} {inputs}", "{model} {inputs} {outputs}"], ids=["figures", "answers"])
def test_compress_for_a_device(script: Path, places: str, tmp_path: Path) -> None:
    target = lp.targets.Device(command=command(script, places), builds=lp.targets.OnnxRuntime(threads=1), seconds=0.1)
    small = lp.compress(net(), calibrate=[torch.randn(4, 64)], target=target, folder=tmp_path / "out")
    assert small.data["target"] == "device" and "In device" in small.data["sentence"]
    assert small.data["after"]["latency_ms"]["samples"] >= 1
    assert 0 < small.data["after"]["latency_ms"]["value"] < 100  # of the run, not of the process around it
    assert small.data["agreement"]["outputs"][0]["sqnr_db"] > 20
    x = torch.randn(3, 64)
    assert lp.open(tmp_path / "out" / "net.lil")(x).shape == (3, 8)  # here, by what built it


def test_from_the_shell(script: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text(
        "import torch, lilliput as lp\n"
        "net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))\n"
        "task = lp.Task(net, calibrate=[torch.randn(4, 64)])\n"
    )
    asked = ["compress", str(task), "-o", str(tmp_path / "out"), "--seconds", "0.1", "--threads", "1"]
    done = CliRunner().invoke(app, [*asked, "--command", command(script, "{model} {inputs}")])
    assert done.exit_code in (0, 3), done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["target"] == "device"
    refused = CliRunner().invoke(app, [*asked, "--command", "run {model}"])
    assert refused.exit_code == 2 and "does not name {model} and {inputs}" in refused.stderr


FAILS: list[tuple[str, str, type[LilliputError], str]] = [
    ("no program", "{model}.nowhere {inputs}", MeasureError, "cannot be started"),
    ("ends", "{python} -c 'import sys; sys.exit(\"out of memory\")' {model} {inputs}", MeasureError, "out of memory"),
    ("no number", "{python} -c 'print(\"fast\")' {model} {inputs}", MeasureError, "printed 'fast'"),
    ("nothing", "{python} -c pass {model} {inputs}", MeasureError, "printed ''"),
    ("not positive", "{python} -c 'print(-1)' {model} {inputs}", MeasureError, "printed '-1'"),
    ("too slow", "{python} -c 'import time; time.sleep(60)' {model} {inputs}", MeasureError, "took over 0.5 s"),
    ("no outputs", "{python} -c 'print(1)' {model} {inputs} {outputs}", MeasureError, "left no outputs"),
]


@pytest.mark.parametrize(("text", "kind", "told"), [row[1:] for row in FAILS], ids=[row[0] for row in FAILS])
def test_a_command_that_fails(text: str, kind: type[LilliputError], told: str, tmp_path: Path) -> None:
    builds = lp.targets.OnnxRuntime(threads=1)
    target = lp.targets.Device(command=text.replace("{python}", sys.executable), builds=builds, timeout_s=0.5)
    if "took over" not in told:
        target = lp.targets.Device(command=target.command, builds=builds)
    path, example = lp.export(tmp_path / "net.onnx", net(), torch.randn(1, 64)), Inputs.of(torch.randn(1, 64))
    run = target.runs.open(path, Signature((0,), "tensor"))
    with pytest.raises(kind, match=told):
        run(*example.args) if "outputs" in told else target.runs.latencies({"it": run}, example, 0.1)


@pytest.mark.parametrize("text", ["", "run {model}", "run {inputs}", "run '{model} {inputs}"])
def test_a_command_that_cannot_be_one(text: str) -> None:
    with pytest.raises(InputError):
        lp.targets.Device(command=text)


def test_answers_of_another_number(tmp_path: Path) -> None:
    two = "import numpy, sys; numpy.savez(sys.argv[3], 1, 2); print(1)"
    target = lp.targets.Device(command=f"{sys.executable} -c '{two}' {{model}} {{inputs}} {{outputs}}")
    path = lp.export(tmp_path / "net.onnx", net(), torch.randn(1, 64))
    run: Any = target.runs.open(path, Signature((0,), "tensor"))
    with pytest.raises(MeasureError, match="left 2 outputs, where the model has 1"):
        run(torch.randn(1, 64))
