"""Tensors that no checkpoint has, and that a module on the meta device has lost: its constructor makes them again."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lilliput.errors import InputError, reason
from lilliput.model.edits.held import attributes, passing_buffers

_PLACES = ("device", "dtype")  # arguments of a constructor that say where tensors are made, and of what


def make_again(model: nn.Module, known: Collection[str]) -> None:
    """Give buffers and attributes on the meta device that are not `known` their numbers, in place.

    The module that holds them is built alone, on the CPU, by what it holds under the names that its constructor takes.

    Raises InputError for one that cannot be built so.
    """
    lost = [path for path, x in passing_buffers(model).items() if x.is_meta and path not in known]
    lost += [".".join(map(str, place[:2])).lstrip(".") for place, x in attributes(model).items() if x.is_meta]
    for owner in dict.fromkeys(path.rpartition(".")[0] for path in lost):
        _remake(model.get_submodule(owner), owner, next(path for path in lost if path.rpartition(".")[0] == owner))


def _remake(module: nn.Module, path: str, lost: str) -> None:
    with torch.random.fork_rng(devices=[]):
        made, other = _built(module, lost), _built(module, lost)
    plain = dict.fromkeys(str(place[1]) for place, x in attributes(module).items() if not place[0] and x.is_meta)
    for name, x in module._buffers.items():
        if x is not None and x.is_meta:
            module._buffers[name] = _checked(made._buffers.get(name), other._buffers.get(name), x, lost)
    for name in plain:
        vars(module)[name] = _checked(vars(made).get(name), vars(other).get(name), vars(module)[name], lost)


def _built(module: nn.Module, lost: str) -> nn.Module:
    kind = type(module)
    wanted = [one for name, one in inspect.signature(kind).parameters.items() if name not in _PLACES]
    missing = [one.name for one in wanted if one.name not in vars(module)]
    if missing or next(module.parameters(), None) is not None:
        why = f"its {kind.__name__} does not keep its argument {missing[0]!r}" if missing else "it holds weights too"
        raise _refused(lost, why)
    try:
        with torch.device("cpu"):
            return kind(**{one.name: vars(module)[one.name] for one in wanted})
    except Exception as error:  # the user's own code
        raise _refused(lost, reason(error)) from error


def _checked(made: Any, other: Any, held: Any, lost: str) -> Any:
    """What was made, where it is such as is `held` and comes out the same twice."""
    one, two, wanted = (tree_leaves(x) for x in (made, other, held))
    if [_kind(x) for x in one] != [_kind(x) for x in wanted]:
        raise _refused(lost, "its constructor makes another one by what it keeps of its arguments")
    if not all(torch.equal(x, y) for x, y in zip(one, two, strict=True) if isinstance(x, Tensor)):
        raise _refused(lost, "its constructor draws it at random")
    return made


def _kind(x: Any) -> Any:
    return (tuple(x.shape), x.dtype) if isinstance(x, Tensor) else type(x)


def _refused(lost: str, why: str) -> InputError:
    return InputError(
        "holds no numbers: the source has none for it, and it cannot be made again",
        where=lost,
        why=why,
        next=f"put a tensor that is not on the meta device in its place: model.{lost} = …",
    )
