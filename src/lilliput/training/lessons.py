"""What a task gives to train with, and training by it, remembered like every other answer."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError, reason
from lilliput.feeding import Takes, batched, read_batches
from lilliput.feeding.chance import random_state_kept, seed_all
from lilliput.file.lil import save
from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.carrier.identity import identity, model_digest
from lilliput.model.edits.edits import Train
from lilliput.model.surgery.coupling import Group, coupling
from lilliput.plain import digest, short_repr
from lilliput.progress import Progress
from lilliput.task import Task, checked_example
from lilliput.techniques.finetune import Finetune
from lilliput.techniques.run import Answer, Rough, Run
from lilliput.training import rehearsal
from lilliput.training.data import Feed, check_apart
from lilliput.training.gradients import without_gradients
from lilliput.training.loop import Derailed, Loss, Material, train
from lilliput.training.memory import enough_memory
from lilliput.training.teachers import Live, save_answers

LAST_GOOD = "last-good.lil"


@dataclass(frozen=True)
class Lessons:
    """Batches to train with, a loss, batches to stop by, and teachers."""

    train: Iterable[Any]
    loss: Loss | None
    validate: Iterable[Any] | None
    teachers: Sequence[nn.Module]
    judged: Iterable[Any] | None = None  # inputs that the result is judged by
    coupled: Callable[[nn.Module], Sequence[Group]] = lambda model: ()  # what can only be removed together in it

    @classmethod
    def of(cls, task: Task, default: nn.Module | None = None) -> Lessons | None:
        """Those of a task; `default` teaches where the task names no teacher."""
        if task.train is None:
            return None
        named = [task.teacher] if isinstance(task.teacher, nn.Module) else list(task.teacher or ())
        teachers = named or ([] if default is None else [default])

        def coupled(model: nn.Module) -> Sequence[Group]:
            return coupling(model, checked_example(task)[0]).groups

        train = batched(task.train, task.collate, shuffle=True)
        validate = None if task.validate is None else batched(task.validate, task.collate)
        judged = None if task.evaluate is None else batched(task.evaluate, task.collate)
        return cls(train, task.loss, validate, teachers, judged, coupled)

    def backward(self, model: nn.Module, most: int) -> Iterator[None]:
        """After each of the first batches, in an order that is always the same, gradients of the loss of `model`.

        Raises InputError where there is no loss, it fails, or no weight can follow it.
        """
        if self.loss is None:
            raise InputError("there is no loss to take gradients of", where="loss", next="give loss=")
        with random_state_kept():
            seed_all(0, 0)
            for where, batch in islice(read_batches(self.train, "train"), most):
                try:
                    loss = self.loss(model, batch)
                except Exception as error:  # the user's own code
                    raise InputError("the loss failed", where=where, why=reason(error)) from error
                if not isinstance(loss, Tensor) or not loss.requires_grad:
                    raise without_gradients("the loss", model, where)
                loss.backward()
                yield

    def rehearse(self, run: Run, step: Finetune) -> float:
        """Try the training on one batch, without a step; the seconds that a batch takes.

        Raises InputError for what the training would fail by.
        """

        def compute() -> Answer:
            run.progress("trying the training", 0, 1)
            teachers = list(self.teachers)
            taken_s = rehearsal.rehearse(
                run.model, step, self.train, self.loss, self.validate, teachers, partial(self.coupled, run.model)
            )
            run.progress("trying the training", 1, 1)
            return Answer(taken_s)

        return float(run.ask(("rehearsal", step), compute, model=False, data=False, lasting=False).data)

    def teach(self, run: Run, step: Finetune) -> None:
        """Train the model of a run."""

        def ask(question: Sequence[Any], compute: Callable[[], Answer]) -> Answer:
            return run.ask(question, compute, data=False, rough=lambda: self._roughly(run, step))

        learnt = learn(run.model, step, self, ask, Kept(run.folder, run.digest), run.progress)
        run.tell("training", {"step": short_repr(step), "epochs": learnt.history})
        run.apply(Train(learnt.how), learnt.tensors)

    def _roughly(self, run: Run, step: Finetune) -> Rough:
        """Nothing learnt, and the seconds that it takes, if the batches tell how many they are."""
        batches = operator.length_hint(self.train)
        seconds = self.rehearse(run, step) * batches * step.epochs if batches else None
        return Rough(Answer([], run.model.state_dict()), seconds, "training")


@dataclass(frozen=True)
class Kept:
    """Where a training keeps what a killed one goes on with, and what that depends on beside the training itself."""

    folder: Path | None
    conditions: str  # digest of the model as it is first, and of what results may depend on


@dataclass(frozen=True)
class Learnt:
    """What identifies a training, the losses of each epoch, and the tensors it led to."""

    how: str
    history: list[dict[str, float]]
    tensors: Mapping[str, Tensor]


@random_state_kept()
def learn(
    model: nn.Module,
    step: Finetune,
    lessons: Lessons,
    ask: Callable[[Sequence[Any], Callable[[], Answer]], Answer],
    kept: Kept,
    progress: Progress,
) -> Learnt:
    """Train a copy of `model`; `ask` remembers.

    Where several processes train together, each stores the answer, in a file that is whole whoever writes it, and only
    then removes the checkpoint: killed at any moment, a training finds one of the two again.
    """
    feed = Feed.known(lessons.train, "train", step.seed, progress)
    validate = None if lessons.validate is None else Feed.known(lessons.validate, "validate", step.seed, progress)
    if validate is not None and lessons.judged is not None:
        check_apart(validate, lessons.judged)
    teachers = [model_digest(teacher) for teacher in lessons.teachers] if step.distill else []
    loss = identity(lessons.loss)
    still = [paths[0] for paths, held in tensors(model).items() if not held.requires_grad]
    code = [identity(type(plugin)) for plugin in step.plugins]
    question = ("train", step, feed.digest, validate.digest if validate else "", teachers, loss, still, *code)
    how = digest(*question, kept.conditions)
    place = None if kept.folder is None else kept.folder / f"{how}.training"

    def compute() -> Answer:
        with tempfile.TemporaryDirectory() as passing:
            folder = kept.folder or Path(passing)
            answers, key = None, digest(teachers, feed.digest, step.precision)
            if step.save_teacher and step.distill:
                answers = folder / f"{key}.teachers"
                _save_teachers(answers, key, step, lessons, feed, Takes.of(model.forward), progress)
            material = Material(
                *(feed, lessons.loss, validate, tuple(lessons.teachers)),
                answers=None if answers is None else (answers, key),
                coupled=partial(lessons.coupled, model),
            )
            work = duplicate(model)
            try:
                history = train(work, step, material, place=place, progress=progress)
            except Derailed as error:
                raise _saved(error, work, kept.folder) from error
        return Answer(history, work.state_dict())

    answer = ask(question, compute)
    if place is not None:
        place.unlink(missing_ok=True)
    return Learnt(how, answer.data, answer.tensors)


def _saved(error: Derailed, model: nn.Module, folder: Path | None) -> InputError:
    """The error that says where the model is as it was last well."""
    last = "the model as it was after the last epoch that went well"
    if folder is None:
        why = f"{last} is gone, for no folder was given to keep it in"
    else:
        save(folder / LAST_GOOD, model)
        why = f"{last} is in {folder / LAST_GOOD}"
    return InputError(error.what, where=error.where, why=why, next=error.next)


def _save_teachers(
    path: Path, key: str, step: Finetune, lessons: Lessons, feed: Feed, takes: Takes, progress: Progress
) -> None:
    """Ask the teachers for every sample of the training batches, unless that was done before."""
    if path.exists():
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(step.precision)
    with enough_memory(step, feed, lambda: feed.field), torch.autocast(device, kind, enabled=kind is not None):
        save_answers(path, key, Live(lessons.teachers, step.distill), _calls(lessons.loss, feed, takes, progress))


def _calls(
    loss: Loss | None, feed: Feed, takes: Takes, progress: Progress
) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """The arguments that the loss calls the model with, for every batch of an epoch."""
    for i, batch in enumerate(feed.epoch(0)):
        progress("asking the teachers", i, feed.batches)
        if loss is None:
            inputs, _ = takes.inputs(batch, f"{feed.field}[{i}]")
            yield inputs.args, inputs.kwargs
            continue
        try:
            loss(_Called(), batch)
        except _Arguments as found:
            yield found.given, found.named
    progress("asking the teachers", feed.batches, feed.batches)


class _Arguments(Exception):
    """What a model was called with."""

    def __init__(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        super().__init__()
        self.given, self.named = given, named


class _Called(nn.Module):
    """Stands for the model: it only tells what it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise _Arguments(args, kwargs)
