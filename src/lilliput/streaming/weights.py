"""The tensors of a network on the meta device as a source has them: all checked by name, shape and type before work."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput import entropy
from lilliput.errors import FormatError, InputError, nearest, reason
from lilliput.file.container import Part
from lilliput.file.sources import Folder, Source, source
from lilliput.model.carrier.arrays import to_tensor
from lilliput.streaming.sections import Section

_FLOATS = ("float16", "bfloat16", "float32")  # which float32 holds without loss
_SHOWN = 4  # names in a message
_INDEX = "*.safetensors.index.json"


class Weights:
    """What a source has for each name of a model's `state_dict`; a tied tensor may be there under any of its names.

    Raises InputError for what the source lacks, or has of another shape or type, and FormatError for damaged files.
    """

    def __init__(self, model: nn.Module, given: Any) -> None:
        self.where, self._source = _where(given), opened(given)
        held = model.state_dict(keep_vars=True)
        for name, x in held.items():
            if not isinstance(x, Tensor):
                raise InputError(f"is a {type(x).__name__}, no tensor", where=name, next="hold it in a buffer")
        self.names = _tied(held)
        there = dict.fromkeys(self._source.names())
        self._at = {
            name: next(other for other in names if other in there)
            for name, names in self.names.items()
            if any(other in there for other in names)
        }
        self._check_names(held, there)
        for name in self._at:
            self._check_like(name, held[name])

    def has(self, name: str) -> bool:
        return name in self._at

    def dtype(self, name: str) -> torch.dtype:
        """As the source has it."""
        found: torch.dtype = getattr(torch, self._kind(name))
        return found

    def read(self, name: str) -> Tensor:
        """The tensor, in the type that the source has it in."""
        return to_tensor(np.asarray(self._asked(name, 0, None)))

    def fill(self, modules: Mapping[str, nn.Module], without: Iterable[Section] = ()) -> None:
        """Give modules, by their paths, the numbers that the source has, floats as float32; what is tied stays so.

        But for what lies in sections `without`.
        """
        made: dict[str, nn.Parameter | Tensor] = {}
        left = list(without)
        for path, module in _all_within(modules):
            for kind in (module._parameters, module._buffers):
                for name in [name for name, x in kind.items() if x is not None]:
                    full = f"{path}.{name}" if path else name
                    if self.has(full) and not any(section.holds(full) for section in left):
                        first = self.names[full][0]
                        if first not in made:
                            made[first] = self._made(full, kind[name])
                        kind[name] = made[first]  # type: ignore[assignment]

    def _made(self, name: str, held: Any) -> nn.Parameter | Tensor:
        x = self.read(name)
        x = x.float() if x.is_floating_point() else x
        return nn.Parameter(x, held.requires_grad) if isinstance(held, nn.Parameter) else x

    def part(self, name: str) -> Part:
        """The tensor as it is written: a slice is read at a time."""
        shape = tuple(self._source.shape(self._at[name]))
        return Part(name, self._kind(name), shape, functools.partial(self._asked, name))

    def _asked(self, name: str, first: int, last: int | None) -> Any:
        try:
            return self._source.read(self._at[name], first, last)
        except (OSError, KeyError, ValueError, TypeError) as error:  # of a source of the user's
            raise InputError("cannot be read", where=self._told(name), why=reason(error)) from error

    def _kind(self, name: str) -> str:
        return entropy.name_of(np.dtype(self._source.dtype(self._at[name]))) or ""

    def _told(self, name: str) -> str:
        return f"{self.where}: {self._at[name]}"

    def _check_names(self, held: Mapping[str, Tensor], there: Mapping[str, None]) -> None:
        lacking = [name for name, x in held.items() if name not in self._at and x.is_meta]
        if lacking:
            raise InputError(
                f"lacks {_some(lacking)}",
                where=self.where,
                why=f"the source has {_some(list(there)) or 'no tensor'}",
                next=nearest(lacking[0], there) or "give the source of this very network",
            )
        if unknown := [name for name in there if name not in held]:
            raise InputError(
                f"has {_some(unknown)}, which the model has not",
                where=self.where,
                next=nearest(unknown[0], held) or "give the model that the source is of",
            )

    def _check_like(self, name: str, held: Tensor) -> None:
        shape, kind = tuple(self._source.shape(self._at[name])), self._kind(name)
        if shape != tuple(held.shape):
            raise InputError(
                f"has the shape {shape}, and {tuple(held.shape)} in the model",
                where=self._told(name),
                next="give the model the config that the source was made by",
            )
        wanted = _FLOATS if held.is_floating_point() else (str(held.dtype).removeprefix("torch."),)
        if kind not in wanted:
            raise InputError(
                f"is {self._source.dtype(self._at[name])}, and the model wants {' or '.join(wanted)}",
                where=self._told(name),
                next="convert it first",
            )


def _all_within(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for path, module in modules.items():
        yield from module.named_modules(prefix=path, remove_duplicate=False)


def opened(given: Any) -> Source:
    """What is given as a source: of a folder with an index of shards, the files that the index names.

    Any object will do that answers as a `Source` does: `names()`, `shape(name)`, `dtype(name)`, a NumPy type, and
    `read(name, first, last)`, an array of the flattened tensor's elements.
    """
    if isinstance(given, str | Path) and Path(given).is_dir():
        listed = sorted(Path(given).glob(_INDEX))
        if len(listed) > 1:
            raise InputError(f"has {len(listed)} indices of shards", where=str(given), next="give a folder of one")
        return _of_index(listed[0]) if listed else source(given)
    asked = ("names", "shape", "dtype", "read")
    if not isinstance(given, nn.Module) and all(callable(getattr(given, name, None)) for name in asked):
        own: Source = given
        return own
    return source(given)


def _of_index(path: Path) -> Source:
    """The shards that an index lists; each must be there, and hold what the index says."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        sound = all(type(name) is str and type(file) is str for name, file in listed.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError("is no index of shards", where=str(path), why=reason(error), next=_AGAIN) from error
    files = sorted(set(listed.values())) if sound else []
    if not files or any(Path(file).name != file for file in files):
        why = "weight_map names no files beside it"
        raise FormatError("is no index of shards", where=str(path), why=why, next=_AGAIN)
    if missing := [file for file in files if not (path.parent / file).is_file()]:
        raise InputError(f"lacks {_some(missing)}", where=str(path.parent), why=f"{path.name} names it", next=_AGAIN)
    found = Folder({file: path.parent / file for file in files}, str(path.parent))
    for name, file in listed.items():
        if name not in found.listed[file]:
            raise InputError(
                f"holds no {name!r}", where=str(path.parent / file), why=f"{path.name} says so", next=_AGAIN
            )
    return found


_AGAIN = "get the checkpoint again, whole"


def _tied(held: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """For each name all names of the same tensor."""
    of = defaultdict[int, list[str]](list)
    for name, x in held.items():
        of[id(x)].append(name)
    return {name: tuple(of[id(x)]) for name, x in held.items()}


def _where(given: Any) -> str:
    return str(given) if isinstance(given, str | Path) else f"source, a {type(given).__name__}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
