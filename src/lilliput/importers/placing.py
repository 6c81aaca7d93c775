"""Where what is imported is held: layers and tensors under paths of the file's own names, tied ones once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Held:
    """The tensors of a file as parameters and buffers, each once, however many layers read it."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Any, Any]] = {}  # and what gave it, so that its memory stays its own

    def parameter(self, given: Tensor) -> Tensor:
        """Floats as a parameter; numbers that are not trained, and what is not finite, as they are.

        Views of one memory that lie alike are one: a table and the same table, turned twice, say.
        """
        held: Tensor = self.once((given,), lambda: _trained(given.detach().contiguous()))
        return held

    def once(self, given: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What is made of tensors, made once."""
        key = tuple((one.data_ptr(), one.dtype, tuple(one.shape), one.stride()) for one in given)
        if key not in self._known:
            self._known[key] = make(), given
        return self._known[key][0]

    def of_layer(self, given: Tensor) -> Tensor:
        """A tensor of a layer: matrices may be tied, but files share a row of zeros for many biases."""
        return self.parameter(given) if given.dim() > 1 else nn.Parameter(given.detach().clone())


def _trained(held: Tensor) -> Tensor:
    return nn.Parameter(held) if held.is_floating_point() and bool(held.isfinite().all()) else held


def put_tensor(root: nn.Module, path: str, held: Tensor) -> str:
    """Hold a tensor under a path, or one like it that is free; returns the path."""
    parent, name, path = _free(root, path)
    if isinstance(held, nn.Parameter):
        parent.register_parameter(name, held)
    else:
        parent.register_buffer(name, held)
    return path


def put_module(root: nn.Module, path: str, module: nn.Module) -> str:
    """Hold a module under a path, or one like it that is free; returns the path."""
    parent, name, path = _free(root, path)
    parent.add_module(name, module)
    return path


def _free(root: nn.Module, path: str) -> tuple[nn.Module, str, str]:
    """The module that holds a path, the name in it, and the path that is free."""
    parent, parts, done = root, path.split("."), []
    while len(parts) > 1:
        child = getattr(parent, parts[0], None)
        if child is None:
            child = nn.Module()
            parent.add_module(parts[0], child)
        if type(child) is not nn.Module:  # a layer, or something of torch's own: nothing is put into it
            parts = ["_".join(parts)]
            break
        parent = child
        done.append(parts.pop(0))
    name, count = parts[0], 1
    while hasattr(parent, name):
        count += 1
        name = f"{parts[0]}_{count}"
    return parent, name, ".".join([*done, name])


def without_numbers(kind: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """A module of torch whose parameters are still to be given."""
    return kind(*args, **kwargs, device="meta").eval()


def fill(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Give a module its tensors, parameters and buffers alike."""
    for name, tensor in tensors.items():
        if name in module._buffers:
            module._buffers[name] = None if tensor is None else tensor.detach().clone()
        elif tensor is not None:
            setattr(module, name, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))
    counted = module._buffers.get("num_batches_tracked")
    if counted is not None:
        module._buffers["num_batches_tracked"] = torch.zeros((), dtype=counted.dtype)
    return module
