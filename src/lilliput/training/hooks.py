"""What takes part in the training loop beside the loss: a user's plug-ins, and distillation, by the same few calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError, LilliputError, reason
from lilliput.nested import mapped
from lilliput.techniques.plugin import Moment, Plugin
from lilliput.training.checkpoint import storable_state
from lilliput.training.memory import starved


class Hook:
    """What the loop calls; each of it may be left as it is."""

    learned: nn.ModuleList  # what is trained beside the model, and then dropped

    def __init__(self) -> None:
        self.learned = nn.ModuleList()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the model is called."""
        yield

    def look(self, where: str) -> None:
        """The model was called on a batch; what can fail in one process alone is done here."""

    def loss(self, batch: Any, where: str) -> Tensor | None:
        """What is added to the loss of a batch."""
        return None

    def before_step(self) -> None:
        """All gradients of a step are there."""

    def after_step(self) -> None:
        """A step was made."""

    def after_epoch(self) -> None:
        """An epoch has ended."""

    def end(self) -> None:
        """The weights are those that are kept."""

    def state(self) -> Any:
        """What a checkpoint must hold: plain data and tensors."""
        return None

    def restore(self, state: Any) -> None:
        """Go on from there."""


class Plugged(Hook):
    """A plug-in in the loop. Raises InputError where it fails, or keeps what cannot be saved."""

    def __init__(self, plugin: Plugin, moment: Moment) -> None:
        super().__init__()
        self.plugin, self.moment = plugin, moment
        self._done(self.plugin.begin)
        self.state()

    def loss(self, batch: Any, where: str) -> Tensor | None:
        added = self._done(self.plugin.loss) if torch.is_grad_enabled() else None
        if added is None:
            return None
        if not isinstance(added, Tensor) or added.numel() != 1:
            told = f"of shape {tuple(added.shape)}" if isinstance(added, Tensor) else type(added).__name__
            raise InputError(f"its loss is {told}", where=self._name, next="return one number, as a tensor, or None")
        return added.reshape(())

    def before_step(self) -> None:
        self._done(self.plugin.before_step)

    @torch.no_grad()
    def after_step(self) -> None:
        self.moment.step += 1
        self._done(self.plugin.after_step)

    @torch.no_grad()
    def after_epoch(self) -> None:
        self.moment.epoch += 1
        self._done(self.plugin.after_epoch)

    @torch.no_grad()
    def end(self) -> None:
        self._done(self.plugin.end)

    def state(self) -> Any:
        why = storable_state(self.moment.state)
        if why:
            raise InputError(
                f"its state cannot be saved: {why}",
                where=self._name,
                next="keep numbers, text and tensors in moment.state, in lists and dicts",
            )
        return [self.moment.step, self.moment.epoch, self.moment.state]

    def restore(self, state: Any) -> None:
        """Go on from there, with tensors where the model is."""
        device = next(self.moment.model.parameters()).device
        moved = mapped(lambda x: x.to(device) if isinstance(x, Tensor) else x, state)
        self.moment.step, self.moment.epoch, self.moment.state = moved

    @property
    def _name(self) -> str:
        return type(self.plugin).__name__

    def _done(self, call: Any) -> Any:
        try:
            return call(self.moment)
        except LilliputError:
            raise
        except Exception as error:  # a user's own code
            if starved(error):
                raise
            what = f"{call.__name__} failed"
            raise InputError(
                what, where=self._name, why=reason(error), next="mend the plug-in, or leave it out"
            ) from error
