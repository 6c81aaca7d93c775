"""The training loop, on accelerate: one process or many, interruptible, and the same again when it is run again."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError, LilliputError, reason
from lilliput.model.carrier import freeze, unfreeze
from lilliput.model.duplicate import apart_buffers, duplicate
from lilliput.model.inputs import Inputs
from lilliput.modes import eval_mode
from lilliput.nested import mapped
from lilliput.progress import Progress, silent
from lilliput.task import fingerprint
from lilliput.techniques.distill import Seen, check_taps
from lilliput.techniques.finetune import Finetune
from lilliput.training import checkpoint
from lilliput.training.data import Feed, check_classes, labels_of
from lilliput.training.gradients import to_learn_from, without_gradients
from lilliput.training.memory import enough_memory, starved
from lilliput.training.norms import averaging
from lilliput.training.optimizers import Average, factor, norm_of, optimizer
from lilliput.training.processes import accelerator_for, agree, mean, on_device, shard, share, together, whole_state
from lilliput.training.teachers import Live, Saved, Watcher

Loss = Callable[[Any, Any], Tensor]
SAVE_S = 60.0  # seconds between two checkpoints within an epoch


class Derailed(InputError):
    """A loss or a weight is no number; the model that was given is as it was after the last epoch that went well."""


@dataclass(frozen=True)
class Material:
    """What there is to train with."""

    train: Feed
    loss: Loss | None  # loss(model, batch), a mean over the samples; None: only teachers are followed
    validate: Feed | None = None
    teachers: Sequence[nn.Module] = ()
    answers: Path | None = None  # of the teachers, saved beforehand
    answers_key: str = ""


@dataclass
class Standing:
    """Where training stands: with the model and the optimizer all that a checkpoint holds."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    read: str = ""  # digest of them
    summed: float = 0.0  # of their losses
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None  # validation loss
    waited: int = 0  # epochs since it was reached


def train(
    model: nn.Module,
    step: Finetune,
    material: Material,
    *,
    place: Path | None = None,
    progress: Progress = silent,
) -> list[dict[str, float]]:
    """Train `model` in place; returns the mean loss, and the validation loss if there is one, of each epoch.

    Encoded tensors are trained through and frozen again. With a `place` for checkpoints, a training that was killed
    goes on there when it is begun again, and the last checkpoint stays: remove it when the result is safe. Under
    `accelerate launch` or `torchrun` every process calls this alike, and has the same model in the end.

    Raises InputError for a loss that is no number (the model is then as it was last well), for data that changes, and
    for want of memory.
    """
    with enough_memory(step, material.train, lambda: f"{material.train.field}[0]"):
        trainer = Trainer(model, step, material, place, progress)
    with enough_memory(step, material.train, trainer.where):
        trainer.run()
    return trainer.standing.history


