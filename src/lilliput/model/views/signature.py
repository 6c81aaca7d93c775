"""What a module takes and gives, as plain data: enough to call what was built of it as one calls the module."""

from __future__ import annotations

import functools
import inspect
import keyword
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lilliput.errors import ExportError, FormatError, InputError
from lilliput.model.views.arguments import Arguments
from lilliput.model.views.passed import given_back, in_graph, is_leaf, passes_as
from lilliput.structures import DEEPEST, comparable, is_plain, is_tensor, parts

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Outputs(dict[Any, Any]):
    """Named outputs, by key and as attributes.

    >>> Outputs(logits=1).logits
    1
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Signature:
    """Which argument each input is (position or keyword), what else is fixed, and how the outputs are put together."""

    inputs: tuple[str | int, ...]
    outputs: Any  # a leaf (`passes_as`), {"tuple": […]}, {"list": […]}, {"dict": [[key, …], …]} or named fields
    parameters: tuple[str, ...] = ()  # that take positions, in order
    constants: Mapping[str, Any] = field(default_factory=dict)  # by parameter: the arguments that are no tensors
    required: tuple[str, ...] = ()  # those of them that the module takes otherwise unless they are given

    @classmethod
    def of(cls, inputs: Arguments, outputs: Any, forward: Any = None) -> Signature:
        """That of a call of `forward` with `inputs` that was answered with `outputs`.

        >>> import torch
        >>> from lilliput.model.views.inputs import Inputs
        >>> Signature.of(Inputs.of(torch.ones(1)), (torch.ones(1), {"a": torch.ones(2)})).outputs
        {'tuple': ['tensor', {'dict': [['a', 'tensor']]}]}
        >>> told = Signature.of(Inputs.of({"x": torch.ones(1), "k": 2}), torch.ones(1), lambda x, k=1, up=True: x)
        >>> told.constants, told.required
        ({'k': 2, 'up': True}, ('k',))
        """
        known = {} if forward is None else inspect.signature(forward).parameters
        parameters = tuple(name for name, one in known.items() if one.kind in _POSITIONAL)
        defaults = {name: one.default for name, one in known.items() if is_plain(one.default)}
        given = {_named(key, parameters): value for key, value in inputs.named()}
        plain = {name: x for name, x in given.items() if not is_tensor(x)}
        parted = {name.partition(".")[0] for name in given.keys() - plain.keys()}  # that hold tensors, or are some
        fixed = {
            name: _as_stored(x) for name, x in {**defaults, **plain}.items() if name in plain or name not in parted
        }
        required = tuple(name for name, x in fixed.items() if name not in defaults or not _same(x, defaults[name]))
        return cls(tuple(inputs.tensors()), _described(outputs), parameters, fixed, required)

    def to_plain(self) -> dict[str, Any]:
        """As a file holds it."""
        return {
            "inputs": list(self.inputs),
            "outputs": self.outputs,
            "parameters": list(self.parameters),
            "constants": dict(self.constants),
            "required": list(self.required),
        }

    @classmethod
    def read(cls, data: Mapping[str, Any], where: str) -> Signature:
        """From a file, which may lack what only later versions write; raises FormatError for what is not sound."""
        lists = {key: data.get(key, []) for key in ("inputs", "parameters", "required")}
        constants = data.get("constants", {})
        texts = all(type(name) is str for key in ("parameters", "required") for name in lists[key])
        if (
            not all(isinstance(held, list) for held in lists.values())
            or not all(type(key) in (int, str) for key in lists["inputs"])
            or not (texts and isinstance(constants, dict) and is_plain(constants))
            or not sound(data.get("outputs"))
        ):
            raise FormatError("is not told how to be called", where=where)
        inputs, parameters, required = (tuple(lists[key]) for key in ("inputs", "parameters", "required"))
        return cls(inputs, data["outputs"], parameters, constants, required)

    def arguments(self, given: Arguments) -> list[Any]:
        """The tensors or arrays of a call in the order of the inputs.

        Raises InputError for other arguments than those of the example, and other values of those that are constants.
        """
        named = {_named(key, self.parameters): value for key, value in given.named()}
        wanted = [_named(key, self.parameters) for key in self.inputs]
        tensors = {name for name, x in named.items() if is_tensor(x)}
        if tensors != set(wanted):
            raise InputError(
                f"called with {', '.join(repr(key) for key, _ in given.named()) or 'nothing'}",
                next=f"give {', '.join(map(repr, wanted))} as tensors, as in the example it was built with",
            )
        for name in (*self.required, *(named.keys() - tensors)):
            if name not in named or name not in self.constants or not _same(self.constants[name], named[name]):
                raise self._fixed(name, named)
        return [named[name] for name in wanted]

    def _fixed(self, name: str, named: Mapping[str, Any]) -> InputError:
        given = repr(named[name]) if name in named else "not given"
        if name not in self.constants:
            return InputError(f"is {given}", where=name, next="leave it out, as in the example it was built with")
        return InputError(
            f"is {given}, and was {self.constants[name]!r} in the example that this was built with",
            where=name,
            why="an argument that is no tensor is a constant of what was built",
            next=f"give {name}={self.constants[name]!r}, or build another with an example that has the other value",
        )

    def assemble(self, tensors: Sequence[Any]) -> Any:
        """Outputs of the graph, from left to right, put together as the module does."""
        left = iter(tensors)
        return _assembled(self.outputs, left)

    @property
    def count(self) -> int:
        """How many outputs the graph has."""
        return sum(map(in_graph, _leaves(self.outputs)))


def _named(key: str | int, parameters: Sequence[str]) -> str:
    """The parameter that takes an argument, or a part of one, whether it is given by position or by keyword."""
    first, dot, rest = str(key).partition(".")
    if isinstance(key, str) and not (dot and first.isdigit()):
        return key
    index = int(first)
    return f"{parameters[index] if 0 <= index < len(parameters) else f'argument {index}'}{dot}{rest}"


def _as_stored(x: Any) -> Any:
    """A plain value as a file gives it back: tuples are lists there."""
    if isinstance(x, tuple | list):
        return [_as_stored(held) for held in x]
    return {key: _as_stored(held) for key, held in x.items()} if isinstance(x, dict) else x


def _same(a: Any, b: Any) -> bool:
    """Whether plain values are the same to a module, for which 1 and True, 1 and 1.0 may differ."""
    return repr(_as_stored(a)) == repr(_as_stored(b))


def _described(out: Any) -> Any:
    held = parts(out)
    if held is None:
        return passes_as(out)
    name, keys = type(out).__name__, [key for key, _ in held.items]
    if held.kind == "named" and _names_fields(name, keys):
        return {"named": [[key, _described(value)] for key, value in held.items], "type": name}
    if held.kind != "dict":
        return {"list" if held.kind == "list" else "tuple": [_described(value) for _, value in held.items]}
    for key in keys:
        if type(key) not in (str, int):
            raise ExportError(
                f"the model answers with a dict that has the key {key!r}",
                why="a file names outputs by texts and whole numbers",
                next="give it such keys, or return a tuple",
            )
    return {"dict": [[key, _described(value)] for key, value in held.items if parts(value) or comparable(value)]}


def _inner(structure: Any) -> list[Any] | None:
    """The structures within one; None for a leaf."""
    if is_leaf(structure):
        return None
    return [
        item[1] if kind in ("dict", "named") else item
        for kind, items in structure.items()
        if kind != "type"
        for item in items
    ]


def _leaves(structure: Any) -> Iterator[Any]:
    inner = _inner(structure)
    if inner is None:
        yield structure
    for item in inner or ():
        yield from _leaves(item)


def _assembled(structure: Any, left: Iterator[Any]) -> Any:
    inner = _inner(structure)
    if inner is None:
        return given_back(structure, next(left)) if in_graph(structure) else structure["constant"]
    values = [_assembled(item, left) for item in inner]
    if "dict" in structure:
        return Outputs(zip((key for key, _ in structure["dict"]), values, strict=True))
    if "named" in structure:
        return _named_tuple(structure["type"], tuple(key for key, _ in structure["named"]))(*values)
    return values if "list" in structure else tuple(values)


@functools.cache
def _named_tuple(name: str, names: tuple[str, ...]) -> Any:
    return namedtuple(name, names)  # the one that the module has is in its source


def sound(structure: Any, depth: int = 0) -> bool:
    """Whether this is the structure of outputs, as a file may hold it."""
    if is_leaf(structure):
        return True
    if depth > DEEPEST or not isinstance(structure, dict):
        return False
    if structure.keys() not in ({"tuple"}, {"list"}, {"dict"}, {"named", "type"}):
        return False
    items = next(items for kind, items in structure.items() if kind != "type")
    if not isinstance(items, list):
        return False
    if structure.keys() & {"tuple", "list"}:
        return all(sound(item, depth + 1) for item in items)
    if not all(isinstance(item, list) and len(item) == 2 and type(item[0]) in (str, int) for item in items):
        return False
    if "type" in structure and not _names_fields(structure["type"], [key for key, _ in items]):
        return False
    return all(sound(value, depth + 1) for _, value in items)


def _names_fields(name: Any, keys: list[Any]) -> bool:
    """Whether a named tuple can be called so, and have such fields: Python makes its class of them."""
    names = [name, *keys]
    proper = all(type(key) is str and key.isidentifier() and not keyword.iskeyword(key) for key in names)
    return proper and len(set(keys)) == len(keys) and not any(key.startswith("_") for key in keys)
