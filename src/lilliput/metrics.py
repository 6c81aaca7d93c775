"""Metrics: what a model is worth, as one score a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError, MeasureError
from lilliput.modes import eval_mode
from lilliput.outputs import judged


@dataclass(frozen=True, eq=False)
class Metric:
    """Call it with a model for one score a sample, [samples] float32.

    A batch is a pair (input, target) or a dict with "labels"; an input is a tensor, a tuple (given as
    arguments) or a dict (given as keywords). Of the model's output, the first of a tuple counts, or "logits"
    of a dict. `score(output, target)` returns one score a row. A module is run in eval mode, and left as it
    was. Raises InputError for data that are empty, NaN, of unequal lengths, or that can be read only once.
    """

    name: str
    higher_is_better: bool
    batches: Iterable[Any]
    score: Callable[[Tensor, Tensor], Tensor]
    clusters: tuple[object, ...] | None = None  # one label a sample: which of them are of the same origin
    output: str | None = None  # what it takes an answer for, as `Task.output` does

    def __call__(self, model: Callable[..., Any]) -> Tensor:
        if isinstance(self.batches, Iterator):
            raise InputError("the batches can be read only once", where=self.name, next="give a list or DataLoader")
        scores: list[Tensor] = []
        with torch.no_grad(), eval_mode(model):
            for index, batch in enumerate(self.batches):
                scores.append(self._scores(model, batch, f"{self.name}: batch {index}"))
        samples = sum(len(batch) for batch in scores)
        if not samples:
            raise InputError("there are no samples to score", where=self.name)
        if self.clusters is not None and len(self.clusters) != samples:
            raise InputError(f"{len(self.clusters)} cluster labels for {samples} samples", where=self.name)
        return torch.cat(scores)

    def _scores(self, model: Callable[..., Any], batch: Any, where: str) -> Tensor:
        args, kwargs, target = _split(batch, where)
        if any(_has_nan(value) for value in (*args, *kwargs.values(), target)):
            raise InputError("the data contain NaN", where=where)
        device = _device(model)
        args, kwargs = [_on(value, device) for value in args], {k: _on(v, device) for k, v in kwargs.items()}
        output = _first_tensor(model(*args, **kwargs), where).float().cpu()
        if len(output) != len(target):
            raise InputError(f"{len(output)} outputs for {len(target)} targets", where=where)
        try:
            return self.score(output, target.cpu()).reshape(len(target)).float()
        except RuntimeError as error:
            shapes = f"outputs {list(output.shape)}, targets {list(target.shape)}"
            raise InputError(f"cannot be scored: {shapes}", where=where, why=str(error)) from error


def top1(batches: Iterable[Any], clusters: Sequence[object] | Tensor | None = None) -> Metric:
    """1 where the largest of the outputs [samples, classes] is the target [samples], else 0 (also for NaN).

    For outputs [samples, classes, *places] and targets [samples, *places]: the share of right places.

    >>> metric = top1([(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))])
    >>> metric(nn.Identity())
    tensor([1., 0.])
    """
    return Metric("top1", True, batches, _right, _labels(clusters), "classes")


def squared_error(batches: Iterable[Any], clusters: Sequence[object] | Tensor | None = None) -> Metric:
    """The mean of (output - target)² over each sample's elements; both have the same shape.

    >>> squared_error([(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))])(nn.Identity())
    tensor([2.])
    """
    return Metric("squared_error", False, batches, _squared, _labels(clusters), "values")


def _right(output: Tensor, target: Tensor) -> Tensor:
    if output.ndim < 2 or output.shape[:1] + output.shape[2:] != target.shape:
        raise RuntimeError("top1 needs outputs [samples, classes, ...] and targets [samples, ...]")
    right = (output.argmax(1) == target) & ~output.isnan().any(1)
    return right.float().reshape(len(target), -1).mean(1)


def _squared(output: Tensor, target: Tensor) -> Tensor:
    if output.shape != target.shape:
        raise RuntimeError("squared_error needs outputs and targets of one shape")
    errors = (output - target.float()).square().reshape(len(target), -1).mean(1)
    if not errors.isfinite().all():
        raise MeasureError("the model's outputs are not finite", where="squared_error")
    return errors


def _labels(clusters: Sequence[object] | Tensor | None) -> tuple[object, ...] | None:
    if clusters is None:
        return None
    return tuple(clusters.tolist() if isinstance(clusters, Tensor) else clusters)


def _split(batch: Any, where: str) -> tuple[list[Any], dict[str, Any], Tensor]:
    """A batch's arguments and keywords for the model, and its target."""
    inputs: Any
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        target = inputs.pop("labels", None)
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
    else:
        raise InputError('a batch is a pair (input, target) or a dict with "labels"', where=where)
    if not isinstance(target, Tensor) or not target.ndim:
        raise InputError("the target is not a tensor of one row a sample", where=where)
    if not len(target):
        raise InputError("the batch is empty", where=where)
    if isinstance(inputs, Mapping):
        return [], dict(inputs), target
    return (list(inputs) if isinstance(inputs, tuple | list) else [inputs]), {}, target


def _first_tensor(output: Any, where: str) -> Tensor:
    if isinstance(output, Mapping):
        output = output[judged(output)] if output else None
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or not output.ndim:
        raise InputError(f"the model returned {type(output).__name__}, not a tensor of one row a sample", where=where)
    return output


def _has_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(value.isnan().any())


def _on(value: Any, device: torch.device | None) -> Any:
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def _device(model: Callable[..., Any]) -> torch.device | None:
    """Where a module's parameters are; other callables take what they are given."""
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return None if first is None else first.device
