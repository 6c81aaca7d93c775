"""The training loop, on accelerate: one process or many, interruptible, and the same again when it is run again."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError, LilliputError, reason
from lilliput.feeding import Takes, chance, fingerprint
from lilliput.model.carrier.carrier import freeze, unfreeze
from lilliput.model.carrier.duplicate import apart_buffers, duplicate
from lilliput.model.surgery.coupling import Group
from lilliput.modes import eval_mode
from lilliput.nested import mapped
from lilliput.progress import Progress, silent
from lilliput.techniques.finetune import Finetune
from lilliput.techniques.plugin import Moment
from lilliput.training import checkpoint
from lilliput.training.data import Feed, check_classes
from lilliput.training.distilling import Distilling, check_terms
from lilliput.training.gradients import to_learn_from, without_gradients
from lilliput.training.hooks import Hook, Plugged
from lilliput.training.memory import enough_memory, starved
from lilliput.training.norms import averaging
from lilliput.training.optimizers import Average, factor, norm_of, optimizer
from lilliput.training.processes import accelerator_for, agree, mean, shard, share, together, whole_state

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
    answers: tuple[Path, str] | None = None  # of the teachers, saved beforehand, and under which key
    coupled: Callable[[], Sequence[Group]] = tuple  # what can only be removed together, for plug-ins that ask


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
        self.takes = Takes.of(model.forward)  # where no loss calls the model
        if material.loss is None and not step.distill:
            raise InputError("has nothing to train by", where="task", next="give loss=, or distill= in Finetune")
        if material.validate is not None and step.patience is not None:
            check_classes(material.train, material.validate)
        if step.patience is not None and material.validate is None:
            raise InputError("patience without validation batches", where="Finetune", next="give validate= in the task")
        check_terms(step, model, material.teachers)
        self.accelerator = accelerator_for(step)
        self.sharded = step.shard and self.accelerator.num_processes > 1
        self.place = None if self.sharded else place  # parts of the model lie in other processes
        self.model = unfreeze(duplicate(model), step.learn_encodings).to(self.accelerator.device).train()
        self.steps = -(-material.train.batches // step.accumulate)  # an epoch
        self.hooks = [*self._distilling(), *self._plugged()]
        self.learned = nn.ModuleList(hook.learned for hook in self.hooks)
        if self.sharded:
            shard(self.model, self.accelerator)
            for part in self.learned.modules():
                if isinstance(part, nn.Linear):
                    shard(part, self.accelerator)
        trained = [p for p in (*self.model.parameters(), *self.learned.parameters()) if p.requires_grad]
        if not trained:
            raise InputError("no parameter is trainable", where="model", next="set requires_grad")
        self.optimizer = optimizer(step, trained)
        if self.accelerator.scaler is not None:  # the wrapper scales losses; without that it only takes time
            self.optimizer = self.accelerator.prepare(self.optimizer)
        self.wrapped = self.model if self.sharded else self.accelerator.prepare(self.model)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.factor = factor(step, self.steps * step.epochs)
        self.average = Average(self.model, step.ema) if step.ema else None
        self.standing, self.good = Standing(), self._weights()
        self.best: dict[str, Tensor] | None = None
        self.whole = hashlib.sha256()  # over the batches of this epoch
        self.saved_at = time.monotonic()

    # before

    def _distilling(self) -> Iterator[Hook]:
        """What makes a student of the model, where terms are given; what they learn is made for the first batch."""
        if not self.step.distill:
            return
        given = (self.material.teachers, self.material.answers, self.accelerator.autocast, self.accelerator.device)
        hook, where = Distilling(self.step, self.model, *given), f"{self.material.train.field}[0]"
        batch = self._moved(next(self.material.train.epoch(0)), where)
        with together(self.accelerator), torch.no_grad(), eval_mode(self.model), hook.watching():
            self._own_loss(self.model, batch, where)
            torch.manual_seed(self.step.seed)
            hook.project(where)
        hook.learned.to(self.accelerator.device).train()
        yield hook

    def _plugged(self) -> Iterator[Hook]:
        for plugin in self.step.plugins:
            steps = self.steps * self.step.epochs
            yield Plugged(plugin, Moment(self.model, steps, self.step.epochs, self.material.coupled))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the model is called: what takes part sees what it needs."""
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.watching())
            yield

    def loss(self, batch: Any, where: str) -> Tensor:
        """The whole loss on a batch as it is read."""
        return self._loss(self.wrapped, self._moved(batch, where), where)

    def try_validation(self) -> None:
        """The loss on the first batch to validate with, which would else fail only after an epoch."""
        feed = self.material.validate
        if feed is not None and not self.standing.history:
            with torch.no_grad(), eval_mode(self.model), chance.random_state_kept(), self.watching():
                self.loss(next(feed.epoch(0)), f"{feed.field}[0]")

    # the loop

    def run(self) -> None:
        self._resume()
        self.try_validation()
        try:
            with self.watching():
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
        for hook in self.hooks:
            hook.after_epoch()
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
        chance.set_random_state(self.random)

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
            for p in self.learned.parameters():  # which no wrapper keeps alike in all processes
                p.grad = None if p.grad is None else self.accelerator.reduce(p.grad, "mean")
        for hook in self.hooks:
            hook.before_step()
        if self.step.clip is not None:
            self.accelerator.unscale_gradients(self.optimizer)
            held = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(held, self.step.clip, norm_of(self.step))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor(number)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for hook in self.hooks:
            hook.after_step()
        if self.average is not None:
            self.average.update(self.model)

    def _loss(self, model: Any, batch: Any, where: str) -> Tensor:
        """The task's loss and what is added to it: a number, or else Derailed is raised."""
        with together(self.accelerator):
            own = self._own_loss(model, batch, where)
            for hook in self.hooks:
                hook.look(where)
            if own is not None and not self.hooks:
                return _finite(own, where)
        with together(self.accelerator):  # apart, for processes that share what hooks learn gather it in here
            parts = [] if own is None else [self.step.task_loss * own if self.step.distill else own]
            parts += [found for hook in self.hooks if (found := hook.loss(batch, where)) is not None]
            return _finite(functools.reduce(torch.add, parts), where)

    def _own_loss(self, model: Any, batch: Any, where: str) -> Tensor | None:
        """The task's loss; without one, the model is run and only watched."""
        try:
            with self.accelerator.autocast():
                if self.material.loss is None:
                    self.takes.inputs(batch, where)[0].call(model)
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
        with eval_mode(self.model), chance.random_state_kept():
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
        for hook in self.hooks:
            hook.end()
        if self.step.recalibrate_norms:
            self._recalibrate_norms()
        agree(self.model, self.accelerator)
        self._give_back()

    def _give_back(self) -> None:
        """The trained weights into the model that was given, frozen."""
        whole = whole_state(self.model) if self.sharded else self.model.state_dict()
        unfreeze(self.original, self.step.learn_encodings)
        apart_buffers(self.original)
        self.original.load_state_dict({name: x.cpu() for name, x in whole.items()})
        freeze(self.original)

    def _recalibrate_norms(self) -> None:
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
                "learned": self.learned.state_dict(),
                "hooks": [hook.state() for hook in self.hooks],
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                "average": None if self.average is None else [self.average.updates, self.average.held],
                "best": self.best,
                "good": self.good,
                "random": chance.random_state(),
            },
        )

    def _resume(self) -> None:
        state = None if self.place is None else checkpoint.load(self.place)
        if state is None:
            return
        self.standing, self.random = Standing(**state["standing"]), state["random"]
        self.model.load_state_dict(state["model"])
        self.learned.load_state_dict(state["learned"])
        for hook, held in zip(self.hooks, state["hooks"], strict=True):
            hook.restore(held)
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
