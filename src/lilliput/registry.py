"""What users add: their techniques, encodings, fits, roundings, scalings, terms and targets, beside ours."""

from __future__ import annotations

from abc import ABC
from collections.abc import MutableMapping
from typing import Any, TypeVar

from lilliput.encodings import ENCODINGS, Encoding
from lilliput.errors import InputError
from lilliput.model.carrier.identity import identity
from lilliput.recipe import KINDS, PLUGINS, TECHNIQUES
from lilliput.targets import TARGETS, Target
from lilliput.techniques.combinations import ADDED, FITS
from lilliput.techniques.distill import TERMS, Term
from lilliput.techniques.plugin import Plugin
from lilliput.techniques.ranges import Range
from lilliput.techniques.rounding import ROUNDINGS, Rounding
from lilliput.techniques.scalings import SCALINGS, Scaling
from lilliput.techniques.scores import SCORES, Score
from lilliput.techniques.technique import Technique

Kind = TypeVar("Kind", bound=type)
_ROOMS: tuple[tuple[type, MutableMapping[str, Any]], ...] = (
    (Technique, TECHNIQUES),
    (Encoding, ENCODINGS),
    (Range, FITS),
    (Rounding, ROUNDINGS),
    (Scaling, SCALINGS),
    (Score, SCORES),
    (Term, TERMS),
    (Plugin, PLUGINS),
    (Target, TARGETS),
)
_added = list[type]()


def register(kind: Kind) -> Kind:
    """Make a class of yours as good as ours: recipes in TOML, files, reports and folders of runs take it by its name.

    `kind` is a frozen dataclass, a subclass of one of the base classes here: `Technique`, `Encoding`, `Range` (a fit),
    `Rounding`, `Scaling`, `Score` (of pruning), `Term` (of distillation), `Plugin` (of training), `Target`. Whoever
    loads a `.lil` that holds such an encoding registers the class first; the graph inside opens without it. Returns
    `kind`: a decorator.

    Raises InputError for what is no such class, and for a name that another class has.

    >>> import torch
    >>> from dataclasses import dataclass
    >>> from lilliput.techniques.technique import Technique
    >>> from lilliput.recipe import Recipe
    >>> @register
    ... @dataclass(frozen=True, repr=False)
    ... class Nothing(Technique):
    ...     def apply(self, run):
    ...         run.note("", "nothing was done")
    >>> Recipe.from_toml(Recipe([Nothing()]).to_toml())
    Recipe(steps=(Nothing(),))
    >>> forget(Nothing)
    """
    known, name = _room(kind), _name(kind)
    held = known.get(name) or (None if known is TARGETS else KINDS.get(name))
    if held is not None and _source(held) != _source(kind):
        raise InputError(f"there is a {name} already", where=_source(kind), next="give the class another name")
    if held is not None and held not in _added:  # one of ours
        return kind
    if held is not None:
        forget(held)
    known[name] = kind
    _added.append(kind)
    if issubclass(kind, Encoding):
        ADDED.add(kind)
    return kind


def forget(kind: type) -> None:
    """Take a class out again that `register` has put in."""
    if kind in _added:
        _added.remove(kind)
        del _room(kind)[_name(kind)]
        ADDED.discard(kind)


def additions(target: Target | None = None) -> dict[str, Any]:
    """What the classes that were added do, as plain data: results depend on their code, and on that of their bases.

    A `target` of such a class depends on the parts that it names as well.
    """
    parts = (target.prefers, target.writes, target.runs) if target is not None and type(target) in _added else ()
    return {
        f"{_source(kind)} {name}": identity(_function(held))
        for kind in (*_added, *map(type, parts))
        for base in reversed(kind.__mro__)  # so that what a class has of its own counts
        if base not in (object, ABC) and not base.__module__.startswith("lilliput.")
        for name, held in vars(base).items()
        if not name.startswith("__") or name == "__post_init__"
    }


def _function(held: Any) -> Any:
    """What a property, a class method or a static method computes by; anything else as it is."""
    return getattr(held, "fget", None) or getattr(held, "__func__", held)


def _room(kind: Any) -> MutableMapping[str, Any]:
    rooms = [known for base, known in _ROOMS if isinstance(kind, type) and issubclass(kind, base)]
    if not rooms:
        bases = ", ".join(base.__name__ for base, _ in _ROOMS)
        raise InputError(f"register of {kind!r}", next=f"give a subclass of one of {bases}")
    made = vars(kind).get("__dataclass_params__")
    if made is None or not made.frozen:
        raise InputError(
            "is no frozen dataclass", where=_source(kind), next="write @dataclass(frozen=True, repr=False) above it"
        )
    return rooms[0]


def _name(kind: type) -> str:
    return str(kind.name) if issubclass(kind, Target) else kind.__name__


def _source(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
