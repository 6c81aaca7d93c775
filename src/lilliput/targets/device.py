"""Any other device, measured by a command of the user's."""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from lilliput.errors import InputError, MeasureError, reason
from lilliput.measure import Latencies
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.targets.onnx import OnnxWriter
from lilliput.targets.onnxruntime import OnnxRuntime
from lilliput.targets.target import Preferences, Runner, Runtime, Target, Writer

_ROUNDS = 20


@dataclass(frozen=True)
class Device(Target):
    """A device reached by a command: what `builds` builds, run and timed wherever the command takes it.

    The command is given ``{model}``, the file, and ``{inputs}``, an .npz with an array for each input under its name in
    the file; the last line that it prints is the milliseconds of one run. If it also names ``{outputs}``, it writes the
    outputs there, an .npz in their order, and agreement is judged by them; otherwise by what `builds` computes here.
    No shell is involved.

    Raises InputError for a command that names no model.
    """

    command: str = ""
    builds: Target = field(default_factory=OnnxRuntime)
    timeout_s: float = 600.0  # of one run of the command

    name: ClassVar[str] = "device"

    def __post_init__(self) -> None:
        if "{model}" not in self.command or "{inputs}" not in self.command:
            raise InputError(
                f"the command {self.command!r} does not name {{model}} and {{inputs}}",
                next='write it as "python run.py {model} {inputs}"',
            )
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise InputError(
                "the command cannot be split into words",
                where=self.command,
                why=reason(error),
                next="close its quotes, as a shell wants them",
            ) from None

    def check(self) -> None:
        super().check()
        self.builds.check()
        if self.builds.writes.format != OnnxWriter.format:
            raise InputError(
                f"a device is given an ONNX file, and {self.builds.name} builds .{self.builds.writes.format}",
                where="builds",
                next="let OnnxRuntime() or OpenVino() build it",
            )
        program = shlex.split(self.command)[0]
        if not self.untimed and "{" not in program and shutil.which(program) is None:
            raise InputError(
                "the command cannot be started",
                where=self.command,
                why=f"there is no program {program}",
                next="name a program that is there, by its path if need be",
            )

    @property
    def prefers(self) -> Preferences:
        return self.builds.prefers

    @property
    def writes(self) -> Writer:
        return self.builds.writes

    @property
    def runs(self) -> CommandRuntime:
        return CommandRuntime(self.command, self.timeout_s, self.builds)


@dataclass(frozen=True)
class CommandRuntime(Runtime):
    """Whatever the command reaches; where that gives no outputs, what `builds` computes here answers."""

    command: str
    timeout_s: float  # of one run
    builds: Target

    def open(self, built: Path | bytes, signature: Signature, module: nn.Module | None = None) -> Runner:
        """The file as a callable that runs the command; its method `timed_ms` gives the command's own figure."""
        if isinstance(built, bytes):
            raise InputError("a device opens files", where="graph", next="write it, and give its path")
        here = None if "{outputs}" in self.command else self.builds.opened(built, signature, module)
        return _OnDevice(self, built, signature, here)

    def latencies(self, runs: Mapping[str, Runner], example: Inputs, seconds: float) -> Latencies:
        """The command's own figures, taken in turns; each run of it is one sample."""
        began, took = perf_counter(), 0.0
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(_ROUNDS):
            if index and perf_counter() - began + took > seconds:
                break
            round_began = perf_counter()
            for name in list(runs)[:: -1 if index % 2 else 1]:
                run = runs[name]
                assert isinstance(run, _OnDevice)
                taken[name].append(run.timed_ms(example))
            took = perf_counter() - round_began
        return Latencies({name: tuple(ms) for name, ms in taken.items()})


@dataclass(frozen=True)
class _OnDevice:
    """What was built, behind the command."""

    device: CommandRuntime
    built: Path
    signature: Signature
    here: Runner | None  # what answers, where the command gives no outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.here is not None:
            return self.here(*args, **kwargs)
        return self.signature.assemble(self._run(Inputs.given(args, kwargs))[1])

    def timed_ms(self, example: Inputs) -> float:
        return self._run(example)[0]

    def _run(self, given: Inputs) -> tuple[float, list[Tensor]]:
        tensors = self.signature.arguments(given)
        names = [value.name for value in onnx.load(self.built, load_external_data=False).graph.input]
        with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
            inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
            arrays: dict[str, Any] = {name: x.detach().numpy() for name, x in zip(names, tensors, strict=True)}
            np.savez(inputs, **arrays)
            places = {"{model}": str(self.built), "{inputs}": str(inputs), "{outputs}": str(outputs)}
            ms = _milliseconds(self._told(places), self.device.command)
            return ms, self._answers(outputs) if self.here is None else []

    def _told(self, places: Mapping[str, str]) -> str:
        command, words = self.device.command, []
        for word in shlex.split(command):
            for name, path in places.items():
                word = word.replace(name, path)
            words.append(word)
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=self.device.timeout_s)
        except subprocess.TimeoutExpired:
            raise MeasureError(
                f"the command took over {self.device.timeout_s:g} s",
                where=command,
                next="give Device(timeout_s=…) more",
            ) from None
        except (OSError, ValueError) as error:
            raise MeasureError(
                "the command cannot be started",
                where=command,
                why=reason(error),
                next="name a program that is there, by its path if need be",
            ) from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it printed no error"]
            raise MeasureError(
                f"the command ended with {done.returncode}",
                where=command,
                why=lines[-1],
                next="run it by hand on a model and inputs of yours",
            )
        return done.stdout

    def _answers(self, outputs: Path) -> list[Tensor]:
        command = self.device.command
        try:
            with np.load(outputs, allow_pickle=False) as held:
                found = [torch.from_numpy(held[name]) for name in held.files]
        except Exception as error:  # NumPy, zip files and torch raise many kinds
            raise MeasureError(
                "the command left no outputs",
                where=command,
                why=reason(error),
                next="let it write numpy.savez(outputs, …) with arrays of numbers, or leave {outputs} out",
            ) from None
        if len(found) != self.signature.count:
            raise MeasureError(
                f"the command left {len(found)} outputs, where the model has {self.signature.count}",
                where=command,
                next="let it write them all, in the order of the file",
            )
        return found


def _milliseconds(printed: str, command: str) -> float:
    lines = printed.strip().splitlines() or [""]
    try:
        ms = float(lines[-1])
    except ValueError:
        ms = math.nan
    if not (math.isfinite(ms) and ms > 0):
        raise MeasureError(
            f"the command printed {lines[-1]!r}",
            where=command,
            why="its last line is not a number of milliseconds",
            next="let it print that and nothing after it",
        )
    return ms
