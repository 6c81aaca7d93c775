"""What every run begins with: what the user gives is checked, the model is copied, the recipe followed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from lilliput.engine.answers import kinds
from lilliput.engine.carried import check_carried
from lilliput.engine.preflight import check_given, check_precision, other_floats_told, try_out
from lilliput.engine.repeatable import check_repeatable
from lilliput.engine.resume import conditions
from lilliput.engine.room import make_room
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import CaptureError, InputError
from lilliput.feeding import Batches, ask, check_like
from lilliput.model.edits.copies import check_apart
from lilliput.model.edits.division import Divide
from lilliput.model.edits.edits import EncodeTensor, Train
from lilliput.model.edits.structure import KeepChildren, LeaveOut, Resize
from lilliput.model.views.inputs import Inputs, changed_one_by_one, changed_together
from lilliput.model.views.signature import Signature
from lilliput.model.views.values import value_encodings
from lilliput.outputs import flatten_outputs
from lilliput.plain import digest
from lilliput.progress import Progress
from lilliput.recipe import Recipe
from lilliput.targets import Target
from lilliput.task import Task, check_clusters, checked_example, fed
from lilliput.techniques.technique import Technique
from lilliput.training.lessons import Lessons


def begin(
    task: Task,
    target: Target,
    store: Store,
    progress: Progress,
    recipe: Recipe | None = None,
    *,
    builds: bool = True,
    judges: bool = False,
) -> tuple[Driver, Batches | None]:
    """Check everything that the user gives, and take a private copy of the model.

    With a `recipe`, also what its steps need of the task; if the run `builds`, also that the model can be captured
    whole, where the target or the recipe wants that; if it `judges`, also the task's metric.
    """
    check_given(task, recipe, target)
    task = fed(task)
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
        evaluate=checked["evaluate"],
        target=target,
        store=store,
        environment=digest(conditions(target)),
        progress=progress,
        lessons=Lessons.of(task, task.model),
    )
    for batches in filter(None, checked.values()):
        for name, why in batches.told.items():
            driver.skip(name, why, lasting=True)
    check_apart(task.model, driver.model, example)
    named = dict(_named(driver.calibrate, 2))
    asked = {"example": example, **named} if task.example is not None or not named else named
    with other_floats_told(driver, task):
        for where, inputs in asked.items():
            _check_runs(driver.model, inputs, where)
    (where, inputs), *others = asked.items()
    varied = [(f"example, input {key!r} changed", one) for key, one in changed_one_by_one(example)]
    unlike = [*(one for _, one in others), *(one for _, one in changed_one_by_one(inputs)), changed_together(inputs)]
    driver.warm(check_repeatable(driver.model, driver.before, inputs, where, unlike))
    driver.probes = [*(one for one in named.items() if _taken(*one, example, dynamic)), *varied]
    if judges:
        kinds(task, driver)
    try_out(driver, recipe, task.metric if judges else None)
    if builds:
        _check_whole(driver, recipe)
    check_precision(driver, task)
    if task.baseline is not None:
        _check_baseline(task.baseline, driver)
    return driver, checked["evaluate"]


def _check_whole(driver: Driver, recipe: Recipe | None) -> None:
    """Refuse a model that can be captured in parts alone, where the target is to be given the whole, or where values
    that flow are to be encoded: what flows between the parts is not seen.
    """
    view = driver.view()
    if view.rung == "whole":
        return
    where, why = next(iter(view.problems.items()))
    where = where or type(driver.model).__name__
    if driver.target.writes.whole:
        raise CaptureError(
            f"the model could be captured only by {view.rung}, so {driver.target.name} cannot run it",
            where=where,
            why=why,
            next=(
                "name the axes that vary, dynamic={input: {axis: name}}, or {} where none does; in the model, "
                "x.shape[0] may vary where len(x) may not"
                if "Constraints violated" in why
                else 'rewrite what fails, compress the submodule that holds the weights, or give target="eager"'
            ),
        )
    if recipe is not None and any("values" in step.establishes for step in recipe.steps):
        raise CaptureError(
            "the model could be captured in parts alone, so no values that flow can be encoded",
            where=where,
            why=why,
            next="encode weights alone, with activations=None, or rewrite what fails",
        )


def _named(batches: Batches | None, most: int) -> Iterator[tuple[str, Inputs]]:
    """The first batches, with their names."""
    for i, inputs in enumerate(itertools.islice(batches or (), most)):
        yield f"calibrate[{i}]", inputs


def _taken(where: str, inputs: Inputs, like: Inputs, dynamic: Mapping[str | int, Mapping[int, str]]) -> bool:
    """Whether a graph captured with `like` takes these inputs: their lengths differ along open axes alone."""
    try:
        check_like(inputs, like, dynamic, where, first=False)
    except InputError:
        return False
    return True


def _check_baseline(baseline: nn.Module, driver: Driver) -> None:
    """Refuse what the result cannot be compared with: it must take what the model takes, and answer alike."""
    if not isinstance(baseline, nn.Module):
        raise InputError(f"is a {type(baseline).__name__}", where="baseline", next="give a torch.nn.Module")
    other = driver.afresh(baseline)
    with torch.no_grad():
        ours, theirs = (ask(net, driver.example, f"example, asked of the {name}") for net, name in _both(driver, other))
    shapes = [[(tuple(x.shape), x.dtype) for x in flatten_outputs(out)] for out in (ours, theirs)]
    if Signature.of(driver.example, ours) != Signature.of(driver.example, theirs) or shapes[0] != shapes[1]:
        raise InputError(
            "answers otherwise than the model",
            where="baseline",
            why=f"{_outputs(shapes[1])} where the model gives {_outputs(shapes[0])}",
            next="give the network that the model was made of, or leave baseline= out",
        )
    view = other.view()
    if driver.target.writes.whole and view.rung != "whole":
        where, why = next(iter(view.problems.items()))
        raise InputError(
            f"could be captured only by {view.rung}, so {driver.target.name} cannot run it",
            where=f"baseline {where}".strip(),
            why=why,
            next="rewrite what fails, or leave baseline= out",
        )


def _both(driver: Driver, other: Driver) -> tuple[tuple[nn.Module, str], tuple[nn.Module, str]]:
    return (driver.model, "model"), (other.model, "baseline")


def _outputs(shapes: list[tuple[tuple[int, ...], torch.dtype]]) -> str:
    return ", ".join(f"{list(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype in shapes) or "nothing"


_CHANGES = EncodeTensor | KeepChildren | LeaveOut | Divide | Resize | Train  # edits that a recipe is for


def follow(recipe: Recipe, driver: Driver) -> None:
    """Apply the steps in order; a recipe that changes no layer is an error."""
    check_followed(recipe, driver)
    for step in stepped(recipe, driver):
        step.apply(driver)
        make_room(driver.model)
    check_changed(driver)
    check_carried(driver)


def stepped(recipe: Recipe, driver: Driver) -> Iterator[Technique]:
    """The steps, one after the other; the network before its numbers are rounded stays where a later one needs it."""
    for step, later in zip(recipe.steps, (*recipe.steps[1:], None), strict=True):
        if not step.rounds:
            driver.kept_floats = None
        driver.keeps_floats = step.rounds and later is not None and later.rounds
        yield step
    driver.kept_floats = None


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
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(driver.told.skipped.items())[:5])
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
    if any("ranges" in step.disturbs or step.rounds for step in recipe.steps):
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