class Trainer:
    """A model about to be trained; `run` does it."""

    def __init__(
        self,
        model: nn.Module,
        step: Finetune,
        material: Material,
        place: Path | None,
        progress: Progress = silent,
    ) -> None:
        self.original, self.step, self.material, self.progress = model, step, material, progress
        if material.loss is None and not step.distill:
            raise InputError("has nothing to train by", where="task", next="give loss=, or distill= in Finetune")
        if material.validate is not None and step.patience is not None:
            check_classes(material.train, material.validate)
        if step.patience is not None and material.validate is None:
            raise InputError("patience without validation batches", where="Finetune", next="give validate= in the task")
        self._check_terms()
        self.accelerator = accelerator_for(step)
        self.sharded = step.shard and self.accelerator.num_processes > 1
        self.place = None if self.sharded else place  # parts of the model lie in other processes
        self.model = unfreeze(duplicate(model)).to(self.accelerator.device).train()
        self.watcher = Watcher(self.model, [tap for term in step.distill for tap in term.student_taps])
        self.teachers = self._teachers()
        self.projections = self._projections()
        if self.sharded:
            shard(self.model, self.accelerator)
            for part in self.projections.modules():
                if isinstance(part, nn.Linear):
                    shard(part, self.accelerator)
        trained = [p for p in (*self.model.parameters(), *self.projections.parameters()) if p.requires_grad]
        if not trained:
            raise InputError("no parameter is trainable", where="model", next="set requires_grad")
        self.optimizer = optimizer(step, trained)
        if self.accelerator.scaler is not None:  # the wrapper scales losses; without that it only takes time
            self.optimizer = self.accelerator.prepare(self.optimizer)
        self.wrapped = self.model if self.sharded else self.accelerator.prepare(self.model)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.steps = -(-material.train.batches // step.accumulate)  # an epoch
        self.factor = factor(step, self.steps * step.epochs)
        self.average = Average(self.model, step.ema) if step.ema else None
        self.standing, self.good = Standing(), self._weights()
        self.best: dict[str, Tensor] | None = None
        self.whole = hashlib.sha256()  # over the batches of this epoch
        self.saved_at = time.monotonic()

    # before

    def _check_terms(self) -> None:
        for term in self.step.distill:
            if not 0 <= term.teacher < len(self.material.teachers):
                raise InputError(
                    f"{type(term).__name__} names teacher {term.teacher}",
                    where="Finetune",
                    why=f"there are {len(self.material.teachers)}, counted from 0",
                )
            check_taps(self.original, term.student_taps, f"{type(term).__name__}, student")
            check_taps(self.material.teachers[term.teacher], term.teacher_taps, f"{type(term).__name__}, teacher")
            if self.step.save_teacher and term.teacher_taps:
                raise InputError(
                    f"{type(term).__name__} looks inside the teacher",
                    next="only outputs are saved: leave save_teacher=",
                )

    def _teachers(self) -> Live | Saved | None:
        if not self.step.distill:
            return None
        device = self.accelerator.device
        live = Live([on_device(teacher, device) for teacher in self.material.teachers], self.step.distill)
        if self.material.answers is None:
            return live
        return Saved(self.material.answers, self.material.answers_key, live)

    def _projections(self) -> nn.ModuleList:
        """What the terms learn besides the student, made for the shapes of the first batch."""
        held = nn.ModuleList()
        if self.teachers is None:
            return held
        where = f"{self.material.train.field}[0]"
        batch = self._moved(next(self.material.train.epoch(0)), where)
        watched = (torch.no_grad(), eval_mode(self.model), self.watcher.watching())
        with together(self.accelerator), watched[0], watched[1], watched[2]:
            self._own_loss(self.model, batch, where)
            student, teachers = self.watcher.seen(where), self._taught()
        torch.manual_seed(self.step.seed)
        for term in self.step.distill:
            held.append(term.projection(student, teachers[term.teacher]) or nn.Identity())
        return held.to(self.accelerator.device).train()

    def loss(self, batch: Any, where: str) -> Tensor:
        """The whole loss on a batch as it is read."""
        return self._loss(self.wrapped, self._moved(batch, where), where)

    def try_validation(self) -> None:
        """The loss on the first batch to validate with, which would else fail only after an epoch."""
        feed = self.material.validate
        if feed is not None and not self.standing.history:
            with torch.no_grad(), eval_mode(self.model), checkpoint.random_state_kept(), self.watcher.watching():
                self.loss(next(feed.epoch(0)), f"{feed.field}[0]")

    # the loop

    def run(self) -> None:
        self._resume()
        self.try_validation()
        try:
            with self.watcher.watching():
                while self.standing.epoch < self.step.epochs and not self._patient():
                    self._epoch()
        except Derailed:
            self._restore(self.good)
            self._give_back()
            raise
        self._finish()

    def _patient(self) -> bool:
        return self.step.patience is not None and self.standing.waited >= self.step.patience

    def _epoch(self) -> None:
        standing, feed, done = self.standing, self.material.train, self.standing.batch
        self.whole = hashlib.sha256()
        for i, batch in enumerate(feed.epoch(standing.epoch)):
            if self.place is not None:  # or nobody will ask whether it came again
                self.whole.update(fingerprint(batch).encode())
            if i < done:  # before the run was ended: read, so that the rest comes in the same order
                if i == done - 1:
                    self._go_on()
                continue
            self._batch(i, batch)
            standing.batch = i + 1
            self.progress("training", standing.epoch * feed.batches + i + 1, self.step.epochs * feed.batches)
            if time.monotonic() - self.saved_at > SAVE_S and (i + 1) % self.step.accumulate == 0:
                self._check_weights()
                self._save()
        self._check_weights()
        standing.history.append({"loss": mean(standing.summed / feed.batches, self.accelerator)})
        standing.epoch, standing.batch, standing.summed = standing.epoch + 1, 0, 0.0
        self._validate()
        self.good = self._weights()
        self._save()

    def _check_weights(self) -> None:
        """Refuse weights that a gradient which is no number has spoilt, before they are kept as good ones."""
        with together(self.accelerator):
            for name, p in self.model.named_parameters():
                if not bool(p.detach().isfinite().all()):
                    where = f"{self.material.train.field}, epoch {self.standing.epoch + 1}"
                    raise _derailed(f"{name} has become NaN or infinite", where)

    def _go_on(self) -> None:
        """From the batch on at which the run was ended, with the random numbers of then."""
        if self.whole.hexdigest() != self.standing.read:
            raise InputError(
                f"gave other batches in epoch {self.standing.epoch + 1} than before the run was ended",
                where=self.material.train.field,
                next="give a source that is the same each time, shuffled by torch's random numbers alone",
            )
        checkpoint.set_random_state(self.random)

    def _batch(self, i: int, batch: Any) -> None:
        moved = self._moved(batch, self.where())
        last = (i + 1) % self.step.accumulate == 0 or i + 1 == self.material.train.batches
        begun = i - i % self.step.accumulate
        count = min(self.step.accumulate, self.material.train.batches - begun)
        if last:
            self._backward(moved, count)
            self._step(self.standing.epoch * self.steps + i // self.step.accumulate)
        else:
            with self.accelerator.no_sync(self.wrapped):
                self._backward(moved, count)

    def _backward(self, batch: Any, count: int) -> None:
        """One of `count` batches that make a step."""
        loss = self._loss(self.wrapped, batch, self.where())
        if not loss.requires_grad:
            raise without_gradients("the loss", self.original, self.where())
        self.standing.summed += float(loss.detach())
        self.accelerator.backward(loss / count)

    def _step(self, number: int) -> None:
        if self.accelerator.num_processes > 1 and not self.sharded:
            for p in self.projections.parameters():  # which no wrapper keeps alike in all processes
                p.grad = None if p.grad is None else self.accelerator.reduce(p.grad, "mean")
        if self.step.clip is not None:
            self.accelerator.unscale_gradients(self.optimizer)
            held = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(held, self.step.clip, norm_of(self.step))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor(number)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model)

    def _loss(self, model: Any, batch: Any, where: str) -> Tensor:
        """A number, or else Derailed is raised; without teachers the task's alone."""
        with together(self.accelerator):
            own = self._own_loss(model, batch, where)
            taught = None if self.teachers is None else self._taught()
            if taught is None and own is not None:
                return _finite(own, where)
        assert taught is not None
        with together(self.accelerator):  # apart, for processes that share a projection out gather it in here
            student = self.watcher.seen(where)
            total = student.output.new_zeros(()) if own is None else self.step.labels * own
            for term, projection in zip(self.step.distill, self.projections, strict=True):
                given = None if isinstance(projection, nn.Identity) else projection
                total = total + term.weight * term.loss(student, taught[term.teacher], given, labels_of(batch))
            return _finite(total, where)

    def _own_loss(self, model: Any, batch: Any, where: str) -> Tensor | None:
        """The task's loss; without one, the model is run and only watched."""
        try:
            with self.accelerator.autocast():
                if self.material.loss is None:
                    Inputs.of(batch).call(model)
                    return None
                loss = self.material.loss(model, batch)
        except LilliputError:
            raise
        except Exception as error:  # the user's own code
            if starved(error):
                raise
            raise InputError("the loss failed", where=where, why=reason(error)) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError(f"the loss is {type(loss).__name__}", where="loss", next="return one number, as a tensor")
        return loss.reshape(())

    def _taught(self) -> list[Seen]:
        assert self.teachers is not None and self.watcher.called is not None
        with self.accelerator.autocast():
            found = self.teachers.answer(*self.watcher.called)
        device = self.accelerator.device
        return [replace(seen, output=seen.output.to(device)) for seen in found]

    def _moved(self, batch: Any, where: str) -> Any:
        processes, part = self.accelerator.num_processes, self.accelerator.process_index
        own = share(batch, part, processes, where)
        device = self.accelerator.device
        return mapped(lambda x: to_learn_from(x, device) if isinstance(x, Tensor) else x, own)

    @torch.no_grad()
    def _validate(self) -> None:
        feed, standing = self.material.validate, self.standing
        if feed is None:
            return
        total = 0.0
        with eval_mode(self.model), checkpoint.random_state_kept():
            for i, batch in enumerate(feed.epoch(0)):
                where = f"{feed.field}[{i}]"
                total += float(self.loss(batch, where))
                done = (standing.epoch - 1) * feed.batches + i + 1
                self.progress("validating", done, self.step.epochs * feed.batches)
        loss = mean(total / feed.batches, self.accelerator)
        standing.history[-1]["validation_loss"] = loss
        if standing.best is None or loss < standing.best:
            standing.best, standing.waited = loss, 0
            self.best = self._weights() if self.step.patience is not None else None
        else:
            standing.waited += 1

    # after

    def _finish(self) -> None:
        if self.best is not None:
            self._restore(self.best)
        elif self.average is not None:
            self.average.give(self.model)
        if self.step.reestimate:
            self._reestimate()
        agree(self.model, self.accelerator)
        self._give_back()

    def _give_back(self) -> None:
        """The trained weights into the model that was given, frozen."""
        whole = whole_state(self.model) if self.sharded else self.model.state_dict()
        unfreeze(self.original)
        apart_buffers(self.original)
        self.original.load_state_dict({name: x.cpu() for name, x in whole.items()})
        freeze(self.original)

    def _reestimate(self) -> None:
        """Means and variances of batch normalisations as plain averages over one epoch of training batches."""
        feed = self.material.train
        with averaging(self.model) as any_norms:
            for i, batch in enumerate(feed.epoch(0) if any_norms else ()):
                where = f"{feed.field}[{i}]"
                with together(self.accelerator):
                    self._own_loss(self.wrapped, self._moved(batch, where), where)
                self.progress("re-estimating", i + 1, feed.batches)

    # checkpoints

    def _weights(self) -> dict[str, Tensor]:
        return {name: x.detach().clone() for name, x in self.model.state_dict().items()}

    def _restore(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.place is None or not self.accelerator.is_main_process:
            return
        standing = {**vars(self.standing), "read": self.whole.hexdigest()}
        checkpoint.save(
            self.place,
            {
                "standing": standing,
                "model": self.model.state_dict(),
                "projections": self.projections.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                "average": None if self.average is None else [self.average.updates, self.average.held],
                "best": self.best,
                "good": self.good,
                "random": checkpoint.random_state(),
            },
        )

    def _resume(self) -> None:
        state = None if self.place is None else checkpoint.load(self.place)
        if state is None:
            return
        self.standing, self.random = Standing(**state["standing"]), state["random"]
        self.model.load_state_dict(state["model"])
        self.projections.load_state_dict(state["projections"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.updates, self.average.held = state["average"]
        self.best, self.good = state["best"], state["good"]

    def where(self) -> str:
        return f"{self.material.train.field}, epoch {self.standing.epoch + 1}, batch {self.standing.batch + 1}"


def _finite(loss: Tensor, where: str) -> Tensor:
    found = float(loss.detach())
    if not math.isfinite(found):
        raise _derailed(f"the loss is {found}", where)
    return loss


def _derailed(what: str, where: str) -> Derailed:
    return Derailed(
        what,
        where=where,
        why="the model is kept as it was after the last epoch that went well",
        next="lower lr, clip the gradients (clip=1.0), or look at what was read there",
    )
