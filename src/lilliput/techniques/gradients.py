"""How much an answer or the loss follows each weight: gradients, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from lilliput.errors import InputError
from lilliput.model.carrier.carrier import tensors, to_dense
from lilliput.modes import eval_mode
from lilliput.structures import leaves
from lilliput.techniques.run import Answer, Run, only_by_doing

Of = Literal["loss", "output"]


@dataclass(frozen=True)
class Gradient:
    """Of a tensor, over batches, each as it is shaped."""

    size: Tensor  # mean magnitude
    square: Tensor  # mean square


def gradients(run: Run, of: Of, batches: int) -> dict[str, Gradient]:
    """The gradients of all tensors by their paths.

    Of the task's loss over its training batches; or of the squared length of the answers over those to calibrate with,
    which needs no labels (Aljundi et al. 2018, "Memory Aware Synapses", arXiv 1711.09601).

    Raises InputError for a task without what it needs, and gradients that are no numbers.
    """
    only_by_doing(run, "which weights matter is only found by gradients")
    lasting = of == "output"  # what trains may come in another order
    found = run.ask(("gradients", of, batches), lambda: _gathered(run, of, batches), data=lasting, lasting=lasting)
    paths = [name.removeprefix("size ") for name in found.tensors if name.startswith("size ")]
    return {path: Gradient(found.tensors[f"size {path}"], found.tensors[f"square {path}"]) for path in paths}


def _gathered(run: Run, of: Of, batches: int) -> Answer:
    model = to_dense(run.model)
    held = {paths[0]: x for paths, x in tensors(model).items() if isinstance(x, nn.Parameter) and x.is_floating_point()}
    for x in held.values():
        x.requires_grad_()
    sums: dict[str, Tensor] = {}
    count = 0
    with eval_mode(model), torch.enable_grad():
        for _ in _passes(run, model, of, batches):
            count += 1
            for path, x in held.items():
                _add(sums, path, x)
            model.zero_grad(set_to_none=True)
            run.progress("gradients", count, batches)
    if not count:
        raise InputError("no batch to take gradients on", where="train" if of == "loss" else "calibrate")
    return Answer(tensors={name: x / count for name, x in sums.items()})


def _add(sums: dict[str, Tensor], path: str, x: Tensor) -> None:
    grad = torch.zeros_like(x) if x.grad is None else x.grad.detach()
    if not bool(grad.isfinite().all()):
        raise InputError(
            "its gradient is no number", where=path, next="look at the loss: it may be NaN, or the network overflow"
        )
    for name, part in ((f"size {path}", grad.abs()), (f"square {path}", grad.square())):
        sums[name] = sums[name] + part if name in sums else part


def _passes(run: Run, model: nn.Module, of: Of, batches: int) -> Iterator[None]:
    """After each, the parameters have the gradients of one batch."""
    if of == "loss":
        if run.lessons is None:
            raise without("loss")
        yield from run.lessons.backward(model, batches)
        return
    if run.calibrate is None:
        raise without("output")
    for inputs in islice(run.calibrate, batches):
        answers = [x for _, x in leaves(inputs.call(model)) if isinstance(x, Tensor) and x.is_floating_point()]
        following = [x for x in answers if x.requires_grad]
        if not following:
            raise InputError(
                "the answers follow no weight by a gradient", next="give a score that needs none: Magnitude()"
            )
        torch.stack([x.square().sum() / len(x) if x.dim() else x.square() for x in following]).sum().backward()
        yield


def without(of: Of) -> InputError:
    """The error for a task that has not what a score by gradients needs."""
    field, remedy = ("train", "give train= and loss=") if of == "loss" else ("calibrate", "give calibrate=")
    return InputError(f"no batches to take gradients of the {of} on", where=field, next=f"{remedy}, or another score")
