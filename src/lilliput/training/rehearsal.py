"""Training tried on one batch, without a step: what would fail after hours of other work fails before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import nn

from lilliput.errors import InputError, LilliputError, reason
from lilliput.feeding import read_batches
from lilliput.feeding.chance import random_state_kept
from lilliput.model.surgery.coupling import Group
from lilliput.techniques.finetune import Finetune
from lilliput.training.data import Feed
from lilliput.training.gradients import without_gradients
from lilliput.training.loop import Loss, Material, Trainer
from lilliput.training.memory import enough_memory, starved


@random_state_kept()
def rehearse(
    model: nn.Module,
    step: Finetune,
    train: Iterable[Any],
    loss: Loss | None,
    validate: Iterable[Any] | None,
    teachers: list[nn.Module],
    coupled: Callable[[], Sequence[Group]],
) -> float:
    """The loss and its gradients on the first batch, and the loss on the first of those to validate with.

    `model` and `teachers` stay as they are. Returns the seconds that a batch takes. Raises InputError for what training
    would fail by: no accelerate, batches that can be read only once, a loss that fails, is no finite number, or does
    not depend on the weights, teachers that do not fit, want of memory.
    """
    feed = _first(train, "train", step)
    stops = None if validate is None else _first(validate, "validate", step)
    alone = replace(step, patience=None, shard=False, ema=None)
    with enough_memory(step, feed, lambda: f"{feed.field}[0]"):
        trainer = Trainer(model, alone, Material(feed, loss, stops, teachers, coupled=coupled), None)
        with trainer.watching(), torch.enable_grad():
            taken_s = _gradients(trainer, feed)
        trainer.try_validation()
    return taken_s


def _gradients(trainer: Trainer, feed: Feed) -> float:
    """Seconds of the loss and its gradients on a batch."""
    (batch,) = feed.epoch(0)
    began = perf_counter()
    loss = trainer.loss(batch, trainer.where())
    if not loss.requires_grad:
        raise without_gradients("the loss", trainer.original, trainer.where())
    try:
        trainer.accelerator.backward(loss)
    except LilliputError:
        raise
    except Exception as error:  # of the user's own code, such as changes in place
        if starved(error):
            raise
        raise InputError(
            "the loss has no gradients", where=trainer.where(), why=reason(error), next="mend the loss or the model"
        ) from error
    return perf_counter() - began


def _first(source: Iterable[Any], field: str, step: Finetune) -> Feed:
    """A feed of the first batch alone."""
    if isinstance(source, Iterator):
        kind = type(source).__name__
        raise InputError("can be read only once", where=field, why=f"a {kind}", next="give a list, or a DataLoader")
    batches = [batch for _, batch in zip(range(1), (batch for _, batch in read_batches(source, field)), strict=False)]
    return Feed.known(batches, field, step.seed)
