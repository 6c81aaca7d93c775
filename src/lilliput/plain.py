"""Frozen dataclasses as plain data (what JSON and TOML hold) and back.

An object is written as ``{"kind": <class name>, <field>: <value>, …}``; fields at their default are left out, so that
files stay readable and a new knob does not change old ones. Reading looks kinds up in an explicit list: nothing is
imported or called by name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints, runtime_checkable

from lilliput.errors import RecipeError, nearest

NONE = "none"  # in TOML


@runtime_checkable
class InWords(Protocol):
    """What is plain data in a form of its own."""

    def in_words(self) -> Any: ...


def to_plain(thing: Any) -> Any:
    """`thing` as numbers, strings, lists and dicts.

    >>> from lilliput.encodings import Int
    >>> to_plain(Int(4, group=32))
    {'kind': 'Int', 'bits': 4, 'group': 32}
    """
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        kept = {
            field.name: to_plain(getattr(thing, field.name))
            for field in dataclasses.fields(thing)
            if getattr(thing, field.name) != field.default
        }
        return {"kind": type(thing).__name__, **kept}
    if isinstance(thing, InWords):
        return thing.in_words()
    if isinstance(thing, Mapping):
        return {str(key): to_plain(value) for key, value in thing.items()}
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return [to_plain(item) for item in thing]
    return thing


def from_plain(data: Any, kinds: Mapping[str, type], where: str = "") -> Any:
    """The object that `to_plain` wrote; unknown kinds and fields are refused, with the nearest known name.

    >>> from lilliput.encodings import ENCODINGS
    >>> from_plain({"kind": "Int", "bits": 4}, ENCODINGS)
    Int(bits=4)
    """
    if isinstance(data, list):
        return tuple(from_plain(item, kinds, f"{where}[{i}]") for i, item in enumerate(data))
    if not isinstance(data, dict):
        return data
    if "kind" not in data:
        raise RecipeError("a table without `kind`", where=where, next=f"known kinds: {', '.join(sorted(kinds))}")
    kind = data["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise RecipeError(f"unknown kind {kind!r}", where=where, next=nearest(str(kind), kinds))
    cls = kinds[kind]
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    fields = {key: value for key, value in data.items() if key != "kind"}
    for key in fields:
        if key not in known:
            raise RecipeError(f"{kind} has no field {key!r}", where=where, next=nearest(key, known))
    values = {key: _field(cls, key, value, kinds, f"{where}.{key}" if where else key) for key, value in fields.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise RecipeError(f"{kind} cannot be made from these fields", where=where, why=str(error)) from error


def _field(cls: type, key: str, value: Any, kinds: Mapping[str, type], where: str) -> Any:
    """What a field holds: a table without `kind` is one by name, where the field takes such."""
    if isinstance(value, dict) and "kind" not in value and Mapping in _options(_hints(cls)[key]):
        return {name: from_plain(item, kinds, f"{where}.{name}") for name, item in value.items()}
    if value == NONE and {str, type(None)} & {*_options(_hints(cls)[key])} == {type(None)}:
        return None
    return from_plain(value, kinds, where)


def to_toml(value: Any) -> str:
    """Plain data as one line of TOML, which has no null: what is None is the word ``"none"``.

    >>> to_toml({"kind": "Int", "bits": 4, "a.b": [True, None]})
    '{kind = "Int", bits = 4, "a.b" = [true, "none"]}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_key(key)} = {to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(NONE if value is None else value, ensure_ascii=False)  # the rest is written alike


def toml_of(path: str | Path, what: str) -> str:
    """The text of a TOML file; raises RecipeError, which says what it was to be, where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"the {what} cannot be read", where=str(path), why=error.strerror or "") from None
    except UnicodeDecodeError:
        raise RecipeError(f"the {what} is no text", where=str(path), next="give a TOML file") from None


def toml_key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def check_types(thing: Any, where: str) -> None:
    """Refuse a dataclass, or one inside it, whose fields hold something else than they are declared to hold."""
    hints = _hints(type(thing))  # type: ignore[arg-type]  # classes are hashable
    for field in dataclasses.fields(thing):
        value, place = getattr(thing, field.name), f"{where}.{field.name}"
        if not _fits(value, hints[field.name]):
            declared = str(field.type).replace(" | None", ", or None")
            raise RecipeError(f"is {value!r}", where=place, next=f"give what it takes: {declared}")
        if dataclasses.is_dataclass(value):
            check_types(value, place)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _options(hint: Any) -> tuple[Any, ...]:
    """What a declared type offers: the classes of a union."""
    held = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(get_origin(option) or option for option in held)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is Mapping:
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(None) if hint is None else hint)


def canonical(data: Any) -> bytes:
    """`data` as JSON bytes that are equal whenever the data is."""
    return json.dumps(to_plain(data), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def digest(*parts: Any) -> str:
    """SHA-256 over plain data, in hexadecimal; tensors go in by their own digest.

    >>> digest("a", 1) == digest("a", 1), digest("a", 1) == digest("a", 2)
    (True, False)
    """
    return hashlib.sha256(canonical(list(parts))).hexdigest()


def short_repr(thing: Any) -> str:
    """The constructor call of a frozen dataclass without the fields at their default."""
    shown = [
        f"{field.name}={getattr(thing, field.name)!r}"
        for field in dataclasses.fields(thing)
        if getattr(thing, field.name) != field.default
    ]
    return f"{type(thing).__name__}({', '.join(shown)})"
