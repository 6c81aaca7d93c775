"""The public verbs."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lilliput import external
from lilliput.blame.blame import full
from lilliput.blame.diagnosis import Diagnosis
from lilliput.delivery import Result, finished, graph_of
from lilliput.disk import clear_parts
from lilliput.engine.begin import begin, follow
from lilliput.engine.evidence import Built, build
from lilliput.engine.halves import came_in, given_back, in_float32, untrainable
from lilliput.engine.paying import paying
from lilliput.engine.resume import RECORD, check_same, conditions
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.entropy import Coder
from lilliput.errors import InputError
from lilliput.feeding import fingerprint
from lilliput.feeding.pipeline import Pipeline
from lilliput.file.lil import check_readable
from lilliput.file.lil import save as write_module
from lilliput.measure import environment
from lilliput.model.carrier.identity import model_digest
from lilliput.model.edits.copies import private_copy
from lilliput.model.views.inputs import Dynamic
from lilliput.modes import ordinary_modes
from lilliput.plain import digest
from lilliput.pretrained import KINDS
from lilliput.progress import Progress, silent
from lilliput.recipe import Recipe
from lilliput.targets import Target
from lilliput.targets import target as target_called
from lilliput.task import Task, of_pipeline, read_assets
from lilliput.techniques.finetune import Finetune
from lilliput.techniques.run import Answer
from lilliput.training.lessons import Kept, Lessons, learn


@ordinary_modes()
def compress(
    model: Task | nn.Module | str | Path,
    recipe: Recipe | None = None,
    *,
    task: str | None = None,
    data: Any = None,
    target: str | Target = "onnxruntime",
    calibrate: Any = None,
    baseline: nn.Module | None = None,
    folder: str | Path | None = None,
    measure: bool = True,
    progress: Progress = silent,
) -> Result:
    """Make a model smaller and faster on a target, and measure what came of it.

    A network of transformers, or its folder, comes with the name of its `task` and with `data`: see
    `Task.from_pretrained`. What else a model needs to be calibrated and judged stands in a `Task`.

    The model is copied and never changed. Without a recipe, the target's own default is taken. The result is compared
    with `baseline`, or else with the model as it is given: give the network as it was at first where the model is
    itself the result of another run. With a `folder`, all results are written there, and a killed run is resumed by
    calling again. Without `measure`, nothing is timed and no memory measured; what is built is compared all the same.
    A model in float16 or bfloat16 is computed, built and timed in float32; it and its `.lil` file come back as it came.

    Raises LilliputError for bad input, a recipe that cannot work, a model that cannot be captured or exported, and
    when nothing was changed.

    >>> import torch
    >>> from lilliput.targets import OnnxRuntime
    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> small = compress(net, calibrate=[torch.randn(4, 64)], target=OnnxRuntime(seconds=2))
    >>> small.model(torch.randn(1, 64)).shape
    torch.Size([1, 8])
    """
    given = _checked(_named(model, task, data), recipe, calibrate, "compress", baseline)
    for step in () if recipe is None else recipe.steps:
        check_readable(step, type(step).__name__)
    if folder is not None:
        return _compress(given, recipe, _measuring(target, measure), Path(folder), measure, progress)
    place = Path(tempfile.mkdtemp(prefix="lilliput-"))
    try:
        result = _compress(given, recipe, _measuring(target, measure), place, measure, progress)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    weakref.finalize(result, shutil.rmtree, place, ignore_errors=True)  # the folder lives as long as the result
    return result


@ordinary_modes()
def apply(
    task: Task | nn.Module,
    recipe: Recipe,
    *,
    target: str | Target = "onnxruntime",
    calibrate: Any = None,
    folder: str | Path | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """The model with a recipe followed, and no more: nothing is built, timed, judged or written.

    The model is copied and never changed. `target` says what it wants encoded. A model that cannot be captured whole
    may have its weights pruned or quantized alone. One in float16 or bfloat16 is computed in float32, as are its inputs
    in those, and comes back as it came. With a `folder`, a killed run goes on there when it is begun again.

    Raises LilliputError as `compress` does.

    >>> import torch
    >>> from lilliput import Int, Quantize
    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> small = apply(net, Recipe([Quantize(weights=Int(4))]), calibrate=[torch.randn(4, 64)])
    >>> small[0].weight.unique().numel() <= 64 * 15
    True
    """
    if recipe is None:
        raise InputError("nothing to apply", where="recipe", next="give lp.Recipe([…]); compress finds one by itself")
    task = _checked(task, recipe, calibrate, "apply")
    store = Store(None if folder is None else Path(folder))
    driver, _ = begin(in_float32(task), target_called(target), store, progress, recipe, builds=False)
    follow(recipe, driver)
    driver.settle()
    return given_back(driver.model, task.model)


@ordinary_modes()
def diagnose(
    task: Task | nn.Module,
    recipe: Recipe | None = None,
    *,
    target: str | Target = "onnxruntime",
    calibrate: Any = None,
    folder: str | Path | None = None,
    samples: int = 16,
    worst: int = 3,
    progress: Progress = silent,
) -> Diagnosis:
    """Say where the network that `compress` would give loses against the original: worst layer first, and why.

    Each layer is encoded alone in the module; the `worst` ones are also built for the target alone and left out, as is
    the whole network, with what its layers give shown. `samples` are taken from the evaluation batches, or else from
    those for calibration, where a calibration that is too tame cannot be seen. In the `folder` of a `compress`, what
    that has found is used, and a run that was cut off goes on.

    Raises LilliputError as `compress` does.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> net[0].weight.data[3] *= 100
    >>> from lilliput import Int, Quantize
    >>> found = diagnose(net, Recipe([Quantize(weights=Int(8, per="tensor"))]), calibrate=[torch.randn(4, 64)], worst=1)
    >>> found.rows[0].name, found.rows[0].causes[0].kind
    ('0.weight', 'one scale for all channels')
    """
    task = _checked(task, recipe, calibrate, "diagnose")
    for name, value, least in (("samples", samples, 1), ("worst", worst, 0)):
        if type(value) is not int or value < least:
            raise InputError(f"is {value!r}", where=name, next=f"give a whole number from {least} on")
    work = None if folder is None else Path(folder) / "work"
    task = in_float32(task)
    driver, evaluate = begin(task, target_called(target), Store(work), progress, recipe)
    recipe = recipe or driver.target.prefers.recipe(driver.view(), driver.calibrate is not None)
    follow(recipe, driver)
    name = task.name or type(task.model).__name__
    return full(driver, task.model, evaluate or driver.calibrate, name, samples=samples, worst=worst)


def _named(model: Task | nn.Module | str | Path, task: str | None, data: Any) -> Task | nn.Module:
    """What is to be compressed: as it is given, or made by the name of its task."""
    if task is not None:
        if isinstance(model, Task):
            raise InputError("the name of a task beside a task", next="give one of both")
        return Task.from_pretrained(model, task, data)
    if data is not None:
        raise InputError(
            "data without the name of a task", where="data", next='give task="…", or calibrate= and no data='
        )
    if isinstance(model, str | Path):
        raise InputError(
            "a folder, and not what it is for",
            where=str(model),
            next=f'give task="…" and data=…: {", ".join(KINDS)}',
        )
    return model


def _checked(
    task: Task | nn.Module,
    recipe: Recipe | None,
    calibrate: Any,
    verb: str,
    baseline: nn.Module | None = None,
) -> Task:
    if isinstance(task, nn.Module | Pipeline):
        task = Task(task, calibrate=calibrate, baseline=baseline)
    elif not isinstance(task, Task):
        raise InputError(f"{verb} of a {type(task).__name__}", next="give a torch.nn.Module or a Task")
    elif calibrate is not None:
        raise InputError("calibration batches beside a task", next="give them to the task: Task(…, calibrate=…)")
    elif baseline is not None:
        raise InputError("a baseline beside a task", next="give it to the task: Task(…, baseline=…)")
    if not isinstance(recipe, Recipe | None):
        raise InputError(f"a recipe of type {type(recipe).__name__}", next="give lp.Recipe([…])")
    return of_pipeline(task)


@dataclass(frozen=True, eq=False)
class Trained:
    """A model after training, and the losses of each epoch."""

    model: nn.Module
    history: list[dict[str, float]]  # loss, and validation_loss where there are validation batches


@ordinary_modes()
def train(
    task: Task, step: Finetune | None = None, *, folder: str | Path | None = None, progress: Progress = silent
) -> Trained:
    """Train a copy of the task's model: one that was compressed, a student of `task.teacher`, or any other.

    The task gives `train` batches and a `loss`. With a `folder`, a killed run goes on there when it is begun again.
    Under `accelerate launch` or `torchrun`, every process calls this alike.

    >>> import torch
    >>> net, batches = nn.Linear(4, 2), [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(4)]
    >>> loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    >>> trained = train(Task(net, train=batches, loss=loss), Finetune(epochs=3, lr=0.1))
    >>> len(trained.history), trained.history[0]["loss"] > trained.history[-1]["loss"]
    (3, True)
    """
    if not isinstance(task, Task):
        raise InputError(f"train of a {type(task).__name__}", next="give lp.Task(model, train=…, loss=…)")
    task = of_pipeline(task)
    if not isinstance(task.model, nn.Module):
        raise InputError(f"the model is a {type(task.model).__name__}", next="give a torch.nn.Module")
    if not isinstance(step, Finetune | None):
        raise InputError(f"train by a {type(step).__name__}", next="give lp.Finetune(…)")
    if came_in(task.model):
        raise untrainable(task.model)
    model, lessons = private_copy(task.model), Lessons.of(task, task.model)
    if lessons is None:
        raise InputError("there is nothing to train with", where="train", next="give train= and loss=")
    kept = Kept(
        None if folder is None else Path(folder),
        digest(digest(environment(torch.get_num_threads())), model_digest(model)),
    )
    store = Store(kept.folder)

    def ask(question: Sequence[Any], compute: Callable[[], Answer]) -> Answer:
        return store.answer((*question, kept.conditions), compute)

    done = learn(model, step or Finetune(), lessons, ask, kept, progress)
    model.load_state_dict(dict(done.tensors))
    return Trained(model, done.history)


def _measuring(target: str | Target, measure: bool) -> Target:
    """The target that is meant; without `measure`, one that times nothing."""
    if not isinstance(measure, bool):
        raise InputError(f"is {measure!r}", where="measure", next="give True or False")
    found = target_called(target)
    return found if measure else replace(found, seconds=0)


def _compress(
    task: Task, recipe: Recipe | None, target: Target, place: Path, measure: bool, progress: Progress
) -> Result:
    work, came = place / "work", task
    task = in_float32(task)
    clear_parts(place, work)
    assets = read_assets(task.assets)
    driver, evaluate = begin(task, target, Store(work), progress, recipe, judges=True)
    driver.measures = measure
    given, recipe = recipe, recipe or target.prefers.recipe(driver.view(), driver.calibrate is not None)
    check_same(
        work / RECORD,
        {
            "recipe": digest(list(recipe.steps)),
            "model": driver.state.base,
            "baseline": "" if task.baseline is None else model_digest(task.baseline),
            "calibration data": driver.calibrate.digest if driver.calibrate else "",
            "evaluation data": evaluate.digest if evaluate else "",
            "example": "" if task.example is None else fingerprint(driver.example),
            "dynamic axes": "" if task.dynamic is None else str(driver.dynamic),
            "assets": digest({name: hashlib.sha256(data).hexdigest() for name, data in assets.items()}),
            "environment": conditions(driver.target),
        },
    )
    follow(recipe, driver)
    if given is None:
        driver, recipe = paying(task.model, driver, recipe, work)
    return finished(task, came, driver, evaluate, recipe, place, assets)


@ordinary_modes()
def save(
    path: str | Path,
    model: nn.Module,
    *,
    coder: Coder = "dense",
    example: Any = None,
    dynamic: Dynamic | None = None,
    target: str | Target = "onnxruntime",
    assets: Mapping[str, str | Path | bytes] | None = None,
    base: str | Path | None = None,
) -> dict[str, int]:
    """Write a module, compressed or not, as a `.lil` file; returns the bytes of each tensor, and under "" of the rest.

    With an `example` of its inputs the graph that `target` runs travels inside, and `lilliput.open` needs no source.
    With a `base`, the file of a network of the same tensors, only what differs from there is written: whoever reads the
    file needs both.

    Raises EncodingError for a model that is being trained, FormatError for what the format cannot hold, CaptureError
    and ExportError where there is an example and no graph can be made of it.

    >>> import tempfile, lilliput
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sizes = save(f"{folder}/net.lil", nn.Linear(4, 2), example=torch.zeros(1, 4))
    ...     lilliput.open(f"{folder}/net.lil")(torch.zeros(1, 4)).shape
    torch.Size([1, 2])
    """
    held = read_assets(assets)
    if example is None:
        return write_module(path, model, coder=coder, assets=held, base=base)
    with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
        driver, built = _built(model, example, dynamic, target, Path(folder))
        return write_module(path, model, coder=coder, graph=graph_of(driver, built), assets=held, base=base)


@ordinary_modes()
def export(
    path: str | Path,
    model: nn.Module,
    example: Any,
    *,
    dynamic: Dynamic | None = None,
    target: str | Target = "onnxruntime",
) -> Path:
    """Write a module, compressed or not, as the file that `target` runs; opened and compared with the module.

    One in float16 or bfloat16 is built in float32.

    Raises CaptureError and ExportError for what cannot be captured whole or computes something else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(f"{folder}/net.onnx", nn.Linear(4, 2), torch.zeros(1, 4)).name
    'net.onnx'
    """
    with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
        return external.copied(_built(model, example, dynamic, target, Path(folder))[1].path, Path(path))


def _built(
    model: nn.Module, example: Any, dynamic: Dynamic | None, target: str | Target, folder: Path
) -> tuple[Driver, Built]:
    task = in_float32(Task(model, example=example, dynamic=dynamic))
    driver, _ = begin(task, target_called(target), Store(None), silent)
    built = build(driver, driver.model, driver.state.digest, folder / f"net.{driver.target.writes.format}")
    for place, kind in built.left_out.items():
        warnings.warn(f"output {place}: left out of the graph, for a {kind} is no tensor", stacklevel=3)
    return driver, built
