"""Copies of a model: one to make changes in, and one that stays as the model was."""

from __future__ import annotations

import copy

from torch import nn

from lilliput.errors import InputError, reason
from lilliput.model.carrier import fold_parametrizations, freeze


def private_copy(model: nn.Module) -> nn.Module:
    """A copy of the user's model to make changes in, parametrizations folded, encoded tensors frozen."""
    try:
        private = copy.deepcopy(model)
    except Exception as error:  # whatever the model holds
        raise InputError(
            "the model cannot be copied", why=reason(error), next="give a model that copy.deepcopy takes"
        ) from error
    return freeze(fold_parametrizations(private))


def as_it_stands(model: nn.Module) -> nn.Module:
    """A copy that edits of `model` leave alone; the numbers of a parameter are only held twice once one has changed it.

    >>> layer = nn.Linear(2, 2)
    >>> before = as_it_stands(layer)
    >>> before.weight.data_ptr() == layer.weight.data_ptr()
    True
    >>> layer.weight.data = layer.weight.data * 2
    >>> bool((before.weight == layer.weight).any())
    False
    """
    shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, shared)
