"""What batches hold, however they are nested: in tuples, lists and dicts, and in mappings of other libraries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._pytree import tree_is_leaf, tree_leaves, tree_map


def leaves(batch: Any) -> list[Any]:
    """All that lies in a batch, from left to right.

    >>> leaves(({"a": 1}, [2, 3]))
    [1, 2, 3]
    """
    found: list[Any] = []
    for leaf in tree_leaves(batch):
        found += leaves(dict(leaf)) if _foreign(leaf) else [leaf]
    return found


def mapped(change: Callable[[Any], Any], batch: Any) -> Any:
    """A batch of the same kind with each leaf changed; the batch itself stays as it is.

    >>> mapped(lambda x: x + 1, ({"a": 1}, [2, 3]))
    ({'a': 2}, [3, 4])
    """
    return tree_map(lambda leaf: _copied(change, leaf) if _foreign(leaf) else change(leaf), batch)


def _foreign(x: Any) -> bool:
    """Whether this is a mapping that torch takes for a leaf, such as the BatchEncoding of transformers."""
    return isinstance(x, Mapping) and tree_is_leaf(x)


def _copied(change: Callable[[Any], Any], batch: Any) -> Any:
    made = copy.copy(batch)
    for key, x in batch.items():
        made[key] = mapped(change, x)
    return made
