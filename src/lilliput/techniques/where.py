"""Which modules and tensors the patterns of `where=` mean."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterable, Sequence

from lilliput.errors import RecipeError

Where = str | tuple[str, ...]


def means(where: Where, names: Iterable[str]) -> bool:
    """Whether patterns mean what has these names: one of them meets a pattern, and none a pattern with a leading ``!``.

    >>> means(("layer1*", "!*.1"), ["layer1.0"]), means(("layer1*", "!*.1"), ["layer1.0", "layer1.1"])
    (True, False)
    """
    patterns, names = ((where,) if isinstance(where, str) else where), list(names)
    wanted = [p for p in patterns if not p.startswith("!")] or ["*"]
    refused = [p.removeprefix("!") for p in patterns if p.startswith("!")]
    return _met(wanted, names) and not _met(refused, names)


def chosen(path: str, where: Where) -> bool:
    """Whether a module or tensor is meant, by its path or that of its parent.

    >>> chosen("layer1.conv", "layer1*"), chosen("fc", ("*", "!fc"))
    (True, False)
    """
    return means(where, names_of(path))


def names_of(path: str) -> tuple[str, str]:
    """What a tensor is called in patterns: itself, and the module that holds it."""
    return path, path.rpartition(".")[0]


def check_where(where: Where, paths: Sequence[str], field: str = "where") -> None:
    """Refuse a `where`, or another field of its kind, that means no tensor at all."""
    if not any(chosen(path, where) for path in paths):
        listing = ", ".join(sorted({path.rpartition(".")[0] for path in paths})[:8])
        raise RecipeError(f"{field}={where!r} matches no layer", next=f"layers are called {listing} …")


def but(paths: Iterable[str]) -> list[str]:
    """Patterns that mean all but these, beside `"*"`."""
    return [f"!{glob.escape(path)}" for path in sorted(paths)]


def _met(patterns: Iterable[str], names: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)
