"""What a user's module and data are, so that it can be said whether they were changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def record(net: nn.Module) -> dict[str, Any]:
    """All that can be seen of a module: tensors, their flags, attributes, hooks, classes."""
    held: dict[str, Any] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        held[f"{path}: class"] = type(module).__name__
        for name, value in vars(module).items():
            if name == "_modules":
                held[f"{path}: children"] = list(value)
            elif "hooks" in name:
                held[f"{path}: {name}"] = len(value)
            else:
                _take(held, f"{path}: {name}", value)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                held[f"{path}: {name}, told"] = (parameter.requires_grad, parameter.stride(), type(parameter).__name__)
                _take(held, f"{path}: {name}, gradient", parameter.grad)
    return held


def tensors(net: nn.Module) -> dict[str, Any]:
    """What its state dict holds."""
    held: dict[str, Any] = {}
    for name, x in net.state_dict().items():
        _take(held, name, x)
    return held


def _take(held: dict[str, Any], place: str, value: Any) -> None:
    if isinstance(value, Tensor):
        held[place] = (str(value.dtype), type(value).__name__, _numbers(value))
    elif isinstance(value, dict):
        held[f"{place}: keys"] = list(map(str, value))
        for key, inner in value.items():
            _take(held, f"{place}[{key!r}]", inner)
    elif isinstance(value, list | tuple):
        held[f"{place}: length"] = len(value)
        for i, inner in enumerate(value):
            _take(held, f"{place}[{i}]", inner)
    elif value is None or isinstance(value, int | str | bool):
        held[place] = value


def _numbers(x: Tensor) -> Any:
    plain = x.detach().to_dense() if x.layout != torch.strided else x.detach()
    plain = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain
    return (tuple(plain.shape), plain.double().nan_to_num(1234.5).reshape(-1).tolist()) if _real(x) else "no numbers"


def _real(x: Tensor) -> bool:
    return type(x).__name__ in ("Tensor", "Parameter", "Tagged") and not x.is_meta


def changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The first place that differs."""
    for place in (*before, *after):
        if place not in after or place not in before or before[place] != after[place]:
            return place
    return ""
