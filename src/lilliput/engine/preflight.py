"""What is tried before any work, on one batch: that what the user gives can do what it will be asked for in the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic, perf_counter
from typing import Any

import torch
from torch import Tensor

from lilliput.engine.evidence import asked_scores, check_scores
from lilliput.engine.run import Driver
from lilliput.errors import InputError, RecipeError, raise_own, reason
from lilliput.feeding import ask
from lilliput.model.carrier.carrier import tensor_held
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.edits.copies import as_it_stands
from lilliput.model.views.flat import flat
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.outputs import flatten_outputs
from lilliput.recipe import Recipe
from lilliput.targets import Target
from lilliput.task import Task

_REAL_S = 2.0  # of answers that are computed for a metric; then those are given again that inputs of a shape had
_GIVEN_UP_S = 10.0  # after which a metric that is only given answers again is believed
_MEND = "take what converts to other floats out of the model's code (.half(), .to(dtype), autocast)"
_FIELDS = {  # of a task, which steps may need
    "calibrate": "calibration batches",
    "train": "batches to train with",
    "loss": "something to train by",
    "validate": "validation batches",
}
_NO_ARRAYS = {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}  # floats in which no runtime is given inputs


def check_given(task: Task, recipe: Recipe | None, target: Target) -> None:
    """Refuse what is missing, of another kind, or not installed, before anything is read or run."""
    target.check()
    _check_timed(recipe, target)
    for name in ("metric", "loss"):
        given = getattr(task, name)
        if given is not None and not callable(given):
            raise InputError(f"is a {type(given).__name__}", where=name, next="give a function")
    for i, step in enumerate(() if recipe is None else recipe.steps):
        for name, remedy in step.needs.items():
            if getattr(task, name) is None:
                raise InputError(f"{type(step).__name__} needs {_FIELDS[name]}", where=f"step {i + 1}", next=remedy)


def try_out(driver: Driver, recipe: Recipe | None, metric: Callable[[Any], Any] | None) -> None:
    """Refuse a metric that does not score, and a training that fails on its first batch."""
    if metric is not None:
        driver.progress("trying the metric", 0, 1)
        check_metric(driver, metric)
        driver.progress("trying the metric", 1, 1)
    for step in () if recipe is None else recipe.steps:
        step.rehearse(driver)


def _check_timed(recipe: Recipe | None, target: Target) -> None:
    """Refuse a recipe that goes by timing for a target that is not to time, or has nothing that runs."""
    runs = target.runs is not None
    told = f"has {target.untimed}" if runs else f"is {target.name}, which is {target.untimed}"
    for i, step in enumerate(recipe.steps if recipe is not None and target.untimed else ()):
        if step.times:
            way_out = "give the target seconds" if runs else "take a target that runs here"
            raise RecipeError(
                f"step {i + 1}, {type(step).__name__}, has a budget of latency, and the target {told}",
                why="such a budget is measured on the target",
                next=f"{way_out}, or give the step macs= or parameters= in place of latency=",
            )


# metrics


def check_metric(driver: Driver, metric: Callable[[Any], Any]) -> None:
    """Refuse a metric that fails, or does not give one finite score a sample.

    It is called as in the end, with what answers as the built network will. Whatever takes long is answered again with
    what inputs of the same shapes were answered before. So its form is known soon; whatever else is then found amiss
    is only believed when it is found once more with answers that are all computed.
    """
    answers = _Answers(driver, _REAL_S)
    try:
        scores = asked_scores(metric, answers)
    except _GivenUp:
        return
    except InputError:
        if not answers.repeated:
            raise
        scores = asked_scores(metric, _Answers(driver, math.inf))
    if answers.repeated and scores.dim() == 1 and not (len(scores) and bool(scores.isfinite().all())):
        scores = asked_scores(metric, _Answers(driver, math.inf))
    check_scores(metric, scores)


class _GivenUp(BaseException):
    """Ends a metric's call; no exception of the kind that its own code catches."""


