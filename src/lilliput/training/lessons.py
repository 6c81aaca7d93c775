"""What a task gives to train with, and training by it, remembered like every other answer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.engine.identity import identity, model_digest
from lilliput.engine.store import Answer, Store
from lilliput.errors import InputError
from lilliput.file.lil import save
from lilliput.model.carrier import tensors
from lilliput.model.duplicate import duplicate
from lilliput.model.inputs import Inputs
from lilliput.plain import digest
from lilliput.progress import Progress
from lilliput.task import Task
from lilliput.techniques.finetune import Finetune
from lilliput.training import rehearsal
from lilliput.training.checkpoint import random_state_kept
from lilliput.training.data import Feed, check_apart
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

    @classmethod
    def of(cls, task: Task, default: nn.Module | None = None) -> Lessons | None:
        """Those of a task; `default` teaches where the task names no teacher."""
        if task.train is None:
            return None
        named = [task.teacher] if isinstance(task.teacher, nn.Module) else list(task.teacher or ())
        teachers = named or ([] if default is None else [default])
        return cls(task.train, task.loss, task.validate, teachers, task.evaluate)


def rehearse(model: nn.Module, step: Finetune, lessons: Lessons) -> float:
    """Try the training on one batch, without a step; the seconds that a batch takes.

    Raises InputError for what the training would fail by.
    """
    teachers = list(lessons.teachers)
    return rehearsal.rehearse(model, step, lessons.train, lessons.loss, lessons.validate, teachers)


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
    lessons: Lessons | None,
    store: Store,
    conditions: Sequence[Any],
    progress: Progress,
) -> Learnt:
    """Train a copy of `model`.

    Where several processes train together, each stores the answer, in a file that is whole whoever writes it, and only
    then removes the checkpoint: killed at any moment, a training finds one of the two again.
    """
    if lessons is None:
        raise InputError("this recipe trains, and the task has nothing to train with", next="give train= and loss=")
    feed = Feed.known(lessons.train, "train", step.seed, progress)
    validate = None if lessons.validate is None else Feed.known(lessons.validate, "validate", step.seed, progress)
    if validate is not None and lessons.judged is not None:
        check_apart(validate, lessons.judged)
    teachers = [model_digest(teacher) for teacher in lessons.teachers] if step.distill else []
    loss = identity(lessons.loss)
    still = [paths[0] for paths, held in tensors(model).items() if not held.requires_grad]
    question = ("train", *conditions, step, feed.digest, validate.digest if validate else "", teachers, loss, still)
    how = digest(*question)
    place = None if store.folder is None else store.folder / f"{how}.training"

    def compute() -> Answer:
        with tempfile.TemporaryDirectory() as passing:
            folder = store.folder or Path(passing)
            answers, key = None, digest(teachers, feed.digest, step.precision)
            if step.save_teacher and step.distill:
                answers = folder / f"{key}.teachers"
                _save_teachers(answers, key, step, lessons, feed, progress)
            material = Material(feed, lessons.loss, validate, tuple(lessons.teachers), answers, key)
            work = duplicate(model)
            try:
                history = train(work, step, material, place=place, progress=progress)
            except Derailed as error:
                raise _kept(error, work, store.folder) from error
        return Answer(history, work.state_dict())

    answer = store.answer(question, compute)
    if place is not None:
        place.unlink(missing_ok=True)
    return Learnt(how, answer.data, answer.tensors)


def _kept(error: Derailed, model: nn.Module, folder: Path | None) -> InputError:
    """The error that says where the model is as it was last well."""
    last = "the model as it was after the last epoch that went well"
    if folder is None:
        why = f"{last} is gone, for no folder was given to keep it in"
    else:
        save(folder / LAST_GOOD, model)
        why = f"{last} is in {folder / LAST_GOOD}"
    return InputError(error.what, where=error.where, why=why, next=error.next)


def _save_teachers(path: Path, key: str, step: Finetune, lessons: Lessons, feed: Feed, progress: Progress) -> None:
    """Ask the teachers for every sample of the training batches, unless that was done before."""
    if path.exists():
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(step.precision)
    with enough_memory(step, feed, lambda: feed.field), torch.autocast(device, kind, enabled=kind is not None):
        save_answers(path, key, Live(lessons.teachers, step.distill), _calls(lessons.loss, feed, progress))


def _calls(loss: Loss | None, feed: Feed, progress: Progress) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """The arguments that the loss calls the model with, for every batch of an epoch."""
    for i, batch in enumerate(feed.epoch(0)):
        progress("asking the teachers", i, feed.batches)
        if loss is None:
            inputs = Inputs.of(batch)
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
