"""Changes to a model as data, and the state that a list of them makes.

An edit holds mechanical facts only: paths, an encoding, finished tensors. Replaying it searches and computes nothing.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.encodings import EARLIER, ENCODINGS, Encoded, Encoding, tensor_digest
from lilliput.errors import EncodingError, FormatError, nearest, reason
from lilliput.model.carrier.carrier import VALUES, attach, encoded_names, encoded_tensors, owner_of
from lilliput.model.carrier.carrier import tensors as tensors_of
from lilliput.model.carrier.duplicate import apart_buffers
from lilliput.model.carrier.encoded_tensor import SUFFIX, EncodedTensor
from lilliput.model.edits.division import Divide
from lilliput.model.edits.edit import SAME, Edit, owner_at, structure
from lilliput.model.edits.structure import KeepChildren, KeepEntries, LeaveOut, Replace, Resize, SetFactor, SetNumber
from lilliput.model.views.values import (
    attach_value,
    child_name,
    value_encodings,
)
from lilliput.plain import digest


@dataclass(frozen=True, repr=False)
class EncodeTensor(Edit):
    """A tensor gets an encoding; a tied one under all its paths."""

    paths: tuple[str, ...]
    encoding: Encoding
    shape: tuple[int, ...]
    dtype: str

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        if not self.paths:
            raise FormatError("an edit without a path")
        for path in self.paths:
            _check_shape(_present(root, path), self.shape, path)
        dtype = _dtype(self.dtype)
        try:
            encoded = _assemble(self.encoding, self.shape, dtype, tensors)
            _check_shape(encoded.decode(), self.shape, self.paths[0])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise FormatError(
                f"parts of {self.encoding} that do not fit together", where=self.paths[0], why=reason(error)
            ) from error
        attach(root, self.paths, encoded)
        return False

    def stored(self, names: Iterable[str]) -> dict[str, str]:
        return _under(f"{self.paths[0]}{SUFFIX}.", names)

    def places(self) -> tuple[str, ...]:
        return self.paths


@dataclass(frozen=True, repr=False)
class EncodeValue(Edit):
    """A value that flows gets an encoding."""

    value: str
    encoding: Encoding

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        _check_value(self.encoding, tensors, self.value)
        attach_value(root, self.value, self.encoding, tensors)
        return False

    def stored(self, names: Iterable[str]) -> dict[str, str]:
        return _under(f"{VALUES}.{child_name(self.value)}.", names)

    def places(self) -> tuple[str, ...]:
        return (self.value,)


@dataclass(frozen=True, repr=False)
class SetTensor(Edit):
    """A parameter gets new values, or (a bias that was None) comes into being."""

    path: str

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        _check_shape(_present(root, self.path), tuple(tensors["value"].shape), self.path)
        owner, name = owner_of(root, self.path)
        value, parameter = tensors["value"], owner._parameters.get(name)
        if name in encoded_names(owner):
            raise EncodingError("an encoded tensor is not set, but encoded anew", where=self.path)
        if parameter is None:
            trained = any(held.requires_grad for held in tensors_of(owner).values())
            setattr(owner, name, nn.Parameter(value.clone(), trained))
        else:
            parameter.data = value.clone()
        return parameter is None

    def stored(self, names: Iterable[str]) -> dict[str, str]:
        return {"value": self.path}

    def places(self) -> tuple[str, ...]:
        return (self.path,)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = {str(kind).removeprefix("torch."): kind for kind in _FLOATS}


@dataclass(frozen=True, repr=False)
class Train(Edit):
    """All tensors get the values that training gave them; the digest of what was trained with tells how."""

    how: str

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        apart_buffers(root)
        for parameter in root.parameters():  # whose numbers a copy of the model may share
            parameter.data = parameter.data.clone()
        try:
            root.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise FormatError("trained weights that do not fit the model", why=reason(error)) from error
        return False

    def stored(self, names: Iterable[str]) -> dict[str, str]:
        return {name: name for name in names}

    def places(self) -> tuple[str, ...]:
        return ()


_EDITS = (
    EncodeTensor,
    EncodeValue,
    SetTensor,
    Replace,
    Resize,
    SetNumber,
    SetFactor,
    KeepChildren,
    KeepEntries,
    LeaveOut,
    Divide,
)
EDITS: Mapping[str, type] = ChainMap[str, Any](  # kinds in files
    {edit.__name__: edit for edit in _EDITS}, ENCODINGS, EARLIER
)


def edits_of(root: nn.Module) -> list[Edit]:
    """What leads from the constructor of `root` to what it is, values of its tensors aside."""
    encoded: list[Edit] = [
        EncodeTensor(paths, held.encoding, tuple(held.shape), str(held.dtype).removeprefix("torch."))
        for paths, held in encoded_tensors(root)
    ]
    values = [EncodeValue(name, encoder.encoding) for name, encoder in value_encodings(root).items()]
    return [*structure(root), *encoded, *values]


def _under(prefix: str, names: Iterable[str]) -> dict[str, str]:
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def _present(root: nn.Module, path: str) -> Tensor | EncodedTensor | None:
    """What is held at `path`; None for a bias that the layer was made without."""
    owner, name = owner_at(root, path)
    if name in encoded_names(owner):
        return owner._modules[name + SUFFIX]  # type: ignore[return-value]
    if name not in owner._parameters:
        raise FormatError(f"{type(owner).__name__} has no tensor {name!r}", where=path)
    return owner._parameters[name]


def _check_shape(held: Tensor | EncodedTensor | None, shape: tuple[int, ...], path: str) -> None:
    if held is not None and tuple(held.shape) != tuple(shape):
        raise FormatError(
            f"a tensor of shape {tuple(shape)} for one of {tuple(held.shape)}",
            where=path,
            next=SAME,
        )


def _assemble(encoding: Encoding, shape: tuple[int, ...], dtype: torch.dtype, tensors: Mapping[str, Tensor]) -> Encoded:
    """An encoded tensor again from its flat parts (``codes``, ``values.codes`` …)."""
    parts: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if "." not in name}
    for name, inner in encoding.nested().items():
        held = {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
        parts[name] = _assemble(inner, tuple(held["codes"].shape), torch.float32, held)
    encoding.check_parts(tuple(shape), parts)
    return Encoded(encoding, tuple(shape), dtype, parts)


def _check_value(encoding: Encoding, parts: Mapping[str, Tensor], value: str) -> None:
    """Refuse parameters with which a value cannot be encoded: it would only fail in a run."""
    try:
        encoding.check_value(parts)
        if any(x.dim() for x in parts.values()):
            raise ValueError(f"parts of shapes {[tuple(x.shape) for x in parts.values()]}")
    except ValueError as error:
        held = ", ".join(sorted(parts)) or "none"
        raise FormatError(f"{encoding} with the parts {held}", where=value, why=reason(error)) from error


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise FormatError(f"{name!r} is no type of a tensor that can be encoded", next=nearest(name, _DTYPES))
    return _DTYPES[name]


@dataclass(frozen=True)
class Step:
    """An edit with its tensors."""

    edit: Edit
    tensors: Mapping[str, Tensor]

    def digest(self) -> str:
        return digest(self.edit, {name: tensor_digest(x) for name, x in self.tensors.items()})


@dataclass(frozen=True)
class State:
    """A model (by the digest of it) and the edits made so far; never changed, an edit makes a new one."""

    base: str
    steps: tuple[Step, ...] = ()
    parent: str = field(default="", compare=False)

    @cached_property
    def digest(self) -> str:
        """Identifies the model that this state describes."""
        if not self.steps:
            return self.base
        return digest(self.parent, self.steps[-1].digest())

    def after(self, step: Step) -> State:
        return State(self.base, (*self.steps, step), self.digest)


def check_encodable(encoding: Encoding, path: str, x: Tensor) -> None:
    """Refuse what no encoding can hold: not a number, infinity, integers."""
    if not x.is_floating_point():
        raise EncodingError(f"a tensor of {x.dtype}", where=path, next=f"only floating-point tensors become {encoding}")
    if not bool(torch.isfinite(x).all()):
        raise EncodingError("holds NaN or infinity", where=path, next="repair the weights before compressing")
