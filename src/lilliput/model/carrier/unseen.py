"""Children that torch finds and the user's own code does not: a forward may run through all that it is made of.

`state_dict`, `modules()`, moves and `torch.export` need what carries encodings. ``for layer in self.children()``, a
``Sequential`` that looks at its last layer, or the length of a list must see what the user put there, and no more.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def unseen(base: type[nn.Module], names: frozenset[str]) -> dict[str, Any]:
    """Members for a subclass of `base` whose children `names` are left out wherever a module tells what it is made of.

    >>> from torch.nn import Identity, ReLU, Sequential
    >>> Hiding = type("Hiding", (Sequential,), unseen(Sequential, frozenset({"beside"})))
    >>> net = Hiding(ReLU()); net.add_module("beside", Identity())
    >>> len(net), net[-1], len(list(net.children())), len(list(net.modules()))
    (1, ReLU(), 1, 3)
    """

    def named_children(self: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        shown = _asked_to_distribute()
        return (held for held in base.named_children(self) if shown or held[0] not in names)

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        for name in names:
            self._modules[name].train(mode)  # type: ignore[union-attr]
        base.train(self, mode)
        return self

    def _apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        for name in names if recurse else ():
            self._modules[name]._apply(fn)  # type: ignore[union-attr]
        base._apply(self, fn, recurse)
        return self

    members: dict[str, Any] = {"named_children": named_children, "train": train, "_apply": _apply}
    if issubclass(base, nn.Sequential | nn.ModuleList):
        members |= _of_list(base, names)
    elif issubclass(base, nn.ModuleDict):
        members |= _of_dict(names)
    return members


def _asked_to_distribute() -> bool:
    """Whether torch.distributed is asking: what shards a module finds its parameters by its children."""
    if torch.compiler.is_compiling():
        return False
    frame = sys._getframe(2)  # what asked for named children, or for children through torch.nn
    while frame.f_back is not None and frame.f_globals.get("__name__") == nn.Module.__module__:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__")).startswith("torch.distributed.")


def _own(module: nn.Module, names: frozenset[str]) -> dict[str, nn.Module | None]:
    return {name: held for name, held in module._modules.items() if name not in names}


def _of_list(base: Any, names: frozenset[str]) -> dict[str, Any]:
    def __getitem__(self: nn.Module, index: Any) -> Any:
        if not isinstance(index, slice):
            return base.__getitem__(self, index)
        kept = OrderedDict(list(_own(self, names).items())[index])
        return base(kept if issubclass(base, nn.Sequential) else kept.values())

    return {
        "__len__": lambda self: len(_own(self, names)),
        "__iter__": lambda self: iter(_own(self, names).values()),
        "__getitem__": __getitem__,
    }


def _of_dict(names: frozenset[str]) -> dict[str, Any]:
    return {
        "__len__": lambda self: len(_own(self, names)),
        "__iter__": lambda self: iter(_own(self, names)),
        "__contains__": lambda self, key: key in _own(self, names),
        **{view: lambda self, view=view: getattr(_own(self, names), view)() for view in ("keys", "values", "items")},
    }
