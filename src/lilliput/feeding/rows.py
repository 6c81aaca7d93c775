"""Batches made of the samples of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

BATCH = 16  # samples

Collate = Callable[[list[Any]], Any]


@runtime_checkable
class _Table(Protocol):
    """A dataset of rows, as the library `datasets` has them."""

    @property
    def column_names(self) -> Any: ...
    @property
    def features(self) -> Any: ...
    def with_format(self, *args: Any) -> Any: ...


@dataclass(frozen=True)
class Uneven:
    """In place of what samples hold where it makes no tensor: arrays or lists of numbers, each of another shape."""

    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """Batches of the samples of a dataset or list, in order, or shuffled by torch's random numbers."""

    samples: Any
    collate: Collate | None = None
    shuffle: bool = False

    def __iter__(self) -> Iterator[Any]:
        endless = isinstance(self.samples, IterableDataset) or not hasattr(self.samples, "__getitem__")
        shuffle = None if endless else self.shuffle
        return iter(DataLoader(self.samples, BATCH, shuffle=shuffle, collate_fn=self.collate or collated))

    def __len__(self) -> int:
        return -(-len(self.samples) // BATCH)


def holds_samples(source: Any, collate: Collate | None) -> bool:
    """Whether a source gives samples and no batches: datasets do, and whatever comes with a function to collate by."""
    if isinstance(source, DataLoader):
        return False
    return isinstance(source, Dataset | _Table) or (collate is not None and isinstance(source, Sequence))


def collated(samples: list[Any]) -> Any:
    """One batch of samples: numbers and arrays become tensors with one axis more, all else lists.

    >>> collated([{"x": [1.0, 2.0], "name": "a"}, {"x": [3.0, 4.0], "name": "b"}])
    {'x': tensor([[1., 2.],
            [3., 4.]]), 'name': ['a', 'b']}
    """
    first = samples[0]
    if all(one is None for one in samples):
        return None
    if isinstance(first, Mapping):
        return {key: collated([one[key] for one in samples]) for key in first}
    if isinstance(first, tuple | list) and not _numbers(first):
        return tuple(collated(list(column)) for column in zip(*samples, strict=True))
    arrays = [_array(one) for one in samples]
    held = [one for one in arrays if one is not None]
    if len(held) < len(samples):
        return list(samples)
    if len({tuple(one.shape) for one in held}) > 1:
        return Uneven(tuple(tuple(one.shape) for one in held))
    return torch.stack(held)


def _numbers(x: Any) -> bool:
    """Whether this is one list of numbers, or a list of such."""
    return bool(x) and isinstance(x, list) and all(isinstance(one, bool | int | float) or _numbers(one) for one in x)


def _array(x: Any) -> Any:
    """A sample's numbers as what torch makes tensors of; None where it has none."""
    if isinstance(x, Tensor | np.ndarray | np.generic):
        return torch.as_tensor(x)
    return torch.tensor(x) if isinstance(x, bool | int | float) or _numbers(x) else None
