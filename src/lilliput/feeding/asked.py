"""A model asked for an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lilliput.errors import InputError, LilliputError, reason
from lilliput.model.views.inputs import Inputs


def ask(model: Callable[..., Any], inputs: Inputs, where: str) -> Any:
    """What `model` answers to `inputs`; an error of its own comes out as one that says where the inputs are from."""
    try:
        return inputs.call(model)
    except LilliputError:
        raise
    except Exception as error:  # the user's own code raises whatever it likes
        raise InputError(
            "the model fails on this input", where=where, why=reason(error), next="give inputs that it accepts"
        ) from error
