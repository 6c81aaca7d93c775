"""What every run begins with: what the user gives is checked, the model is copied, the recipe followed."""

from __future__ import annotations

import torch
from torch import nn

from lilliput.engine.lessons import Lessons
from lilliput.engine.preflight import check_given, check_precision, other_floats_told, try_out
from lilliput.engine.resume import conditions
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import CaptureError, InputError
from lilliput.model.capture import Inputs
from lilliput.model.edits import EncodeTensor, Train
from lilliput.model.structure import KeepChildren, LeaveOut, Resize
from lilliput.model.values import value_encodings
from lilliput.outputs import flatten_outputs
from lilliput.plain import digest
from lilliput.progress import Progress
from lilliput.recipe import Recipe
from lilliput.targets import Target
from lilliput.task import Batches, Task, ask, check_clusters, checked_example


def begin(
    task: Task, target: Target, store: Store, progress: Progress, recipe: Recipe | None = None, *, judges: bool = False
) -> tuple[Driver, Batches | None]:
    """Check everything that the user gives, and take a private copy of the model.

    With a `recipe`, also what its steps need of the task; if the run `judges`, also the task's metric.
    """
    check_given(task, recipe, target)
    example, dynamic = checked_example(task)
    checked = {
        name: None if source is None else Batches.checked(source, name, example, dynamic)
        for name, source in (("calibrate", task.calibrate), ("evaluate", task.evaluate))
    }
    check_clusters(task.clusters, checked["evaluate"])
    driver = Driver.start(
        task.model,
        example=example,
        dynamic=dynamic,
        calibrate=checked["calibrate"],
        target=target,
        store=store,
        environment=digest(conditions(target)),
        progress=progress,
        lessons=Lessons.of(task, task.model),
    )
    with other_floats_told(driver, task):
        if task.example is not None or driver.calibrate is None:
            _check_runs(driver.model, example, "example")
        if driver.calibrate is not None:
            _check_runs(driver.model, next(iter(driver.calibrate)), "calibrate[0]")
    try_out(driver, recipe, task.metric if judges else None)
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
    check_precision(driver, task)
    return driver, checked["evaluate"]


_CHANGES = EncodeTensor | KeepChildren | LeaveOut | Resize | Train  # edits that a recipe is for


def follow(recipe: Recipe, driver: Driver) -> None:
    """Apply the steps in order; a recipe that changes no layer is an error."""
    check_followed(recipe, driver)
    for step in recipe.steps:
        step.apply(driver)
    check_changed(driver)


def check_followed(recipe: Recipe, driver: Driver) -> None:
    """Refuse a recipe that the model leaves nothing to do for, or whose calibration an earlier one cuts."""
    _check_ranges(recipe, driver)
    if not driver.view().weights:
        raise InputError(
            "the model has no convolution, linear or recurrent layer, or embedding", next="compress one that has"
        )


def check_changed(driver: Driver) -> None:
    """Refuse a recipe that has changed no layer."""
    if not any(isinstance(step.edit, _CHANGES) for step in driver.state.steps):
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(driver.skipped.items())[:5])
        raise InputError(
            "the recipe changed no layer",
            why=reasons,
            next="see where= and the layers of the model",
        )


def _check_ranges(recipe: Recipe, driver: Driver) -> None:
    """Refuse to calibrate what an earlier calibration cuts; other steps leave the ranges, which is told."""
    held = [name for name, encoder in value_encodings(driver.model).items() if encoder.encoding.calibrated]
    if held and any("values" in step.establishes for step in recipe.steps):
        raise InputError(
            "the activations of this model are quantized already",
            where=held[0],
            why="new batches would only show what the ranges found then leave of them",
            next="give the network as it was, and all steps in one recipe",
        )
    if any("ranges" in step.disturbs for step in recipe.steps):
        for name in held:
            driver.skip(name, "keeps the range that was found before this recipe")


def _check_runs(model: nn.Module, inputs: Inputs, where: str) -> None:
    """Refuse a model (in eval mode) that fails on `inputs`, or answers them with NaN or infinity."""
    with torch.no_grad():
        out = ask(model, inputs, where)
    if all(bool(torch.isfinite(x).all()) for x in flatten_outputs(out)):
        return
    damaged = _damaged(model)
    raise InputError(
        "the model answers with NaN or infinity",
        where=damaged or where,
        why="this tensor of the model holds some" if damaged else "no tensor of the model holds any",
        next="repair the model" if damaged else "give inputs that it is made for",
    )


def _damaged(model: nn.Module) -> str:
    """The first parameter that is not finite, or buffer that holds NaN (infinity in a buffer may be a mask)."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return name
    return next((name for name, buffer in model.named_buffers() if bool(buffer.isnan().any())), "")
