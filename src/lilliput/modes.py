"""Running what a user gives without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def eval_mode(model: Callable[..., Any]) -> Iterator[None]:
    """Inside, every part of a module is in eval mode; afterwards each is in the mode it was in.

    Callables that are no modules have no mode.
    """
    modes = {part: part.training for part in model.modules()} if isinstance(model, nn.Module) else {}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def ordinary_modes() -> Iterator[None]:
    """Inside, torch computes as where nobody has set anything: with gradients, in float32, outside of inference mode.

    What is made without a device is made on the CPU.

    >>> with torch.inference_mode(), ordinary_modes():
    ...     torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    (False, True)
    """
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad(), _no_autocast(), _on_cpu():
            yield
    finally:
        torch.set_default_dtype(kind)


@contextmanager
def _on_cpu() -> Iterator[None]:
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def _no_autocast() -> Iterator[None]:
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def exact_products() -> Iterator[None]:
    """Inside, products of float32 are float32, whatever precision the user allows: two ways must give the same."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
