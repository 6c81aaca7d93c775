"""Models in float16 and bfloat16: computed as float32 networks of the same numbers, and given back as they came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lilliput.errors import InputError
from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.edits.copies import check_plain
from lilliput.task import Task

_HALVES = (torch.float16, torch.bfloat16)


def in_float32(task: Task) -> Task:
    """The same task in float32, where its model or its baseline is in half precision.

    Raises InputError for a model that is to be trained.
    """
    for model in (task.model, task.baseline):
        if isinstance(model, nn.Module):
            check_plain(model)
    if not (came_in(task.model) or came_in(task.baseline)):
        return task
    if task.train is not None and came_in(task.model):
        raise untrainable(task.model)
    return replace(
        task,
        model=_float32_copy(task.model),
        baseline=_float32_copy(task.baseline),
        example=tree_map(_float32, task.example),
        calibrate=_converted(task.calibrate),
        evaluate=_converted(task.evaluate),
        metric=_Fed(task.metric) if callable(task.metric) else task.metric,
    )


def untrainable(model: Any) -> InputError:
    """The error about a model in half precision that is to be trained."""
    return InputError(
        f"the model is in {came_in(model)}, and is to be trained",
        where="train",
        why="steps smaller than the rounding of a weight are lost, and batches and loss are made for one type",
        next="give model.float(), and batches in float32; a step that trains computes in halves by its precision=",
    )


def came_in(model: Any) -> str:
    """The half precision that parameters of a model are in, in words; empty where none are.

    >>> came_in(nn.Linear(2, 2).bfloat16()), came_in(nn.Linear(2, 2))
    ('bfloat16', '')
    """
    found = {str(kind).removeprefix("torch.") for kind in _halves(model)} if isinstance(model, nn.Module) else set()
    return " and ".join(sorted(found))


def copy_given_back(model: nn.Module, given: nn.Module) -> nn.Module:
    """As `given_back`, of a copy where anything is to be changed."""
    return given_back(duplicate(model), given) if came_in(given) else model


@torch.no_grad()
def given_back(model: nn.Module, given: nn.Module) -> nn.Module:
    """`model` with its tensors in the types of those of `given`, where that is in half precision."""
    kinds = {name: x.dtype for name, x in (*_parameters(given), *given.named_buffers(remove_duplicate=False))}
    halves = _halves(given)
    if not halves:
        return model
    usual = Counter(halves).most_common(1)[0][0]  # of what has another name than it had
    for paths, held in tensors(model).items():
        kind = kinds.get(paths[0], usual)
        if isinstance(held, EncodedTensor):
            held.dtype = kind
        else:
            held.data = _narrowed(paths[0], held.data, kind)
    for path, module in model.named_modules(remove_duplicate=False):
        for name, x in module._buffers.items():
            kind = kinds.get(where := f"{path}.{name}" if path else name)
            if x is not None and x.is_floating_point() and kind is not None:
                module._buffers[name] = _narrowed(where, x, kind)
    return model


def _narrowed(where: str, x: Tensor, kind: torch.dtype) -> Tensor:
    """`x` in another type; raises InputError where numbers become infinite by it."""
    found = x.to(kind)
    if bool((found.isinf() & x.isfinite()).any()):
        raise InputError(
            f"has come to {x.abs().max().item():.3g}, more than {str(kind).removeprefix('torch.')} holds",
            where=where,
            next="give model.float(), or model.bfloat16()",
        )
    return found


def _parameters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from ((path, x) for paths, x in tensors(model).items() for path in paths)


def _halves(model: nn.Module) -> list[torch.dtype]:
    return [x.dtype for _, x in _parameters(model) if x.dtype in _HALVES]


def _float32_copy(model: Any) -> Any:
    if not came_in(model):
        return model
    return duplicate(model).float()


def _float32(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in _HALVES else x


@dataclass(frozen=True)
class _Converted:
    """Batches whose tensors in half precision come in float32."""

    source: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        return (tree_map(_float32, batch) for batch in self.source)

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]


class _Fed:
    """A metric whose data may be in half precision: what it asks is asked in float32."""

    def __init__(self, metric: Callable[[Any], Any]) -> None:
        self._metric = metric
        self.name = getattr(metric, "name", getattr(metric, "__name__", type(metric).__name__))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_metric"], name)

    def __call__(self, run: Callable[..., Any]) -> Any:
        def asked(*args: Any, **kwargs: Any) -> Any:
            return run(*tree_map(_float32, args), **tree_map(_float32, kwargs))

        return self._metric(asked)


def _converted(source: Any) -> Any:
    """What is no source of batches stays, to be refused for what it is."""
    if isinstance(source, Iterator):
        return (tree_map(_float32, batch) for batch in source)
    plain = isinstance(source, Iterable) and not isinstance(source, Tensor | dict | str)
    return _Converted(source) if plain else source
