"""Where tensors come from: a module, safetensors files, a `.lil`. Each answers for a slice at a time.

So a checkpoint larger than memory can pass through. Files are read with ordinary reads, not mapped: mapped pages count
as resident memory, and a file that another process cuts short ends this one without a word.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from lilliput import entropy
from lilliput.errors import FormatError, InputError
from lilliput.file.container import Reader
from lilliput.file.index import no_number, once
from lilliput.file.names import apart
from lilliput.model.names import ATTRIBUTE

SAFETENSORS = ".safetensors"
_LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
_LARGEST_NAME, _MOST_AXES, _LONGEST_AXIS = 1 << 12, 64, 1 << 48  # what a `.lil` can say
_SCAN = 1 << 20  # elements looked at in one go
_AGAIN = "the file is damaged or cut short: get it again"

_BITS: dict[str, int] = {  # of an element of each type of safetensors
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
_DTYPES: dict[str, str] = {  # those that a `.lil` knows, by the names there
    **{"BOOL": "bool", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}
_BYTES = np.dtype(np.uint8)


class Source(ABC):
    """Named tensors, of which any slice can be asked for."""

    @abstractmethod
    def names(self) -> list[str]:
        """Of all tensors, in the order in which they are best read."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]: ...

    @abstractmethod
    def dtype(self, name: str) -> np.dtype:
        """A type that a `.lil` knows; bfloat16 and float8 are those of ml_dtypes."""

    @abstractmethod
    def _elements(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Elements of the flattened tensor, 0 ≤ first ≤ last ≤ its count."""

    def read(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """A tensor; or, flattened, its elements `first` to `last`, with the meaning of a Python slice."""
        shape = self.shape(name)
        if first == 0 and last is None:
            return self._elements(name, 0, prod(shape)).reshape(shape)
        begin, end, _ = slice(first, last).indices(prod(shape))
        return self._elements(name, begin, max(begin, end))


def source(thing: Any) -> Source:
    """What answers for a torch module, a safetensors file, a folder of them, or a `.lil` file.

    A tensor of a type that a `.lil` does not know comes as its bytes, of shape [bytes]. Raises InputError for anything
    else, FormatError for a file that is not sound.

    >>> from torch import nn
    >>> net = source(nn.Linear(3, 2))
    >>> net.names(), net.shape("weight"), net.dtype("weight"), net.read("weight", 4).shape
    (['weight', 'bias'], (2, 3), dtype('float32'), (2,))
    """
    if isinstance(thing, Source):
        return thing
    if not isinstance(thing, str | os.PathLike):
        return OfModule(thing)
    path = Path(thing)
    if path.is_dir():
        return Folder({name: file for name, file in walk(path)[0].items() if is_safetensors(name)}, str(path))
    if is_safetensors(path.name):
        return Safetensors(path)
    if path.suffix == ".lil":
        return OfLil(path)
    raise InputError(
        "is nothing that tensors can be read from" if path.exists() else "there is no such file or folder",
        where=str(path),
        next="give a .safetensors file, a folder of them, or a .lil file",
    )


def is_safetensors(name: str) -> bool:
    return name.lower().endswith(SAFETENSORS)


def read_elements(path: Path, offset: int, kind: np.dtype, number: int) -> NDArray[Any]:
    """So many elements of a file, from a byte on, by an ordinary read."""
    out = np.empty(number, kind)
    view, got = memoryview(out.view(np.uint8)), 0  # type: ignore[arg-type]
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while got < len(view) and (more := file.readinto(view[got:])):
                got += more
    except OSError as error:
        raise InputError("cannot be read", where=str(path), why=error.strerror or str(error)) from error
    if got < len(view):
        raise InputError("became shorter while it was read", where=str(path), next="try again when it is whole")
    return out


@dataclass(frozen=True)
class _Stored:
    """A tensor in a safetensors file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # from the beginning of the file
    bytes: int

    def as_bytes(self) -> _Stored:
        return replace(self, dtype=_BYTES, shape=(self.bytes,))


class Safetensors(Source):
    """One safetensors file; its tensors in the order in which they lie there.

    `head_bytes` is the size of what comes before them.
    """

    def __init__(self, path: str | Path, where: str = "") -> None:
        self.path, self.where = Path(path), where or str(path)
        try:
            self.bytes = self.path.stat().st_size
        except OSError as error:
            raise InputError("cannot be read", where=self.where, why=error.strerror or str(error)) from error
        header = self._header()
        try:
            self._tensors = _tensors(header, self.head_bytes, self.bytes)
        except _Unsound as error:
            raise self._refused(str(error)) from None
        self._unseen = {name for name, tensor in self._tensors.items() if tensor.dtype == np.bool_}

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def dtype(self, name: str) -> np.dtype:
        return self._tensor(name).dtype

    def _elements(self, name: str, first: int, last: int) -> NDArray[Any]:
        held = self._tensor(name)
        return read_elements(self.path, held.offset + first * held.dtype.itemsize, held.dtype, last - first)

    def _tensor(self, name: str) -> _Stored:
        """A tensor; one of truth values is looked through when it is first asked for, for its bytes may be any."""
        if name not in self._tensors:
            raise InputError(f"holds no tensor {name!r}", where=self.where)
        if name in self._unseen:
            self._unseen.remove(name)
            held = self._tensors[name].as_bytes()
            spans = ((at, min(_SCAN, held.bytes - at)) for at in range(0, held.bytes, _SCAN))
            if any(read_elements(self.path, held.offset + at, _BYTES, n).max() > 1 for at, n in spans):
                self._tensors[name] = held
        return self._tensors[name]

    def _header(self) -> Any:
        if self.bytes < 8:
            raise self._refused("it is too short to have a header")
        size = int(read_elements(self.path, 0, np.dtype("<u8"), 1)[0])
        self.head_bytes = 8 + size
        if self.head_bytes > self.bytes:
            raise self._refused("the header goes past the end", _remedy(self.path))
        if size > _LARGEST_HEADER:
            raise self._refused(f"a header of {size:,} bytes, more than {_LARGEST_HEADER:,}")
        data = read_elements(self.path, 8, _BYTES, size).tobytes()
        if data[:1] != b"{":
            raise self._refused("the header does not begin with {")
        try:
            return json.loads(data.decode(), object_pairs_hook=once, parse_constant=no_number)
        except (ValueError, RecursionError) as error:
            raise self._refused(f"the header cannot be read: {str(error)[:100]}") from None

    def _refused(self, why: str, next: str = _AGAIN) -> FormatError:
        return FormatError("is not a sound safetensors file", where=self.where, why=why, next=next)


class Folder(Source):
    """Safetensors files by their paths relative to a folder; names that several of them hold carry that path.

    `listed` has for each file the names of its tensors here, in the order in which they lie in it.
    """

    def __init__(self, files: Mapping[str, Path], where: str) -> None:
        if not files:
            raise InputError("no safetensors file is there", where=where, next="give a checkpoint in safetensors files")
        self.where = where
        self.files = {path: Safetensors(files[path]) for path in sorted(files)}
        self.listed, self._places = _named(self.files)

    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        file, own = self._place(name)
        return file.shape(own)

    def dtype(self, name: str) -> np.dtype:
        file, own = self._place(name)
        return file.dtype(own)

    def _elements(self, name: str, first: int, last: int) -> NDArray[Any]:
        file, own = self._place(name)
        return file._elements(own, first, last)

    def _place(self, name: str) -> tuple[Safetensors, str]:
        if name not in self._places:
            raise InputError(f"no file there holds a tensor {name!r}", where=self.where)
        return self._places[name]


class OfLil(Source):
    """The tensors of the model in a `.lil` file, as they are stored: codes and scales of those that are encoded."""

    def __init__(self, path: str | Path) -> None:
        self._reader = Reader(path)

    def names(self) -> list[str]:
        return [name for name in self._reader.entries if not apart(name) and not name.startswith(f"{ATTRIBUTE}:")]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._reader.entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        kind = entropy.dtype_called(self._reader.entry(name).dtype)
        assert kind is not None  # the reader refuses others
        return kind

    def _elements(self, name: str, first: int, last: int) -> NDArray[Any]:
        return self._reader.read(name, first, last)


class OfModule(Source):
    """The `state_dict` of a torch module; encoded tensors as they are stored."""

    def __init__(self, module: Any) -> None:
        from torch import Tensor, nn

        if not isinstance(module, nn.Module):
            raise InputError(
                f"a {type(module).__name__} is nothing that tensors can be read from",
                next="give a module, a .safetensors file, a folder of them, or a .lil file",
            )
        held = module.state_dict()
        for name, value in held.items():
            if not isinstance(value, Tensor):
                raise InputError(f"is a {type(value).__name__}, no tensor", where=name)
            if entropy.dtype_called(str(value.dtype).removeprefix("torch.")) is None:
                raise FormatError(f"tensors of {value.dtype} cannot be stored", where=name)
        self._held = held
        self._flat: tuple[str, Any] = ("", None)  # the last one, for of some layouts flattening is a copy

    def names(self) -> list[str]:
        return list(self._held)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensor(name).shape)

    def dtype(self, name: str) -> np.dtype:
        kind = entropy.dtype_called(str(self._tensor(name).dtype).removeprefix("torch."))
        assert kind is not None
        return kind

    def _elements(self, name: str, first: int, last: int) -> NDArray[Any]:
        from lilliput.model.carrier.arrays import to_array

        if self._flat[0] != name or self._flat[1] is None:
            self._flat = (name, self._tensor(name).detach().reshape(-1))
        return to_array(self._flat[1][first:last])

    def _tensor(self, name: str) -> Any:
        if name not in self._held:
            raise InputError(f"the module holds no tensor {name!r}")
        return self._held[name]


