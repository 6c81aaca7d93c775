"""What libraries save of a compressed model by themselves: tensors that the model's own class knows.

`save_pretrained` writes what `state_dict` lists, and `from_pretrained` fills what it does not find with random numbers.
So the class of a model that holds encoded tensors, and has such a method, saves a dense copy.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lilliput.errors import InputError, reason

METHOD = "save_pretrained"
RESHAPED = "_lilliput_reshaped"  # attribute of a module that its class makes with other sizes or parts


def saves_itself(cls: type[nn.Module]) -> bool:
    """Whether modules of a class write their own checkpoints."""
    return callable(getattr(cls, METHOD, None))


def saving_dense(
    save: Callable[..., Any],
    to_dense: Callable[[nn.Module], nn.Module],
    lost: Callable[[nn.Module], list[str]],
) -> Callable[..., Any]:
    """The method that saves what the module decodes to, by `save` of its own class.

    What no such checkpoint can tell, which `lost` names, is warned of.
    """
    taken = inspect.signature(save)

    @functools.wraps(save)
    def save_pretrained(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = taken.bind(self, *args, **kwargs)
        for what in lost(self):
            warnings.warn(f"{what}; lilliput.save keeps it", stacklevel=2)
        state = given.arguments.get("state_dict")
        if state:
            given.arguments["state_dict"] = to_dense(_holding(self, state)).state_dict()
        dense = to_dense(self)
        if RESHAPED in vars(self):
            from lilliput.model.surgery.made_again import (
                check_made_again,  # which knows classes that this method is a part of
            )

            check_made_again(dense)
        return save(dense, *given.args[1:], **given.kwargs)

    return save_pretrained


def _holding(model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    """A copy of `model` that holds these tensors, encoded or not: what a process gathered from all of them."""
    other = copy.deepcopy(model)
    try:
        other.load_state_dict(dict(state))
    except RuntimeError as error:
        raise InputError(
            "the tensors to save are not those of the model",
            where="state_dict",
            why=reason(error),
            next="leave it out, or give all of model.state_dict()",
        ) from error
    return other
