"""Models in float16 and bfloat16: computed as float32 networks of the same numbers, and given back as they came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.edits.copies import check_plain
from lilliput.task import Task

_HALVES = (torch.float16, torch.bfloat16)


def in_float32(task: Task) -> Task:
    """The same task of a float32 model, where it is one in half precision that is not to be trained."""
    if not isinstance(task.model, nn.Module) or task.train is not None or not _halves(task.model):
        return task
    check_plain(task.model)
    return replace(
        task,
        model=duplicate(task.model).float(),
        example=tree_map(_float32, task.example),
        calibrate=_converted(task.calibrate),
        evaluate=_converted(task.evaluate),
    )


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
            held.data = held.data.to(kind)
    for path, module in model.named_modules(remove_duplicate=False):
        for name, x in module._buffers.items():
            kind = kinds.get(f"{path}.{name}" if path else name)
            if x is not None and x.is_floating_point() and kind is not None:
                module._buffers[name] = x.to(kind)
    return model


def _parameters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from ((path, x) for paths, x in tensors(model).items() for path in paths)


def _halves(model: nn.Module) -> list[torch.dtype]:
    return [x.dtype for _, x in _parameters(model) if x.dtype in _HALVES]


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


def _converted(source: Any) -> Any:
    """What is no source of batches stays, to be refused for what it is."""
    plain = isinstance(source, Iterable) and not isinstance(source, Tensor | dict | str | Iterator)
    return _Converted(source) if plain else source
