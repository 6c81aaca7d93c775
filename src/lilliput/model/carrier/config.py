"""Configs: what modules of transformers and its like are made by, and hold, shared between many of them."""

from __future__ import annotations

from typing import Any

from torch import nn

from lilliput.model.carrier.duplicate import duplicate

OWN = "_lilliput_configs"  # attribute of a root: the configs that it alone holds


def is_config(x: Any) -> bool:
    """Whether an attribute is a config: no module, and goes to a dict and comes back from one."""
    kind = type(x)
    return not isinstance(x, type | nn.Module) and all(
        callable(getattr(kind, name, None)) for name in ("to_dict", "from_dict")
    )


def own_configs(root: nn.Module) -> None:
    """Give a model copies of all configs that its modules hold: the user's are perhaps shared with other models."""
    own: tuple[Any, ...] = vars(root).get(OWN, ())
    held = [(vars(module), name, x) for module in root.modules() for name, x in vars(module).items() if is_config(x)]
    if all(any(x is y for y in own) for _, _, x in held):
        return
    copies: dict[int, Any] = {}
    for attributes, name, x in held:
        attributes[name] = duplicate(x, copies)
    vars(root)[OWN] = tuple({id(attributes[name]): attributes[name] for attributes, name, _ in held}.values())
