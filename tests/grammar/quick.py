"""Runs without reading the same again: a draw takes seconds, most of them in torch's exporter."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from onnxscript._framework_apis import torch_2_5


@contextmanager
def translators_kept() -> Iterator[None]:
    """Inside, torch.onnx reads its translators once."""
    read = torch_2_5.get_torchlib_ops
    torch_2_5.get_torchlib_ops = functools.cache(read)
    try:
        yield
    finally:
        torch_2_5.get_torchlib_ops = read
