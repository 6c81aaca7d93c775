"""What is done beside the loss while a network trains: a penalty, a mask that grows, whatever a step is to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from lilliput.model.surgery.coupling import Group
from lilliput.plain import short_repr


@dataclass
class Moment:
    """Where a training stands, as plug-ins see it."""

    model: nn.Module  # that trains: a weight that is encoded is the projection of what is trained
    steps: int  # of the optimizer, in all
    epochs: int
    coupled: Callable[[], Sequence[Group]]
    step: int = 0  # that are done
    epoch: int = 0
    state: dict[str, Any] = field(
        default_factory=dict
    )  # the plug-in's own: numbers, text, tensors; checkpoints hold it

    @cached_property
    def groups(self) -> Sequence[Group]:
        """Slices that can only be removed together; raises LilliputError where no graph tells them."""
        return self.coupled()

    @property
    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        return self.step / max(1, self.steps)

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """What is trained of tensors of two axes and more, by path: of an encoded one, what its codes follow from."""
        named = ((_path(name), p) for name, p in self.model.named_parameters())
        return {path: p for path, p in named if path and p.dim() > 1 and p.requires_grad}

    def tensor(self, path: str) -> Tensor:
        """A tensor as the model computes with it, with its gradient."""
        owner, _, name = path.rpartition(".")
        return getattr(self.model.get_submodule(owner), name)  # type: ignore[no-any-return]


def _path(name: str) -> str:
    """The path of the weight that a parameter is trained for; empty for what is learnt beside one."""
    owner, _, last = name.rpartition(".")
    if last.startswith("learnt_"):
        return ""
    return owner.removesuffix("_encoded") if last == "latent" else name


@dataclass(frozen=True, repr=False, kw_only=True)
class Plugin:
    """Knobs, and what is done at some moments of a training; each of them may be left as it is.

    What must last from step to step stands in ``moment.state``, so that a training that was killed goes on to the same
    bits. Under several processes each calls alike, and must do the same.
    """

    def begin(self, moment: Moment) -> None:
        """Before the first step: fill ``moment.state``, refuse what cannot work. No step has been made."""
        return

    def loss(self, moment: Moment) -> Tensor | None:
        """What is added to the loss of a batch; not while it is validated."""
        return None

    def before_step(self, moment: Moment) -> None:
        """All gradients of a step are there, and not clipped yet."""
        return

    def after_step(self, moment: Moment) -> None:
        """The optimizer has made a step, which ``moment.step`` counts; no gradients are recorded."""
        return

    def after_epoch(self, moment: Moment) -> None:
        """All batches were read once more, which ``moment.epoch`` counts; no gradients are recorded."""
        return

    def end(self, moment: Moment) -> None:
        """The weights are those that are kept: the last, the best, or their average. No gradients are recorded."""
        return

    def __repr__(self) -> str:
        return short_repr(self)