class _Answers:
    """Called and answering as what will be built; computes for `real_s` seconds, then repeats where shapes repeat."""

    def __init__(self, driver: Driver, real_s: float) -> None:
        self._model, self._real_s = as_it_stands(driver.model), real_s  # which may keep what it is called with
        with torch.no_grad():
            answered = driver.example.call(self._model)
        self._signature = Signature.of(driver.example, answered, self._model.forward)
        self._known: dict[Any, list[Tensor]] = {}
        self._taken_s = 0.0
        self._repeated_from: float | None = None

    @property
    def repeated(self) -> bool:
        """Whether an answer was another call's."""
        return self._repeated_from is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = Inputs.given(args, kwargs)
        shapes = tuple((x.shape, x.dtype) for x in self._signature.arguments(given))
        if shapes in self._known and self._taken_s > self._real_s:
            return self._again(shapes)
        began = perf_counter()
        with torch.no_grad(), flat(self._model):
            found = list(ask(self._model, given, "the metric's data"))
        self._taken_s += perf_counter() - began
        self._known[shapes] = found
        return self._signature.assemble([x.clone() for x in found])

    def _again(self, shapes: Any) -> Any:
        now = monotonic()
        self._repeated_from = self._repeated_from or now
        if now - self._repeated_from > _GIVEN_UP_S:
            raise _GivenUp
        return self._signature.assemble([x.clone() for x in self._known[shapes]])


# precision


@contextmanager
def other_floats_told(driver: Driver, task: Task) -> Iterator[None]:
    """Inside, a model that fails is told to be one of other floats than float32, or to be given such, where it is."""
    try:
        yield
    except InputError as error:
        kinds = _floats(driver.model.state_dict().values()) | _floats(driver.example.tensors().values())
        if not kinds - {torch.float32}:
            raise _converts(error) from error
        raise _other_floats(driver, task, error.where, kinds - {torch.float32}, error.why or error.what) from error


def _converts(error: InputError) -> InputError:
    """The error, with what to do about code that converts what it is given to another float than its weights."""
    if not any(kind in error.why for kind in ("Half", "BFloat16", "Double")):
        return error
    return InputError(error.what, where=error.where, why=error.why, next=_MEND)


def check_precision(driver: Driver, task: Task) -> None:
    """Refuse weights in other floats than those that are fitted, corrected and compared, and that all runtimes take."""
    for path in driver.view().weights:
        held = tensor_held(driver.model, path)
        if held is not None and held.dtype.is_floating_point and held.dtype != torch.float32:
            raise _other_floats(
                driver, task, path, {held.dtype}, "weights are fitted, and results compared, in float32"
            )
    for kind in _floats(driver.example.tensors().values()) & _NO_ARRAYS:
        raise _other_floats(driver, task, "", {kind}, "no runtime is given such inputs")


def _other_floats(driver: Driver, task: Task, path: str, kinds: set[torch.dtype], why: str) -> InputError:
    """The error about them, with a remedy that was tried."""
    told = " and ".join(sorted(map(str, kinds)))
    inputs = _floats(driver.example.tensors().values()) - {torch.float32}
    fields = [f"{name}=" for name in ("example", "calibrate", "evaluate") if getattr(task, name) is not None]
    model = _floats(driver.model.state_dict().values()) - {torch.float32}
    what = f"the model computes in {told}" if model else f"the inputs are {told}, and the model is float32"
    both = ["the model as model.float() makes it"] if model else []
    both += [f"inputs converted by x.float() in {', '.join(fields)}"] if inputs else []
    remedy = f"give {' and '.join(both)}" + (": the result is as small" if model else "")
    if fails := _as_float32(driver):
        why = f"{why}; as float32 it fails: {fails}"
        remedy = f"{_MEND}, and {remedy}"
    return InputError(what, where=path or fields[0].removesuffix("="), why=why, next=remedy)


def _as_float32(driver: Driver) -> str:
    """How the model fails as float32 on the example as float32; empty where it does not."""
    try:
        with torch.no_grad():
            converted = driver.example.map(lambda key, x: x.float() if x.is_floating_point() else x)
            out = flatten_outputs(converted.call(duplicate(driver.model).float()))
    except Exception as error:  # the user's own code
        raise_own(error)
        return reason(error)
    return "" if all(bool(x.isfinite().all()) for x in out) else "it answers with NaN or infinity"


def _floats(held: Iterable[Tensor]) -> set[torch.dtype]:
    return {x.dtype for x in held if x.is_floating_point()}
