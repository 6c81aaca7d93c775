"""Tensors as NumPy arrays and back, with every bit and the type as they were."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from lilliput.entropy import Array, name_of
from lilliput.errors import InputError, reason

_FOREIGN = {  # types that NumPy has from ml_dtypes, and torch does not hand over
    torch.bfloat16: (torch.int16, np.dtype(ml_dtypes.bfloat16)),
    torch.float8_e4m3fn: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn)),
    torch.float8_e5m2: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2)),
}
_FROM = {foreign: (carrier, dtype) for dtype, (carrier, foreign) in _FOREIGN.items()}


def storable(dtype: torch.dtype) -> bool:
    """Whether tensors of this type can be arrays that a file holds."""
    try:
        return name_of(to_array(torch.empty(0, dtype=dtype)).dtype) is not None
    except (TypeError, RuntimeError):  # NumPy has no such type
        return False


def from_user(x: Any) -> Any:
    """What a user gives a model: an array as a tensor, over the same memory where torch can have it so.

    A tensor of inference mode, which autograd does not take, comes as a copy.

    Raises InputError for an array of things that are no numbers.

    >>> from_user(np.ones(2, np.float32)), from_user("fast")
    (tensor([1., 1.]), 'fast')
    """
    if isinstance(x, Tensor) and x.is_inference():
        return x.clone()
    if not isinstance(x, np.ndarray):
        return x
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    if any(stride < 0 or stride % x.itemsize for stride in x.strides):
        x = np.ascontiguousarray(x)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of memory that may not be written: nothing writes to inputs
            return to_tensor(x) if x.dtype in _FROM else torch.from_numpy(x)
    except TypeError as error:
        raise InputError(
            f"an array of {x.dtype}", why=reason(error), next="give numbers, as tensors or arrays"
        ) from None


def to_array(x: Tensor) -> Array:
    """A tensor as an array, without a copy where it lies in row-major order on the CPU.

    >>> to_array(torch.tensor([1.5], dtype=torch.bfloat16)).dtype
    dtype(bfloat16)
    """
    held = x.detach().cpu().contiguous()
    if held.dtype not in _FOREIGN:
        return held.numpy()
    carrier, foreign = _FOREIGN[held.dtype]
    return held.view(carrier).numpy().view(foreign)


def to_tensor(x: Array) -> Tensor:
    """An array as a tensor, without a copy where it is writable and lies in row-major order.

    >>> to_tensor(np.array([1.5], ml_dtypes.bfloat16))
    tensor([1.5000], dtype=torch.bfloat16)
    """
    held = np.require(x, requirements=("C", "W"))
    if held.dtype not in _FROM:
        return torch.from_numpy(held)
    carrier, dtype = _FROM[held.dtype]
    return torch.from_numpy(held.view(np.int16 if carrier == torch.int16 else np.uint8)).view(dtype)
