"""Deep copies whose functions belong to the copy.

`copy.deepcopy` shares functions, and with them all that their cells, defaults and globals hold: a hook, a lambda or a
patched forward of the copy would go on using the modules of the original. Here a function that reaches something that
was copied is made again over the copy. What only a function holds is copied too, as an attribute would be, unless code
that cannot be made again (the methods of a class) holds the same: that stays shared, so that both see one thing.
"""

from __future__ import annotations

import copy
import dis
import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

Thing = TypeVar("Thing")
Memo = dict[int, Any]  # of copy.deepcopy: by the id of what was copied, the copy
_HOOKS = frozenset(name for name in vars(nn.Module()) if "_hooks" in name)
_CACHED = type(functools.lru_cache(lambda: None))
_SHARED = (type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, types.BuiltinFunctionType)


def duplicate(thing: Thing, memo: Memo | None = None) -> Thing:
    """A deep copy whose functions refer to the copy, its tensors ordinary leaves whatever mode they were made in.

    What is in `memo` already, by its id, is taken for the copy.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> net.twice = lambda x: net(net(x))
    >>> made = duplicate(net)
    >>> made[0].weight.data.zero_(), made[0].bias.data.fill_(3)[:1]
    (tensor([[0., 0.],
            [0., 0.]]), tensor([3.]))
    >>> made.twice(torch.ones(2))
    tensor([3., 3.], grad_fn=<ViewBackward0>)
    """
    memo = {} if memo is None else memo
    with torch.inference_mode(False), torch.enable_grad(), _Tensors():
        made = copy.deepcopy(thing, memo)
        _copy_hooks(thing, memo)
        _Functions(memo).follow()
    return made


def apart_buffers(root: nn.Module) -> None:
    """Give buffers that were expanded memory for each place: what shares memory takes no numbers."""
    for module in root.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.layout == torch.strided and 0 in buffer.stride() and buffer.numel() > 1:
                module._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)


def _copy_hooks(thing: Any, memo: Memo) -> None:
    """Give copies of fx's graphs the user's hooks on them: torch's own way to copy a graph leaves hooks out."""
    for module in thing.modules() if isinstance(thing, nn.Module) else ():
        copied = memo.get(id(module))
        if not isinstance(module, GraphModule) or not isinstance(copied, GraphModule) or copied is module:
            continue
        hooks = {name: held for name, held in vars(module).items() if name in _HOOKS and held}
        # those that torch.export puts there ask for attributes that a copy has not
        torchs = {key for held in hooks.values() for key, hook in held.items() if _of_torch(hook)}
        for name, held in hooks.items():
            if not vars(copied)[name]:
                kept = {key: hook for key, hook in held.items() if key not in torchs}
                vars(copied)[name] = type(held)(copy.deepcopy(kept, memo))


