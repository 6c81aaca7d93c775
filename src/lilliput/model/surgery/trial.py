"""Edits tried out in a copy of a network: what it then answers, and whether it runs at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lilliput.errors import raise_own, reason
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.edits.edit import Edit
from lilliput.model.views.inputs import Inputs
from lilliput.modes import eval_mode
from lilliput.outputs import flatten_outputs

Change = tuple[Edit, Mapping[str, Tensor]]
Shapes = list[tuple[int, ...]]


def changed(model: nn.Module, changes: Iterable[Change]) -> nn.Module:
    """A copy with these edits made."""
    made = duplicate(model)
    for edit, given in changes:
        edit.apply(made, given)
    return made


def answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors that a network answers with in eval mode, where random numbers are the same each time."""
    with torch.no_grad(), eval_mode(model), same_chance():
        return flatten_outputs(inputs.call(model))


def shapes(model: nn.Module, inputs: Inputs) -> Shapes:
    return [tuple(x.shape) for x in answers(model, inputs)]


def misfit(model: nn.Module, changes: Sequence[Change], inputs: Inputs, expected: Shapes) -> str:
    """Why a copy of `model` with these edits does not answer in the expected shapes; empty if it does."""
    try:
        found = shapes(changed(model, changes), inputs)
    except Exception as error:  # the network's own code raises anything
        raise_own(error)
        return reason(error)
    return "" if found == expected else f"it would answer with shapes {found} instead of {expected}"


@contextmanager
def same_chance() -> Iterator[None]:
    """Inside, random numbers are the same each time, and the user's go on afterwards as if none had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
