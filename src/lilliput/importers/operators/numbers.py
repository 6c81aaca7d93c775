"""What flows beside tensors while a graph is traced: the sizes of tensors, and what is computed of them.

Files compute shapes by the operators that they compute everything by. Here these are Python's own numbers (SymInts,
where an axis varies) and lists of them, so that a shape is known wherever torch asks for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Numbers = Any  # a number, or a list of them, nested as the axes are
Value = Any  # a tensor, or numbers


def are_numbers(*values: Value) -> bool:
    """Whether none of them is a tensor.

    >>> are_numbers(2, [3, 4]), are_numbers(2, torch.ones(1))
    (True, False)
    """
    return not any(isinstance(value, Tensor) for value in values)


def ints(value: Value) -> list[int]:
    """Whole numbers as a list, whatever they are held as.

    >>> ints(torch.tensor([2, 3])), ints(4)
    ([2, 3], [4])
    """
    plain = value.tolist() if isinstance(value, Tensor) else value
    return list(plain) if isinstance(plain, list | tuple) else [plain]


def number(value: Value) -> Any:
    """The one number that is held.

    >>> number([3]), number(torch.tensor(2.0))
    (3, 2.0)
    """
    (one,) = ints(value)
    return one


def tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """Numbers as a tensor, of the type and on the device of `like`; a tensor as it is.

    >>> tensor([1, 2], like=torch.ones(1))
    tensor([1., 2.])
    """
    if isinstance(value, Tensor):
        return value
    flat = np.array(value, dtype=object)
    if any(isinstance(one, torch.SymInt | torch.SymFloat | torch.SymBool) for one in flat.flat):
        made = torch.stack([torch.scalar_tensor(one, dtype=_kind(one)) for one in flat.flat]).reshape(flat.shape)
        return made if like is None else made.to(like)
    dtype = like.dtype if like is not None else _kind(flat.flat[0]) if flat.size else torch.int64
    return torch.tensor(value, dtype=dtype, device=None if like is None else like.device)


def _kind(one: Any) -> torch.dtype:
    if isinstance(one, bool | torch.SymBool):
        return torch.bool
    return torch.float32 if isinstance(one, float | torch.SymFloat) else torch.int64


def alike(*values: Value) -> list[Any]:
    """Values that an operator takes together: numbers beside a tensor as torch takes them.

    >>> alike(torch.ones(3), [2])
    [tensor([1., 1., 1.]), 2]
    """
    first = next(value for value in values if isinstance(value, Tensor))
    return [value if isinstance(value, Tensor) else _beside(value, first) for value in values]


def _beside(value: Numbers, like: Tensor) -> Any:
    while isinstance(value, list) and len(value) == 1 and like.dim():
        value = value[0]
    return tensor(value, like) if isinstance(value, list) else value


def each(function: Callable[..., Any], *values: Numbers) -> Numbers:
    """What `function` makes of numbers, one by one, broadcast as tensors are.

    >>> each(lambda a, b: a * b, [2, 3], 4)
    [8, 12]
    """
    return plain(np.frompyfunc(function, len(values), 1)(*map(array, values)))


def array(value: Numbers) -> Any:
    """Numbers as an array of Python's objects."""
    return np.array(value, dtype=object)


def plain(value: Any) -> Numbers:
    """An array of objects as numbers again."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def axes_of(axes: Value, rank: int) -> list[int]:
    """Axes counted from the front.

    >>> axes_of([-1], 3)
    [2]
    """
    return [axis % rank for axis in ints(axes)]


def whole(value: Sequence[Any]) -> list[int]:
    """Floats that stand for whole numbers, as sizes that were computed with."""
    return [int(one) if isinstance(one, float) else one for one in value]
