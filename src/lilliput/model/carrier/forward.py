"""A module's forward, wrapped: whether it is the class's or one that was set on the instance."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.fx import GraphModule


class Forward(property):
    """A `forward` for a subclass of `cls`: the one set on the instance, or else the class's, `through` a wrap.

    A function in the class would be hidden by one that is set on the instance (by accelerate or fx, say); a property
    comes before both.
    """

    def __init__(self, cls: type[nn.Module], through: Callable[[nn.Module, Callable[..., Any]], Any]) -> None:
        inner = inspect.getattr_static(cls, "forward")

        def get(module: nn.Module) -> Any:
            own = None if isinstance(inner, Forward) else vars(module).get("forward")
            run = inner.__get__(module, cls) if own is None else own
            return functools.wraps(run)(through(module, run))

        super().__init__(
            get,
            lambda module, run: vars(module).__setitem__("forward", run),
            lambda module: vars(module).__delitem__("forward"),
        )


@contextmanager
def forwarded(root: nn.Module, through: Callable[[nn.Module, Callable[..., Any]], Any]) -> Iterator[None]:
    """Inside, `root` runs by what `through` makes of it and of its forward; its class is exchanged for the while."""
    cls = type(root)
    root.__class__ = _forwarding(cls, Forward(cls, through))
    try:
        yield
    finally:
        root.__class__ = cls


def called(root: nn.Module) -> AbstractContextManager[None]:
    """Inside, torch.export calls `root` where it would walk the graph that it is of, past what encodes its values."""
    return forwarded(root, lambda module, run: partial(run)) if isinstance(root, GraphModule) else nullcontext()


def _forwarding(cls: type[nn.Module], forward: Forward) -> type[nn.Module]:
    """A subclass of `cls` with this forward; not of a graph of fx, which torch.export walks and does not call."""
    if not issubclass(cls, GraphModule):
        return type(cls.__name__, (cls,), {"forward": forward})
    decoded = {name: vars(cls)[name] for name in getattr(cls, "encoded_names", ())}
    return type(cls.__name__, (nn.Module,), {**decoded, "forward": forward})
