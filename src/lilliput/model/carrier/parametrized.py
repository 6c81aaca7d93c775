"""Tensors that torch computes from others, as `parametrize`, weight norm and spectral norm do, made ordinary ones."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from lilliput.model.carrier.carrier import list_again


def fold_parametrizations(root: nn.Module) -> nn.Module:
    """Turn `parametrize`d, weight-normalised and spectrally normalised tensors into ordinary parameters, in place.

    They get the values that they have in eval mode. The class of a parametrized module is shared with its copies, so it
    is left alone and only exchanged.
    """
    for module in root.modules():
        if parametrize.is_parametrized(module):
            _fold(module)
        for hook in _norms(module):
            _unhook(module, hook)
    return root


def is_parametrized(root: nn.Module) -> bool:
    """Whether some tensor is computed from others, as `fold_parametrizations` undoes it."""
    return any(parametrize.is_parametrized(module) or _norms(module) for module in root.modules())


def _norms(module: nn.Module) -> list[WeightNorm | SpectralNorm]:
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)]


def _unhook(module: nn.Module, hook: WeightNorm | SpectralNorm) -> None:
    if isinstance(hook, WeightNorm):
        trained = module.get_parameter(f"{hook.name}_v").requires_grad
        remove_weight_norm(module, hook.name)
    else:
        trained = module.get_parameter(f"{hook.name}_orig").requires_grad
        remove_spectral_norm(module, hook.name)
        _forget_checkpoints(module)
    module.get_parameter(hook.name).requires_grad_(trained)


def _forget_checkpoints(module: nn.Module) -> None:
    """Drop the hook that asks checkpoints for a spectral norm's tensors: torch wraps it, and then does not find it."""
    for key, held in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(held, "hook", held), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]


def _fold(module: nn.Module) -> None:
    held: nn.ModuleDict = module.parametrizations.eval()  # type: ignore[assignment,union-attr]
    trained = {name: [p.requires_grad for p in held[name].parameters(recurse=False)] for name in held}
    values = {name: getattr(module, name).detach().clone() for name in held}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in values.items():
        if trained[name]:
            module.register_parameter(name, nn.Parameter(value, any(trained[name])))
        else:
            module.register_buffer(name, value)
    list_again(module)
