"""Edits that change what a model is made of: fewer modules, others, shorter axes, smaller numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import FormatError
from lilliput.model.carrier.config import is_config, own_configs
from lilliput.model.edits.edit import CARRIERS, SAME, Edit, owner_at
from lilliput.model.edits.stand_in import StandIn

_INDEX = ("idx", "index", "id", "number")  # how attributes end that hold the place of a module in a list
_REPLACEMENTS: Mapping[str, type[nn.Module]] = {"Identity": nn.Identity}
_MOST_OUTPUTS = 16
KEPT = "kept along "  # before the number of an axis: the places that `Resize` left there, counted before it


@dataclass(frozen=True, repr=False)
class Replace(Edit):
    """A module gives way to a simple one, named from a fixed list."""

    path: str
    by: str = "Identity"

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        if self.by not in _REPLACEMENTS:
            raise FormatError(f"no module may be replaced by {self.by!r}", where=self.path)
        _put(root, self.path, _REPLACEMENTS[self.by]())
        return True

    def places(self) -> tuple[str, ...]:
        return (self.path,)


@dataclass(frozen=True, repr=False)
class LeaveOut(Edit):
    """A module that gives what it takes gives way to a `StandIn`."""

    path: str
    zeros: bool
    outputs: int  # 0 where it gives a tensor, else the length of the tuple that it gives

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        if not 0 <= self.outputs <= _MOST_OUTPUTS:
            raise FormatError(f"a tuple of {self.outputs} from one module", where=self.path, next=SAME)
        _put(root, self.path, StandIn(self.zeros, self.outputs))
        return True

    def places(self) -> tuple[str, ...]:
        return (self.path,)


@dataclass(frozen=True, repr=False)
class Resize(Edit):
    """A tensor gets fewer rows, columns, or whatever its axes are; a tied one under all its paths.

    Without the tensor that it becomes, `value`, it gets its shape alone: a file holds what is in it otherwise. Beside
    that tensor travel the places that were kept along each axis that lost some, for whoever asks what went.
    """

    paths: tuple[str, ...]
    shape: tuple[int, ...]

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        if not self.paths:
            raise FormatError("an edit without a path", next="write the file again")
        for path in self.paths:
            owner, name = owner_at(root, path)
            held: Tensor | None = owner._parameters.get(name, owner._buffers.get(name))
            if held is None:
                raise FormatError(f"{type(owner).__name__} has no tensor {name!r} to resize", where=path, next=SAME)
            if not _smaller(self.shape, tuple(held.shape)):
                raise FormatError(
                    f"a tensor of shape {tuple(held.shape)} where one of at least {self.shape} was",
                    where=path,
                    next=SAME,
                )
            value = tensors.get("value", torch.zeros(self.shape))
            held.data = value.to(held.device, held.dtype, copy=True)
            held.grad = None
            if isinstance(owner, nn.RNNBase):
                owner._init_flat_weights()
        return True

    def places(self) -> tuple[str, ...]:
        return self.paths


@dataclass(frozen=True, repr=False)
class SetNumber(Edit):
    """A whole number that a module holds as an attribute, a size or a count, gets smaller.

    ``config.hidden_size`` is one of the config that a module holds; the model then gets a copy of all its configs.
    """

    module: str
    name: str
    value: tuple[int, ...]  # of an attribute that is one number, one

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        holder, name = _holder(root, self.module, self.name)
        held = holder.get(name)
        numbers = (held,) if type(held) is int else held
        if not isinstance(numbers, tuple | list) or not numbers or any(type(n) is not int for n in numbers):
            raise FormatError(f"there is no number {self.name!r}", where=self.module, next=SAME)
        if min(self.value, default=0) < 1 or not _smaller(self.value, tuple(numbers)):
            raise FormatError(f"{name} of {self.value} for one of {tuple(numbers)}", where=self.module, next=SAME)
        holder[name] = self.value[0] if type(held) is int else list(self.value) if type(held) is list else self.value
        return True

    def places(self) -> tuple[str, ...]:
        return (f"{self.module}.{self.name}",)


@dataclass(frozen=True, repr=False)
class SetFactor(Edit):
    """A factor that follows from a size, a fraction that a module holds as an attribute, becomes another."""

    module: str
    name: str
    value: float  # over 0

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        owner, name = owner_at(root, f"{self.module}.{self.name}" if self.module else self.name)
        held = vars(owner).get(name)
        if type(held) is not float or not (held > 0 and 0 < self.value < math.inf):
            raise FormatError(f"{name} of {self.value} for {held!r}", where=self.module, next=SAME)
        vars(owner)[name] = float(self.value)
        return True

    def places(self) -> tuple[str, ...]:
        return (f"{self.module}.{self.name}",)


@dataclass(frozen=True, repr=False)
class KeepEntries(Edit):
    """Of the entries of a list that a config holds, one for each layer, only some stay: ``config.layer_types``."""

    module: str
    name: str
    count: int  # of entries that there were
    kept: tuple[int, ...]

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        holder, name = _holder(root, self.module, self.name)
        held = holder.get(name)
        if "." not in self.name or type(held) is not list or len(held) != self.count:
            raise FormatError(f"there is no list {self.name!r} of {self.count}", where=self.module, next=SAME)
        _check_kept(self.kept, self.count, self.module)
        holder[name] = [held[i] for i in self.kept]
        return True

    def places(self) -> tuple[str, ...]:
        return (f"{self.module}.{self.name} of {self.count}",)


@dataclass(frozen=True, repr=False)
class KeepChildren(Edit):
    """Of the children of a list or sequence, only some stay; they are numbered anew.

    So are attributes, of the children or of what is inside, in which each of them holds its own number.
    """

    container: str
    count: int  # of children that there were
    kept: tuple[int, ...]

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        try:
            owner = root.get_submodule(self.container)
        except AttributeError:
            raise FormatError("the model has no such module", where=self.container, next=SAME) from None
        if not isinstance(owner, nn.ModuleList | nn.Sequential) or len(owner._modules) != self.count:
            raise FormatError(f"is no list of {self.count} modules", where=self.container, next=SAME)
        _check_kept(self.kept, self.count, self.container)
        children = list(owner._modules.values())
        places = {k: i for i, k in enumerate(self.kept)}
        for k, attributes, name in list(_numbered(children)):
            if k in places:
                attributes[name] = places[k]
        owner._modules.clear()
        owner._modules.update({str(i): children[k] for i, k in enumerate(self.kept)})
        return True

    def places(self) -> tuple[str, ...]:
        return (f"{self.container} of {self.count}",)


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    owner, name = placed(root, path)
    owner._modules[name] = module


def placed(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the one at `path`, and its name there."""
    owner, name = owner_at(root, path)
    if name not in owner._modules or isinstance(owner._modules[name], CARRIERS):
        raise FormatError("there is no such module", where=path, next=SAME)
    return owner, name


