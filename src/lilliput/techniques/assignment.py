"""Which encoding each weight, and each value that flows, gets: paths, or patterns of them, to encodings."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lilliput.disk import whole_file
from lilliput.encodings import ENCODINGS, Encoding, Sparse
from lilliput.errors import RecipeError, nearest
from lilliput.model.carrier.carrier import encoded_tensors
from lilliput.model.views.values import value_encodings
from lilliput.plain import from_plain, to_plain, to_toml, toml_key, toml_of
from lilliput.techniques.where import names_of

FLOAT = "float"  # in plain data, which TOML can hold too
_VALUE = re.compile(":[^:]*#")  # in the name of a value, where a module's own may hold a colon


class Assignment(Mapping[str, Encoding | None]):
    """Encodings by the paths of weights or of the layers that hold them, and by the names of values; None is float.

    A path may be a pattern, with * and ?. Where several mean a weight, the one with most letters counts, whatever their
    order. What is not meant stays as it is.

    >>> from lilliput.encodings import Int
    >>> rule = Assignment({"*": Int(8), "encoder.*": Int(4), "encoder.0": None})
    >>> rule.of_path("head.weight"), rule.of_path("encoder.1.weight"), rule.of_path("encoder.0.weight")
    (Int(), Int(bits=4), None)
    >>> Assignment.from_toml(rule.to_toml()) == rule
    True
    """

    def __init__(self, encodings: Mapping[str, Encoding | str | None]) -> None:
        self._of: dict[str, Encoding | None] = {}
        for pattern, given in encodings.items():
            encoding = None if given == FLOAT else given
            if not isinstance(pattern, str) or not pattern:
                raise RecipeError(f"{pattern!r} is no path", next='name layers by text, such as "encoder.*"')
            if pattern.startswith("!"):
                raise RecipeError(f"a path that begins with !: {pattern!r}", next=f"give {pattern[1:]!r}: None")
            if encoding is not None and not isinstance(encoding, Encoding):
                raise RecipeError(
                    f"is {given!r}", where=pattern, next="give an encoding such as Int(8), or None: float"
                )
            self._of[pattern] = encoding

    @classmethod
    def of(cls, model: nn.Module) -> Assignment:
        """What the weights of a compressed model have, and the values that flow in it, each by its own name."""
        weights = {paths[0]: _numbers(held.encoding) for paths, held in encoded_tensors(model)}
        return cls({**weights, **{name: held.encoding for name, held in value_encodings(model).items()}})

    @classmethod
    def by(cls, model: nn.Module, rule: Callable[[str, Tensor], Encoding | None]) -> Assignment:
        """What `rule` says of each parameter that may be a layer's weight: those of two axes and more.

        >>> from lilliput.encodings import Int
        >>> net = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 2))
        >>> print(Assignment.by(net, lambda path, x: Int(4) if x.numel() > 200 else None))
        0.weight  Int(bits=4)
        1.weight  float
        """
        return cls({path: rule(path, x.detach()) for path, x in model.named_parameters() if x.dim() > 1})

    @property
    def weights(self) -> Assignment:
        """The part that is about weights, for ``Quantize(weights=…)``."""
        return Assignment({name: one for name, one in self.items() if not _VALUE.search(name)})

    @property
    def activations(self) -> Assignment:
        """The part that names values that flow, for ``Quantize(activations=…)``."""
        return Assignment({name: one for name, one in self.items() if _VALUE.search(name)})

    def within(self, paths: Collection[str]) -> Assignment:
        """What of it means any of the tensors at `paths`."""
        return Assignment({name: one for name, one in self.items() if any(_means(name, path) for path in paths)})

    def of_path(self, path: str) -> Encoding | None:
        """What a weight gets; None for float.

        Raises RecipeError where two patterns of as many letters say otherwise.
        """
        best = self._best(path)
        return None if best is None else self._of[best]

    def of_tie(self, paths: Sequence[str]) -> Encoding | None:
        """What one tensor of several paths gets: what some of them are told counts more than what all are.

        Raises RecipeError where two of them are told otherwise.
        """
        found = {path: best for path in paths if (best := self._best(path)) is not None}
        own = {path: best for path, best in found.items() if not all(_means(best, other) for other in paths)}
        told = {path: self._of[best] for path, best in (own or found).items()}
        if len(set(told.values())) > 1:
            (one, first), (other, second) = next((a, b) for a in told.items() for b in told.items() if a[1] != b[1])
            raise RecipeError(
                f"one tensor gets {first or FLOAT} as {one} and {second or FLOAT} as {other}",
                where=", ".join(paths),
                next="give both the same",
            )
        return next(iter(told.values()), None)

    def of_values(self, field: str, names: Iterable[str]) -> dict[str, Encoding | None]:
        """What those of these values get that are named.

        Raises RecipeError where something names none of them.
        """
        known, found, met = list(names), dict[str, Encoding | None](), set[str]()
        for name in known:
            patterns = [pattern for pattern in self.activations if fnmatch.fnmatchcase(name, pattern)]
            met.update(patterns)
            if best := self._longest(patterns):
                found[name] = self._of[best]
        for pattern in self.activations:
            if pattern not in met:
                raise RecipeError(f"{pattern!r} names no value that flows", where=field, next=nearest(pattern, known))
        return found

    def check(self, field: str, paths: Iterable[str]) -> None:
        """Refuse what means none of the tensors at `paths`."""
        known = list(paths)
        names = {name for path in known for name in names_of(path)}
        for pattern in self.weights:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                modules = {path.rpartition(".")[0] or path for path in known}
                raise RecipeError(f"{pattern!r} names no layer", where=field, next=nearest(pattern, modules))

    def _best(self, path: str) -> str | None:
        return self._longest(pattern for pattern in self if _means(pattern, path) and not _VALUE.search(pattern))

    def _longest(self, patterns: Iterable[str]) -> str | None:
        found = sorted(patterns, key=_letters)
        if len(found) > 1 and _letters(found[-1]) == _letters(found[-2]) and self._of[found[-1]] != self._of[found[-2]]:
            raise RecipeError(
                f"{found[-2]!r} and {found[-1]!r} are as long, and mean one layer otherwise",
                next="name the layer by its whole path, or by more of it",
            )
        return found[-1] if found else None

    def in_words(self) -> dict[str, Any]:
        """As plain data (`to_plain`); None is a word."""
        return {name: FLOAT if one is None else to_plain(one) for name, one in self.items()}

    def to_toml(self) -> str:
        """One line each, as `from_toml` reads them."""
        return "".join(f"{toml_key(name)} = {to_toml(one)}\n" for name, one in self.in_words().items())

    @classmethod
    def from_toml(cls, text: str) -> Assignment:
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError("the assignment is not TOML", why=str(error)) from None
        return cls({name: from_plain(given, ENCODINGS, name) for name, given in data.items()})

    @classmethod
    def read(cls, path: str | Path) -> Assignment:
        return cls.from_toml(toml_of(path, "assignment"))

    def save(self, path: str | Path) -> Path:
        """Write it as TOML, to be read, changed by hand, and given again."""
        with whole_file(Path(path)) as file:
            file.write(self.to_toml().encode())
        return Path(path)

    def __getitem__(self, pattern: str) -> Encoding | None:
        return self._of[pattern]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def __hash__(self) -> int:
        return hash(frozenset(self._of.items()))

    def __repr__(self) -> str:
        return repr(self._of)

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:{width}}  {FLOAT if one is None else one}" for name, one in self.items())


def assigned(given: Encoding | Mapping[str, Encoding | None] | None) -> Assignment:
    """An encoding for all that is meant, or one for each."""
    if isinstance(given, Assignment):
        return given
    return Assignment(given if isinstance(given, Mapping) else {} if given is None else {"*": given})


def _numbers(encoding: Encoding) -> Encoding | None:
    """The numbers alone: zeros that an earlier step has set last by themselves."""
    return encoding.values if isinstance(encoding, Sparse) else encoding


def _means(pattern: str, path: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names_of(path))


def _letters(pattern: str) -> int:
    return len(re.sub(r"[*?]", "", pattern))
