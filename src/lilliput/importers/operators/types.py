"""The types of elements."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from lilliput.errors import InputError

_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT16: torch.int16,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
}


def torch_type(kind: int) -> torch.dtype:
    """The type that ONNX numbers so.

    >>> torch_type(1)
    torch.float32
    """
    if kind not in _TYPES:
        raise InputError(f"elements of type {TensorProto.DataType.Name(kind)}", next="convert them to float32")
    return _TYPES[kind]


def tensor_of(array: NDArray[np.generic]) -> Tensor:
    """An array as a tensor that may be written to; those of bfloat16 and of fewer bits are NumPy's by extension.

    >>> tensor_of(np.ones(2, np.float32))
    tensor([1., 1.])
    """
    name = array.dtype.name
    if name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if name in ("int4", "uint4"):
        return torch.from_numpy(array.astype(np.int8 if name == "int4" else np.uint8))
    if array.dtype == object or array.dtype.kind in "SU":
        raise InputError("a tensor holds text", next="leave what works on text to the program around the network")
    try:
        return torch.from_numpy(np.array(array))
    except TypeError:
        raise InputError(f"a tensor of {name}", next="convert it to float32") from None
