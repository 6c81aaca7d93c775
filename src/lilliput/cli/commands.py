"""What the commands do; imported only when one of them runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import lilliput
from lilliput.blame.diagnosis import check_ending
from lilliput.cli import table
from lilliput.cli.load import Source, load_task
from lilliput.cli.progress import shown
from lilliput.engine.begin import begin
from lilliput.engine.estimate import estimated
from lilliput.engine.halves import in_float32
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import InputError
from lilliput.modes import ordinary_modes
from lilliput.plain import to_plain
from lilliput.recipe import Recipe
from lilliput.report.layers import layers
from lilliput.targets import Device, Target
from lilliput.targets import target as target_called
from lilliput.task import Task


@dataclass(frozen=True)
class Options:
    """What the user typed."""

    source: Source
    out: Path
    recipe: Path | None
    target: str
    command: str | None
    threads: int | None
    seconds: float | None
    profile: str | None
    json: bool

    def chosen_recipe(self) -> Recipe | None:
        return None if self.recipe is None else Recipe.read(self.recipe)

    def chosen_target(self) -> Target:
        given = {"threads": self.threads, "seconds": self.seconds}
        known = {name: value for name, value in given.items() if value is not None}
        runtime = dataclasses.replace(self._with_profile(), **known)  # type: ignore[arg-type]
        if self.command is None:
            return runtime
        return Device(command=self.command, builds=runtime, **known)  # type: ignore[arg-type]

    def _with_profile(self) -> Target:
        found = target_called(self.target)
        if self.profile is None:
            return found
        if all(field.name != "profile" for field in dataclasses.fields(found)):
            raise InputError(
                f"a profile for {found.name}, which has none", where="--profile", next="give --target onnx beside it"
            )
        return dataclasses.replace(found, profile=self.profile)  # type: ignore[call-arg]


def compress(asked: Options) -> str:
    """Compress, print the result, and tell what came of it: ``done``, ``not met`` or ``harmed``."""
    recipe, target = asked.chosen_recipe(), asked.chosen_target()
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result, whatever the task's code prints
        task = load_task(asked.source)
        with shown() as progress:
            result = lilliput.compress(task, recipe, target=target, folder=asked.out, progress=progress)
    if asked.json:
        print((result.folder / "report.json").read_text(encoding="utf-8"))
    else:
        names = dict.fromkeys((f"net.{target.writes.format}", "net.lil", "report.html", "report.json"))
        files = [result.folder / name for name in names]
        print(result, "", *files, sep="\n")
    return str(result.data["outcome"])


def diagnose(asked: Options, out: Path | None, folder: Path | None, samples: int, worst: int) -> None:
    """Diagnose, print what was found, and write it where `out` says."""
    recipe, target = asked.chosen_recipe(), asked.chosen_target()
    if out is not None:
        check_ending(out)
    with contextlib.redirect_stdout(sys.stderr):
        task = load_task(asked.source)
        with shown() as progress:
            given = {"target": target, "folder": folder, "samples": samples, "worst": worst, "progress": progress}
            found = lilliput.diagnose(task, recipe, **given)  # type: ignore[arg-type]
    if out is not None:
        found.save(out)
    if asked.json:
        print(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        table.show_diagnosis(found.to_json())


def dry_run(asked: Options) -> None:
    """Check and plan, print what would be done and what it would take; write nothing."""
    recipe, target = asked.chosen_recipe(), asked.chosen_target()
    with contextlib.redirect_stdout(sys.stderr):
        plan = _plan(load_task(asked.source), recipe, target)
    if asked.json:
        print(json.dumps(plan, indent=1, allow_nan=False))
    else:
        table.show(plan, asked.out)


@ordinary_modes()
def _plan(task: Task, recipe: Recipe | None, target: Target) -> dict[str, Any]:
    began = perf_counter()
    with shown() as progress:
        driver, evaluate = begin(in_float32(task), target, Store(), progress, recipe, judges=True)
        recipe = recipe or target.prefers.recipe(driver.view(), driver.calibrate is not None)
        judged = evaluate or driver.calibrate
        plan, estimate = estimated(
            recipe, driver, compared=judged.samples if judged else 1, begun_s=perf_counter() - began
        )
    return {
        "recipe": to_plain(list(recipe.steps)),
        "target": target.name,
        "layers": _rows(driver),
        "removed": driver.told.facts["removed"],
        "undecided": plan.undecided,
        "skipped": [{"path": path, "reason": reason} for path, reason in sorted(driver.told.skipped.items())],
        "estimate": {**dataclasses.asdict(estimate), "metric": "not included" if task.metric else "none"},
    }


def _rows(driver: Driver) -> list[dict[str, Any]]:
    """The report's rows about layers, without what only a written file tells."""
    told = ("path", "op", "shape", "encoding", "activations", "nominal_bits", "runs_as", "note")
    return [{key: row[key] for key in told} for row in layers(driver, {}, None)]