def _holder(root: nn.Module, module: str, name: str) -> tuple[dict[str, Any], str]:
    """The attributes among which `name` is: of a module, or of a config that one holds, then the model's own copy."""
    first, *inner = name.split(".")
    owner, _ = owner_at(root, f"{module}.{first}" if module else first)
    holder = vars(owner)
    if inner:
        own_configs(root)
    for key in inner:
        if not is_config(holder.get(first)):
            raise FormatError(f"{type(owner).__name__} has no config {first!r}", where=module, next=SAME)
        holder, first = vars(holder[first]), key
    return holder, first


def _numbered(children: list[nn.Module]) -> Iterator[tuple[int, dict[str, Any], str]]:
    """The attributes that hold the place of their module in a list, 0, 1, 2 …, and are called after that.

    Of each the place, all attributes of its module, and its name.
    """
    found: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for i, child in enumerate(children):
        for path, module in child.named_modules():
            for name in vars(module):
                if name.endswith(_INDEX):
                    found.setdefault((path, name), []).append((i, vars(module)))
    for (_, name), held in found.items():
        if len(held) > 1 and all(_is(attributes[name], i) for i, attributes in held):
            yield from ((i, attributes, name) for i, attributes in held)


def _is(x: Any, number: int) -> bool:
    return type(x) is int and x == number


def _check_kept(kept: tuple[int, ...], count: int, where: str) -> None:
    if not kept or any(a >= b for a, b in pairwise((-1, *kept, count))):
        raise FormatError(f"cannot keep {kept} of {count}", where=where, next=SAME)


def _smaller(shape: tuple[int, ...], held: tuple[int, ...]) -> bool:
    return len(shape) == len(held) and all(min(b, 1) <= a <= b for a, b in zip(shape, held, strict=True))
