"""Runs without timing: what is looked at is what a network answers, never how fast."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from onnxscript._framework_apis import torch_2_5

from lilliput.measure import Latencies
from lilliput.targets import onnx_file


def _untimed(subjects: Mapping[str, Any], **_: Any) -> Latencies:
    return Latencies({name: (1.0,) for name in subjects}, 0.0)


@contextmanager
def untimed() -> Iterator[None]:
    """Inside, nothing is timed, and torch.onnx reads its translators once."""
    kept = onnx_file.interleaved, torch_2_5.get_torchlib_ops
    onnx_file.interleaved = _untimed  # type: ignore[assignment]
    torch_2_5.get_torchlib_ops = functools.cache(kept[1])
    try:
        yield
    finally:
        onnx_file.interleaved, torch_2_5.get_torchlib_ops = kept  # type: ignore[assignment]
