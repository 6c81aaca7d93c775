"""Configs: what modules of transformers and its like are made by, and hold, shared between many of them."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def is_config(x: Any) -> bool:
    """Whether an attribute is a config: no module, and goes to a dict and comes back from one."""
    kind = type(x)
    return not isinstance(x, type | nn.Module) and all(
        callable(getattr(kind, name, None)) for name in ("to_dict", "from_dict")
    )


def configs(root: nn.Module) -> dict[str, Any]:
    """The config of each module that has one, by the module's path."""
    return {path: held for path, module in root.named_modules() if is_config(held := vars(module).get("config"))}


def own_configs(root: nn.Module) -> None:
    """Give a model copies of all configs that its modules hold: the user's are perhaps shared with other models."""
    copies: dict[int, Any] = {}
    for module in root.modules():
        for name, held in vars(module).items():
            if is_config(held):
                vars(module)[name] = copy.deepcopy(held, copies)
