"""Copies of a model: one to make changes in, and one that stays as the model was."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.weight_norm import WeightNorm

from lilliput.errors import InputError, reason
from lilliput.model.carrier import fold_parametrizations, freeze


def private_copy(model: nn.Module) -> nn.Module:
    """A copy of the user's model to make changes in, parametrizations folded, encoded tensors frozen."""
    _check_plain(model)
    try:
        private = copy.deepcopy(model)
    except Exception as error:  # whatever the model holds
        hooked = next((path for path, module in model.named_modules() if _normalised(module)), None)
        raise InputError(
            "the model cannot be copied",
            where=hooked or "",
            why=reason(error),
            next="give a model that copy.deepcopy takes"
            + ("" if hooked is None else ": torch.nn.utils.remove_weight_norm makes a plain layer of this one"),
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


def _check_plain(model: nn.Module) -> None:
    """Refuse modules that are not what runs, and tensors without numbers."""
    for path, module in model.named_modules():
        what, remedy = next(_strange(module), ("", ""))
        if what:
            raise InputError(what, where=path or type(model).__name__, next=remedy)


def _normalised(module: nn.Module) -> bool:
    return any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values())


def _strange(module: nn.Module) -> Iterator[tuple[str, str]]:
    """What stands in the way of working on a module itself, and the remedy."""
    if isinstance(module, torch.jit.ScriptModule):
        yield "a module of TorchScript", "give the nn.Module that it was made of"
    if "_orig_mod" in module._modules:
        yield "a compiled module", "give the one that torch.compile took, its _orig_mod, and compile the result"
    if type(module).__module__.startswith("torch.ao.nn"):
        yield "a module that PyTorch has quantized", "give the float network"
    for name, x in (*module._parameters.items(), *module._buffers.items()):
        if x is not None and is_lazy(x):
            yield f"{name} has no shape yet", "call the model once, on an example"
        elif x is not None and x.is_meta:
            yield f"{name} holds no numbers: it is on the meta device", "load the weights first"
