"""Copies of a model: one to make changes in, and one that stays as the model was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from lilliput.errors import InputError, reason
from lilliput.model.carrier.arrays import storable
from lilliput.model.carrier.carrier import freeze
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.carrier.parametrized import fold_parametrizations
from lilliput.model.edits.held import attributes
from lilliput.model.views.inputs import Inputs


def private_copy(model: nn.Module, *, shares: bool = False) -> nn.Module:
    """A copy of the user's model to make changes in, parametrizations folded, encoded tensors frozen.

    One that `shares` has the numbers of parameters in the same memory, for as long as nothing writes into them.

    Raises InputError for a model that holds what cannot be copied, encoded or stored.
    """
    check_plain(model)
    try:
        private = as_it_stands(model) if shares else duplicate(model)
    except Exception as error:  # whatever the model holds
        raise InputError(
            "the model cannot be copied",
            where=_uncopied(model),
            why=reason(error),
            next="hold it elsewhere, or give its class a __deepcopy__",
        ) from error
    return freeze(fold_parametrizations(private))


def _uncopied(model: nn.Module) -> str:
    """The attribute that stands in the way of a copy, as far as it can be found."""
    for path, module in model.named_modules():
        for name, held in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                duplicate(held, {id(part): part for part in model.modules()})
            except Exception:  # this one
                return f"{path}.{name}" if path else name
    return ""


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
    return duplicate(model, shared)


def check_apart(original: nn.Module, private: nn.Module, inputs: Inputs) -> None:
    """Refuse a model whose copy goes on using the original; raises InputError."""

    def run() -> None:
        with torch.no_grad(), contextlib.suppress(Exception):  # that it fails is told where it is run for its answer
            inputs.map(lambda key, x: x.clone()).call(private)

    used = uses_of(original, run)
    if used:
        raise InputError(
            f"a copy of the model goes on using the model itself: {', '.join(used[:3])}",
            where=_suspect(original),
            why="something global holds it, or code that cannot be made again for a copy",
            next="let hooks and functions use the module that they are given, or hold what they need as attributes",
        )


def uses_of(original: nn.Module, run: Callable[[], object]) -> list[str]:
    """What of `original` the call `run()` uses: tensors read or written, modules called, attributes changed.

    >>> net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> uses_of(net, lambda: other(torch.ones(2)))
    []
    >>> uses_of(net, lambda: net.weight + 1)
    ['tensor weight']
    """
    storages: dict[int, str] = {}
    for name, x in _tensors_of(original):
        storages.setdefault(x.untyped_storage().data_ptr(), name)
    storages.pop(0, None)  # of those that are empty, or have no memory
    modules = {id(module): path or type(original).__name__ for path, module in original.named_modules()}
    found: dict[str, None] = {}

    def entered(module: nn.Module, args: Any) -> None:
        if id(module) in modules:
            found[f"module {modules[id(module)]}"] = None

    before, hook = dict(_attributes_of(original)), register_module_forward_pre_hook(entered)
    try:
        with _Uses(storages, found):
            run()
    finally:
        hook.remove()
    after = dict(_attributes_of(original))
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [*found, *(f"attribute {name}" for name in changed)]


class _Uses(TorchDispatchMode):
    """Notes every operation on memory that is known by a name."""

    def __init__(self, storages: Mapping[int, str], found: dict[str, None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages, self.found = storages, found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs or {})):
            name = self.storages.get(x.untyped_storage().data_ptr()) if _strided(x) else None
            if name is not None:
                self.found[f"tensor {name}"] = None
        return func(*args, **(kwargs or {}))


def _strided(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and not x.is_quantized


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    named = (*model.named_parameters(), *model.named_buffers())
    yield from ((name, x) for name, x in named if _strided(x) and not x.is_meta)


def _attributes_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What the plain attributes of all modules hold, as far as dicts and lists go, by identity."""
    for path, module in model.named_modules():
        for name, held in vars(module).items():
            if name not in _OF_TORCH:
                yield f"{path}.{name}" if path else name, _held(held, 0)


_OF_TORCH = frozenset(vars(nn.Module()))


def _held(x: Any, depth: int) -> Any:
    inner = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    return id(x), [(repr(key), _held(one, depth + 1)) for key, one in inner] if depth < 8 else []


def _suspect(model: nn.Module) -> str:
    """The first module that has functions of its own: hooks, or attributes."""
    for path, module in model.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        own = (held for held in vars(module).values() if isinstance(held, FunctionType | partial))
        if any(True for _ in (*hooks, *own)):
            return path or type(model).__name__
    return type(model).__name__


def check_plain(model: nn.Module) -> None:
    """Refuse modules that are not what runs, and tensors that cannot be encoded, compared or stored."""
    for path, module in model.named_modules():
        what, remedy = next(_strange(module), ("", ""))
        if what:
            raise InputError(what, where=path or type(model).__name__, next=remedy)
    for place, x in attributes(model).items():
        what, remedy = strange_tensor(x)
        if what:
            raise InputError(what, where=".".join(str(key) for key in place if key != ""), next=remedy)


def _strange(module: nn.Module) -> Iterator[tuple[str, str]]:
    """What stands in the way of working on a module itself, and the remedy."""
    if isinstance(module, torch.jit.ScriptModule):
        yield (
            "a module of TorchScript, which cannot be turned back into an nn.Module",
            "make the network by its class and give it the tensors: net.load_state_dict(scripted.state_dict())",
        )
    if "_orig_mod" in module._modules:
        yield "a compiled module", "give the one that torch.compile took, its _orig_mod, and compile the result"
    if type(module).__module__.startswith("torch.ao.nn"):
        yield "a module that PyTorch has quantized", "give the float network"
    for name, x in (*module._parameters.items(), *module._buffers.items()):
        what, remedy = ("", "") if x is None else strange_tensor(x)
        if what:
            yield f"{name} {what}", remedy
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        state = module.get_extra_state()
        if not isinstance(state, Tensor):
            yield f"extra state of type {type(state).__name__}", "hold it in a buffer, or return it as a tensor"


def strange_tensor(x: Tensor) -> tuple[str, str]:
    """Why a tensor can be neither encoded nor stored, and the remedy; empty where it can."""
    if is_lazy(x):
        return "has no shape yet", "call the model once, on an example"
    known: Any = x
    if is_traceable_wrapper_subclass(known):
        return f"is a {type(x).__name__}, a tensor of a kind of its own", "give a model of plain tensors"
    if x.is_meta:
        return "holds no numbers: it is on the meta device", "load the weights first"
    if x.is_quantized:
        return "is a tensor that PyTorch has quantized", "give it in floats: x.dequantize()"
    if x.layout != torch.strided:
        return f"is a tensor of layout {str(x.layout).removeprefix('torch.')}", "hold it dense: x.to_dense()"
    if not storable(x.dtype):
        return f"is a tensor of {x.dtype}", "hold it in another type"
    return "", ""
