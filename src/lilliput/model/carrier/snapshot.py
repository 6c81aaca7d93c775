"""What a module holds at one moment, to see what a run of it changes, and to put that back."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_REGISTERED = ("_parameters", "_buffers", "_modules")  # dicts of a module that hold names of its own
_OF_TORCH = frozenset(vars(nn.Module()))
_DEEPEST = 8  # lists and dicts within each other


class Snapshot:
    """The attributes, buffers, parameters and children of all modules of `root`, and what their lists and dicts hold.

    Of parameters only that they were written to is kept, of all other tensors their numbers. What lies in objects of
    other classes is not looked at.

    >>> net = nn.BatchNorm1d(2)
    >>> before = Snapshot(net)
    >>> answer = net(torch.ones(4, 2))
    >>> before.changed()
    ['running_mean', 'running_var', 'num_batches_tracked']
    >>> before.restore()
    >>> before.changed(), int(net.num_batches_tracked)
    ([], 0)
    """

    def __init__(self, root: nn.Module) -> None:
        self._held = [
            (f"{path}." if path else "", module, kind, {name: _Held.of(x) for name, x in _own(module, kind).items()})
            for path, module in root.named_modules()
            for kind in ("", *_REGISTERED)
        ]

    def changed(self) -> list[str]:
        """The paths of all that is not as it was."""
        found: dict[str, None] = {}
        for prefix, module, kind, before in self._held:
            now = _own(module, kind)
            for name in {**before, **now}:
                if name not in before or name not in now or not before[name].is_still(now[name]):
                    found[prefix + name] = None
        return list(found)

    def forget_all_but(self, kept: Container[str]) -> None:
        """Hold no more than what these paths had, to restore those alone: what is exchanged elsewhere is free to go.

        >>> net = nn.Linear(2, 2)
        >>> before = Snapshot(net)
        >>> before.forget_all_but({"bias"})
        >>> net.weight, net.bias = nn.Parameter(torch.ones(2, 2)), None
        >>> before.restore({"bias"})
        >>> float(net.weight.detach().sum()), tuple(net.bias.shape)
        (4.0, (2,))
        """
        self._held = [
            (prefix, module, kind, {name: held for name, held in before.items() if prefix + name in kept})
            for prefix, module, kind, before in self._held
        ]

    def restore(self, only: Container[str] | None = None) -> None:
        """Put back what is not as it was, all of it or these paths; the numbers of parameters stay."""
        for prefix, module, kind, before in self._held:
            holder = vars(module)[kind] if kind else vars(module)
            for name in [*(_own(module, kind).keys() - before.keys()), *before]:
                if only is not None and prefix + name not in only:
                    continue
                if name not in before:
                    del holder[name]
                    continue
                before[name].put_back()
                if name not in holder or holder[name] is not before[name].value:
                    holder[name] = before[name].value


@contextmanager
def unchanged(root: nn.Module) -> Iterator[None]:
    """Inside, `root` may run; afterwards it holds what it held before."""
    before = Snapshot(root)
    try:
        yield
    finally:
        before.restore()


def _own(module: nn.Module, kind: str) -> dict[str, Any]:
    held: dict[str, Any] = vars(module)
    return dict(held[kind]) if kind else {name: x for name, x in held.items() if name not in _OF_TORCH}


@dataclass(eq=False)
class _Held:
    """A value and what it held: of a tensor its numbers, of a list or dict its items."""

    value: Any
    numbers: Tensor | int | None = None  # of a parameter how often it was written to
    items: list[tuple[Any, _Held]] = field(default_factory=list)
    elements: frozenset[Any] = frozenset()

    @classmethod
    def of(cls, value: Any, depth: int = 0) -> _Held:
        if isinstance(value, nn.Parameter):
            return cls(value, 0 if value.is_inference() else value._version)  # the former cannot be written to
        if isinstance(value, Tensor):
            return cls(value, value.detach().clone())
        if isinstance(value, set):
            return cls(value, elements=frozenset(value))
        inner = _items(value) if depth < _DEEPEST else []
        return cls(value, items=[(key, cls.of(x, depth + 1)) for key, x in inner])

    def is_still(self, now: Any, depth: int = 0) -> bool:
        if now is not self.value:
            return False
        if isinstance(now, Tensor):
            if isinstance(self.numbers, int):
                return now.is_inference() or now._version == self.numbers
            return _equal(now, self.numbers)
        if isinstance(now, set):
            return now == self.elements
        items = _items(now) if depth < _DEEPEST else []
        return [key for key, _ in items] == [key for key, _ in self.items] and all(
            held.is_still(x, depth + 1) for (_, x), (_, held) in zip(items, self.items, strict=True)
        )

    def put_back(self, depth: int = 0) -> None:
        if self.is_still(self.value, depth):
            return
        for _, held in self.items:
            held.put_back(depth + 1)
        if isinstance(self.numbers, Tensor):
            with torch.no_grad():
                self.value.copy_(self.numbers)
        elif isinstance(self.value, set):
            self.value.clear()
            self.value.update(self.elements)
        elif isinstance(self.value, dict):
            self.value.clear()
            self.value.update({key: held.value for key, held in self.items})
        elif isinstance(self.value, list):
            self.value[:] = [held.value for _, held in self.items]


def _items(value: Any) -> list[tuple[Any, Any]]:
    """What a list, tuple or dict holds; nothing of other things."""
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def _equal(a: Tensor, b: Any) -> bool:
    """Whether the numbers are the same; a NaN is as another."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
