"""What identifies a model or a function of the user's: what it holds and does, not where it was defined."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lilliput.encodings import tensor_digest
from lilliput.plain import digest

_PLAIN = (type(None), bool, int, float, str, bytes)
_NEAR = (*_PLAIN, Tensor, nn.Module, types.FunctionType)


def identity(thing: Any, seen: tuple[int, ...] = ()) -> Any:
    """Plain data that differs where `thing` does: the code of functions, and what they close over or name.

    Modules count by their tensors, tensors by their content, other objects by their class and those fields that
    are numbers, texts, tensors, modules or functions. What lies deeper, or in C code, does not count.

    >>> identity(lambda x: x + 1) == identity(lambda x: x + 1), identity(lambda x: x + 1) == identity(lambda x: x + 2)
    (True, False)
    """
    if id(thing) in seen:
        return "again"
    seen = (*seen, id(thing))
    if isinstance(thing, _PLAIN):
        return repr(thing)
    if isinstance(thing, Tensor):
        return tensor_digest(thing)
    if isinstance(thing, nn.Module):
        return model_digest(thing)
    if isinstance(thing, functools.partial):
        return [identity(thing.func, seen), identity(thing.args, seen), identity(thing.keywords, seen)]
    if isinstance(thing, types.MethodType):
        return [identity(thing.__func__, seen), identity(thing.__self__, seen)]
    if isinstance(thing, types.FunctionType):
        return [_code(thing.__code__), [identity(held, seen) for held in _reached(thing)]]
    if isinstance(thing, Mapping):
        return [[str(key), identity(value, seen)] for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return [identity(item, seen) for item in thing]
    fields = getattr(thing, "__dict__", None)
    named = getattr(thing, "__qualname__", None) or type(thing).__qualname__
    if not isinstance(fields, dict) or isinstance(thing, type | types.ModuleType):
        return str(named)
    called = type(thing).__call__ if callable(thing) else None
    near = {name: held for name, held in fields.items() if isinstance(held, _NEAR)}
    return [str(named), identity(called, seen), identity(near, seen)]


def model_digest(model: nn.Module) -> str:
    """SHA-256 of a model's structure (as it prints) and of all its tensors."""
    held = {name: tensor_digest(x) for name, x in model.state_dict().items()}
    return digest(type(model).__qualname__, str(model), held)


def _code(code: types.CodeType) -> Any:
    constants = [_code(held) if isinstance(held, types.CodeType) else repr(held) for held in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _reached(function: types.FunctionType) -> Iterator[Any]:
    """Defaults, what the function closes over, and the globals of its own module that it names."""
    yield function.__defaults__
    yield function.__kwdefaults__
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet bound
            yield None
    for name in function.__code__.co_names:
        held = function.__globals__.get(name)
        own = not isinstance(held, types.FunctionType) or held.__module__ == function.__module__
        if own and not isinstance(held, types.ModuleType | type):
            yield held