def _of_torch(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "torch"


class _Tensors(TorchFunctionMode):
    """While active, a tensor with a gradient history is copied without it; deepcopy alone refuses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            x, memo = args
            memo[id(x)] = made = x.detach().clone()
            return made
        return func(*args, **(kwargs or {}))


class _Functions:
    """Functions in what was copied, made again over the copies."""

    def __init__(self, memo: Memo) -> None:
        self.memo = memo
        self.made: dict[int, types.FunctionType] = {}
        self.cells: dict[int, types.CellType] = {}
        self.globals: dict[int, dict[str, Any]] = {}
        self.alive: list[Any] = []  # whose ids are keys above

    def follow(self) -> None:
        self._share()
        done: set[int] = set()
        while todo := [x for x in self._copies() if id(x) not in done]:
            done |= {id(x) for x in todo}
            self.memo.update({id(x): x for x in todo})  # nothing is copied twice
            for x in todo:
                _exchange(x, self._again)

    def _copies(self) -> list[Any]:
        """What has been copied so far, with nothing that is shared and not deepcopy's list of what it keeps alive."""
        return [x for key, x in self.memo.items() if key not in (id(self.memo), id(x))]

    # what stays shared

    def _share(self) -> None:
        """Take for copies of themselves what methods of classes hold, and globals: all who name them see one thing."""
        copies = self._copies()
        for held in _of_classes({type(x) for x in copies if isinstance(x, nn.Module)}):
            self.memo.setdefault(id(held), held)
        seen: set[int] = set()
        work = [held for x in copies for held in _held_by(x)]
        while work:
            x = work.pop()
            if id(x) in seen:
                continue
            seen.add(id(x))
            if isinstance(x, types.FunctionType):
                for held in _named(x).values():
                    if not isinstance(held, (*_SHARED, types.FunctionType)):
                        self.memo.setdefault(id(held), held)
                work += _own(x)
            work += [] if _weak(x) else _parts(x)

    # what is made again

    def _copied(self, x: Any) -> bool:
        return self.memo.get(id(x), x) is not x

    def _again(self, x: Any) -> Any:
        """`x`, which deepcopy shares or has copied, over the copies of what it reaches."""
        if isinstance(x, types.FunctionType):
            return self._function(x)
        parts = _parts(x)
        if not parts:
            return x
        found = [self.memo.get(id(part), part) if _weak(x) else self._carried(part) for part in parts]
        return x if all(a is b for a, b in zip(found, parts, strict=True)) else _rebuilt(x, found)

    def _carried(self, x: Any) -> Any:
        """The copy of something that a function holds; what cannot be copied is shared."""
        x = self.memo.get(id(x), x)
        if isinstance(x, types.FunctionType) or _parts(x):
            return self._again(x)
        if _weak(x) or id(x) in self.memo:
            return x
        try:
            return copy.deepcopy(x, self.memo)
        except Exception:  # a lock, a file, a generator
            return x

    def _reaches(self, function: types.FunctionType) -> bool:
        """Whether a function holds, or names, something that has a copy of its own, itself or by other functions."""
        seen, work = set[int](), list[Any]([function])
        while work:
            x = work.pop()
            if id(x) in seen:
                continue
            seen.add(id(x))
            if isinstance(x, types.FunctionType):
                named = _named(x).values()
                if any(map(self._copied, named)) or _sets(x):
                    return True
                work += [held for held in named if _beside(held, x)]
                work += _own(x)
            elif (parts := _parts(x)) and not _weak(x):
                work += parts
            elif self._carried(x) is not x:  # which copies it
                return True
        return False

    def _function(self, old: types.FunctionType) -> types.FunctionType:
        if id(old) in self.made:
            return self.made[id(old)]
        if not self._reaches(old):
            return old
        cells = [(cell, self.cells.get(id(cell)) or types.CellType()) for cell in old.__closure__ or ()]
        new = types.FunctionType(old.__code__, self._private(old), old.__name__, None, tuple(cell for _, cell in cells))
        self.made[id(old)] = new
        self.alive += [old, *(cell for cell, _ in cells)]
        for cell, own in cells:
            if id(cell) not in self.cells:
                self.cells[id(cell)] = own
                if not _unbound(cell):
                    own.cell_contents = self._carried(cell.cell_contents)
        new.__defaults__ = old.__defaults__ and tuple(map(self._carried, old.__defaults__))
        new.__kwdefaults__ = old.__kwdefaults__ and {k: self._carried(x) for k, x in old.__kwdefaults__.items()}
        new.__dict__.update({name: self._carried(x) for name, x in vars(old).items()})
        new.__module__, new.__qualname__, new.__doc__ = old.__module__, old.__qualname__, old.__doc__
        new.__annotations__ = old.__annotations__
        self._fill(new, old)
        return new

    def _private(self, function: types.FunctionType) -> dict[str, Any]:
        """The globals of a function that is made again: those of its module, with copies under the names it uses."""
        named = _named(function)
        functions = [x for x in named.values() if _beside(x, function)]
        if not any(map(self._copied, named.values())) and not any(map(self._reaches, functions)):
            return function.__globals__
        if id(function.__globals__) not in self.globals:
            self.alive.append(function.__globals__)
            own = dict(function.__globals__)
            own.pop("__name__", None)  # by which torch.compile would look the user's own globals up
            self.globals[id(function.__globals__)] = own
        return self.globals[id(function.__globals__)]

    def _fill(self, new: types.FunctionType, old: types.FunctionType) -> None:
        if new.__globals__ is not old.__globals__:
            for name, x in _named(old).items():
                new.__globals__[name] = self._function(x) if _beside(x, old) else self.memo.get(id(x), x)


def _held_by(x: Any) -> Iterator[Any]:
    """What a copy holds directly."""
    held: list[Any] = []
    _exchange(x, lambda one: held.append(one) or one)  # type: ignore[func-returns-value]
    yield from held


def _exchange(x: Any, change: Callable[[Any], Any]) -> None:
    """Put ``change(held)`` in the place of all that `x` holds: in a list, a dict, a set, a partial or attributes."""
    if isinstance(x, functools.partial):
        state: Any = x.__reduce__()[2]
        function, args, named, attributes = state
        told = (change(function), tuple(map(change, args)), {k: change(v) for k, v in named.items()}, attributes)
        if told[0] is not function or any(a is not b for a, b in zip(told[1], args, strict=True)):
            x.__setstate__(told)  # type: ignore[attr-defined]
        else:
            _exchange_items(x.keywords, change)
    elif isinstance(x, dict):
        _exchange_items(x, change)
    elif isinstance(x, list):
        for i, held in enumerate(x):
            if (new := change(held)) is not held:
                list.__setitem__(x, i, new)
    elif isinstance(x, set):
        changed = [(held, new) for held in x if (new := change(held)) is not held]
        x.difference_update(held for held, _ in changed)
        x.update(new for _, new in changed)
    attributes = getattr(x, "__dict__", None)
    if isinstance(attributes, dict) and not isinstance(x, type | types.ModuleType | types.FunctionType):
        _exchange_items(attributes, change)


def _exchange_items(held: dict[Any, Any], change: Callable[[Any], Any]) -> None:
    for key, x in list(held.items()):
        if (new := change(x)) is not x:
            dict.__setitem__(held, key, new)


def _parts(x: Any) -> list[Any]:
    """What something immutable is made of that deepcopy shares, or makes again only over what it copies."""
    if isinstance(x, types.MethodType):
        return [x.__func__, x.__self__]
    if isinstance(x, types.BuiltinMethodType) and not isinstance(x.__self__, types.ModuleType | type | None):
        return [x.__self__]
    if isinstance(x, tuple | frozenset):
        return list(x)
    if _weak(x):
        held = x()
        return [] if held is None else [held]
    return [x.__wrapped__] if isinstance(x, _CACHED) else []


def _rebuilt(x: Any, parts: list[Any]) -> Any:
    if isinstance(x, types.MethodType):
        return types.MethodType(*parts)
    if isinstance(x, types.BuiltinMethodType):
        return getattr(parts[0], x.__name__)
    if isinstance(x, tuple):
        return type(x)._make(parts) if hasattr(x, "_make") else type(x)(parts)
    if isinstance(x, _CACHED):
        return functools.lru_cache(**x.cache_parameters())(parts[0])
    return weakref.ref(parts[0]) if _weak(x) else type(x)(parts)


def _weak(x: Any) -> bool:
    return type(x) is weakref.ref


def _own(function: types.FunctionType) -> list[Any]:
    """What a function alone holds; of one that can be imported, which all share, nothing."""
    if _importable(function):
        return []
    held = [cell.cell_contents for cell in function.__closure__ or () if not _unbound(cell)]
    named = (function.__kwdefaults__ or {}).values()
    return [*held, *(function.__defaults__ or ()), *named, *vars(function).values()]


def _named(function: types.FunctionType) -> dict[str, Any]:
    """The globals that the code of a function names."""
    return {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = (_names(held) for held in code.co_consts if isinstance(held, types.CodeType))
    return tuple(dict.fromkeys((*code.co_names, *(name for names in inner for name in names))))


def _beside(x: Any, function: types.FunctionType) -> bool:
    """Whether this is another function of the same module."""
    return isinstance(x, types.FunctionType) and x is not function and x.__globals__ is function.__globals__


@functools.lru_cache(maxsize=4096)
def _stores(code: types.CodeType) -> bool:
    return any(one.opname == "STORE_DEREF" and one.argval in code.co_freevars for one in dis.get_instructions(code))


def _sets(function: types.FunctionType) -> bool:
    """Whether it assigns to what encloses it (``nonlocal``): a count, a flag."""
    return _stores(function.__code__) and not _importable(function)


def _importable(function: types.FunctionType) -> bool:
    """Whether it is found where it says it is, as pickle asks."""
    held: Any = sys.modules.get(function.__module__ or "")
    for name in function.__qualname__.split("."):
        held = getattr(held, name, None)
    return getattr(held, "__wrapped__", held) is function or held is function


def _unbound(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell  # never, but looked at
    except ValueError:
        return True


def _of_classes(classes: set[type]) -> Iterator[Any]:
    """What methods of these classes, and of those they derive from, hold or name, but for torch's own."""
    for cls in {base for one in classes for base in one.__mro__}:
        if cls.__module__.partition(".")[0] in ("torch", "builtins", "typing"):
            continue
        for member in vars(cls).values():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(function, types.FunctionType):
                cells = (cell.cell_contents for cell in function.__closure__ or () if not _unbound(cell))
                for held in (*cells, *_named(function).values()):
                    if not isinstance(held, (*_SHARED, types.FunctionType)):
                        yield held