def walk(folder: Path, leave: Callable[[str], bool] = lambda path: False) -> tuple[dict[str, Path], list[str]]:
    """The files under a folder by their relative paths, sorted; and what was left, folders with ``/`` at the end.

    Links are followed; one that leads to a folder it lies in is refused, and so is what is neither file nor folder.
    """
    found: dict[str, Path] = {}
    left: list[str] = []

    def enter(here: Path, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            path, place = prefix + entry.name, here / entry.name
            if leave(path):
                left.append(path + "/" * place.is_dir())
            elif place.is_dir():
                itself = _identity(place)
                if itself in above:
                    raise InputError("leads back to a folder that it lies in", where=str(place), next="remove the link")
                enter(place, f"{path}/", above | {itself})
            elif place.is_file():
                found[path] = place
            else:
                what = "is a link to nothing" if entry.is_symlink() else "is neither a file nor a folder"
                raise InputError(what, where=str(place), next="remove it, or leave it out")

    try:
        enter(folder, "", frozenset((_identity(folder),)))
    except OSError as error:
        raise InputError("cannot be read", where=error.filename, why=error.strerror or str(error)) from error
    return dict(sorted(found.items())), sorted(left)


def _identity(folder: Path) -> tuple[int, int]:
    held = folder.stat()
    return held.st_dev, held.st_ino


class _Unsound(ValueError):
    """Why a header is refused."""


def _tensors(header: Any, begin: int, end: int) -> dict[str, _Stored]:
    """The tensors that a header lists, which fill the file from `begin` to `end`."""
    if not isinstance(header, dict):
        raise _Unsound("the header is no object")
    _check_metadata(header.pop("__metadata__", None))
    placed = sorted(((*_offsets(name, entry), name) for name, entry in header.items()), key=lambda one: one[:2])
    tensors: dict[str, _Stored] = {}
    at = 0
    for first, last, name in placed:
        if first != at or last < first:
            raise _Unsound(f"{name!r} overlaps another tensor, or leaves a gap")
        tensors[name] = _stored(name, header[name], begin + first, last - first)
        at = last
    if begin + at != end:
        raise _Unsound(f"the tensors take {at:,} bytes, and the file has {end - begin:,} for them")
    return tensors


def _check_metadata(data: Any) -> None:
    if data is not None and not (isinstance(data, dict) and all(isinstance(value, str) for value in data.values())):
        raise _Unsound("__metadata__ is no object of strings")


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not _naturals(offsets) or len(offsets) != 2:
        raise _Unsound(f"{name!r} has no two data_offsets")
    return offsets[0], offsets[1]


def _stored(name: str, entry: dict[str, Any], offset: int, size: int) -> _Stored:
    """A tensor as its type says; as bytes where a `.lil` could not say it."""
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or not _naturals(shape):
        raise _Unsound(f"{name!r} has no dtype, or no shape")
    if dtype in _BITS and not _is_size(shape, _BITS[dtype], size):
        raise _Unsound(f"{name!r} of {dtype} {str(shape)[:80]} does not take {size:,} bytes")
    sayable = len(shape) <= _MOST_AXES and prod(max(1, n) for n in shape) < _LONGEST_AXIS
    kind = entropy.dtype_called(_DTYPES.get(dtype, ""))
    if kind is None or not sayable:
        return _Stored(_BYTES, (size,), offset, size)
    return _Stored(kind, tuple(shape), offset, size)


def _is_size(shape: list[int], bits: int, size: int) -> bool:
    """Whether elements of so many bits take so many bytes; without the product of a million large numbers."""
    number = 0 if 0 in shape else 1
    for n in shape:
        number *= n
        if number * bits > size * 8:
            return False
    return number * bits == size * 8


def _naturals(data: Any) -> TypeGuard[list[int]]:
    return isinstance(data, list) and all(type(n) is int and n >= 0 for n in data)


def _remedy(path: Path) -> str:
    """What to do about a file whose first bytes are no size."""
    pointer = read_elements(path, 0, _BYTES, 8).tobytes() == b"version "  # of Git LFS, in place of the file
    return "this is a Git LFS pointer: run git lfs pull" if pointer else _AGAIN


def _named(
    files: Mapping[str, Safetensors],
) -> tuple[dict[str, list[str]], dict[str, tuple[Safetensors, str]]]:
    """What each tensor of each file is called, each name once and such as a `.lil` can hold."""
    times = Counter(name for file in files.values() for name in file.names())
    plain = {name for name, n in times.items() if n == 1 and _holdable(name)}
    listed: dict[str, list[str]] = {path: [] for path in files}
    places: dict[str, tuple[Safetensors, str]] = {}
    for path, file in files.items():
        for own in file.names():
            free = (name for name in _candidates(path, own) if name not in places and name not in plain)
            name = own if own in plain else next(free)
            listed[path].append(name)
            places[name] = (file, own)
    return listed, places


def _holdable(name: str) -> bool:
    return len(name) <= _LARGEST_NAME and not name.startswith(":")  # a colon begins what is no tensor of the model


def _candidates(path: str, own: str) -> Iterator[str]:
    """Further names for a tensor, the first of them its own with the path of its file."""
    whole = f"{path}:{own}"
    if len(whole) <= _LARGEST_NAME:
        yield whole
    yield from (f"{whole[: _LARGEST_NAME - 16]}:{n}" for n in count(2))
