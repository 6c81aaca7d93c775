"""The public verbs."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lilliput.engine.evidence import build, closeness, judge, latency
from lilliput.engine.resume import check_same
from lilliput.engine.run import Driver, Progress, silent
from lilliput.engine.store import Store
from lilliput.errors import CaptureError, InputError
from lilliput.file.container import whole_file
from lilliput.file.lil import save
from lilliput.measure import environment
from lilliput.model.edits import EncodeTensor, State
from lilliput.plain import digest, to_plain
from lilliput.recipe import Recipe
from lilliput.report import data as report_data
from lilliput.report.page import page
from lilliput.targets import Target, target as target_called
from lilliput.task import Batches, Task, checked_example


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed model with the evidence for it."""

    model: nn.Module  # of the user's own class; train it on, compress it again
    state: State
    data: dict[str, Any]  # the report
    folder: Path  # holds net.lil, net.<target's format>, report.json and report.html
    _keep: Any = field(default=None, repr=False)  # a temporary folder lives as long as the result

    def save(self, path: str | Path) -> Path:
        """Write the `.lil` file, to store and send."""
        return _copy(self.folder / "net.lil", Path(path))

    def export(self, path: str | Path) -> Path:
        """Write the file that the target runs."""
        built = next(self.folder.glob("net.[!l]*"))
        return _copy(built, Path(path))

    def report(self, path: str | Path) -> Path:
        """Write the report: a page (`.html`) or its data (`.json`)."""
        return _copy(self.folder / f"report{_report_ending(Path(path))}", Path(path))

    def __str__(self) -> str:
        return str(self.data["sentence"])


def compress(
    task: Task | nn.Module,
    recipe: Recipe | None = None,
    *,
    target: str | Target = "onnxruntime",
    calibrate: Iterable[Any] | None = None,
    folder: str | Path | None = None,
    progress: Progress = silent,
) -> Result:
    """Make a model smaller and faster on a target, and measure what came of it.

    The model is copied and never changed. Without a recipe, the target's own default is taken. With a `folder`, all
    results are written there, and a killed run is resumed by calling again.

    Raises LilliputError: bad input, a recipe that cannot work, a model that cannot be captured or exported, nothing changed.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> small = compress(net, calibrate=[torch.randn(4, 64)])  # doctest: +SKIP
    """
    if isinstance(task, nn.Module):
        task = Task(task, calibrate=calibrate)
    elif not isinstance(task, Task):
        raise InputError(f"compress of a {type(task).__name__}", next="give a torch.nn.Module or a Task")
    elif calibrate is not None:
        raise InputError("calibration batches beside a task", next="give them to the task: Task(…, calibrate=…)")
    temporary = None if folder else tempfile.TemporaryDirectory(prefix="lilliput-")
    place = Path(folder) if folder else Path(temporary.name)  # type: ignore[union-attr]
    return _compress(task, recipe, target_called(target), place, progress, temporary)


def _compress(task: Task, recipe: Recipe | None, target: Target, place: Path, progress: Progress, keep: Any) -> Result:
    work = place / "work"
    driver, evaluate = begin(task, target, work, progress)
    recipe = recipe or target.recipe(driver.view(), driver.calibrate is not None)
    check_same(
        work / "run.json",
        {
            "recipe": digest(list(recipe.steps)),
            "model": driver.state.base,
            "calibration data": driver.calibrate.digest if driver.calibrate else "",
            "evaluation data": evaluate.digest if evaluate else "",
            "environment": driver.environment,
        },
    )
    for step in recipe.steps:
        step.apply(driver)
    if not any(isinstance(step.edit, EncodeTensor) for step in driver.state.steps):
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(driver.skipped.items())[:5])
        raise InputError("the recipe changed no layer", why=reasons, next="see where= and the layers of the model")
    return _prove(task, driver, evaluate, recipe, place, keep)


def begin(task: Task, target: Target, work: Path, progress: Progress) -> tuple[Driver, Batches | None]:
    """Check everything that the user gives, and take a private copy of the model."""
    example, dynamic = checked_example(task)
    checked = {
        name: None if source is None else Batches.checked(source, name, example, dynamic)
        for name, source in (("calibrate", task.calibrate), ("evaluate", task.evaluate))
    }
    conditions = environment(target.threads or torch.get_num_threads())
    driver = Driver.start(
        task.model,
        example=example,
        dynamic=dynamic,
        calibrate=checked["calibrate"],
        target=target,
        store=Store(work),
        environment=digest(conditions, repr(target)),
        progress=progress,
    )
    rung = driver.view().rung
    if rung != "whole":
        problems = driver.view().problems
        first = next(iter(problems.items()))
        raise CaptureError(
            f"the model could be captured only by {rung}, so {target.name} cannot run it",
            where=first[0] or type(task.model).__name__,
            why=first[1],
            next="rewrite what fails, or compress the submodule that holds the weights",
        )
    return driver, checked["evaluate"]


def _prove(task: Task, driver: Driver, evaluate: Batches | None, recipe: Recipe, place: Path, keep: Any) -> Result:
    """Build before and after for the target, measure both, write everything."""
    work, ending = place / "work", driver.target.format
    original = Driver.start(task.model, **_shared(driver))
    first = build(original, original.model, original.state.digest, work / f"original.{ending}")
    last = build(driver, driver.model, driver.state.digest, place / f"net.{ending}")
    save(work / "original.lil", original.model, original.state)
    provenance = {"recipe": to_plain(list(recipe.steps)), "base": driver.state.base, "state": driver.state.digest}
    stored = save(place / "net.lil", driver.model, driver.state, provenance)
    judged_on = "evaluation batches" if evaluate else "calibration batches" if driver.calibrate else "the example"
    near = closeness(driver, first, last, evaluate or driver.calibrate or [driver.example], task.clusters if evaluate else None)
    judged = judge(driver, task.metric, first, last) if task.metric else None
    taken = latency(driver, first, last)
    runs = {driver.target.name: place / f"net.{ending}", "lilliput.load": place / "net.lil"}
    runs_before = {driver.target.name: work / f"original.{ending}", "lilliput.load": work / "original.lil"}
    data = report_data.assemble(
        name=task.name or type(task.model).__name__,
        driver=driver,
        recipe=recipe,
        before=report_data.side(original.model, driver, runs_before, judged.before if judged else None, taken.ms("before")),
        after=report_data.side(driver.model, driver, runs, judged.after if judged else None, taken.ms("after")),
        builds=(first, last),
        near=near,
        judged_on=judged_on,
        judged=judged,
        taken=taken,
        rows=report_data.layers(original.model, driver, stored),
        environment=environment(driver.target.threads or torch.get_num_threads()),
    )
    for name, text in (("report.json", json.dumps(data, indent=1, allow_nan=False)), ("report.html", page(data))):
        with whole_file(place / name) as file:
            file.write(text.encode())
    return Result(driver.model, driver.state, data, place, keep)


def _shared(driver: Driver) -> dict[str, Any]:
    names = ("example", "dynamic", "calibrate", "target", "store", "environment", "progress")
    return {name: getattr(driver, name) for name in names}


def _copy(source: Path, path: Path) -> Path:
    with whole_file(path) as file, open(source, "rb") as read:
        shutil.copyfileobj(read, file)
    return path


def _report_ending(path: Path) -> str:
    if path.suffix not in (".html", ".json"):
        raise InputError(f"a report as {path.suffix or 'a file without an ending'}", where=str(path), next="write .html or .json")
    return path.suffix



