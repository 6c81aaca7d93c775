"""What a module takes and gives, as plain data: enough to call what was built of it as one calls the module."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lilliput.errors import ExportError, FormatError, InputError
from lilliput.model.inputs import Inputs, is_plain

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_DEEPEST = 32  # structures within structures


class Outputs(dict[str, Any]):
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
    outputs: Any  # "tensor", {"tuple": […]}, {"list": […]} or {"dict": [[key, …], …]}
    parameters: tuple[str, ...] = ()  # that take positions, in order
    constants: Mapping[str, Any] = field(default_factory=dict)  # by parameter: the arguments that are no tensors
    required: tuple[str, ...] = ()  # those of them that the module takes otherwise unless they are given

    @classmethod
    def of(cls, inputs: Inputs, outputs: Any, forward: Any = None) -> Signature:
        """That of a call of `forward` with `inputs` that was answered with `outputs`.

        >>> import torch
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
        constants = {**defaults, **{name: x for name, x in given.items() if not isinstance(x, Tensor)}}
        fixed = {name: _as_stored(x) for name, x in constants.items() if not isinstance(given.get(name), Tensor)}
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

    def arguments(self, given: Inputs) -> list[Tensor]:
        """The tensors of a call in the order of the inputs.

        Raises InputError for other arguments than those of the example, and other values of those that are constants.
        """
        named = {_named(key, self.parameters): value for key, value in given.named()}
        wanted = [_named(key, self.parameters) for key in self.inputs]
        tensors = {name for name, x in named.items() if isinstance(x, Tensor)}
        if tensors != set(wanted):
            raise InputError(
                f"called with {', '.join(map(repr, named)) or 'nothing'}",
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
        """Outputs, from left to right, put together as the module does."""
        left = iter(tensors)
        return _assembled(self.outputs, left)

    @property
    def count(self) -> int:
        """How many tensors the outputs are."""
        return sum(1 for _ in _leaves(self.outputs))


def _named(key: str | int, parameters: Sequence[str]) -> str:
    """The parameter that takes an argument, whether it is given by position or by keyword."""
    if isinstance(key, str):
        return key
    return parameters[key] if key < len(parameters) else f"argument {key}"


def _as_stored(x: Any) -> Any:
    """A plain value as a file gives it back: tuples are lists there."""
    if isinstance(x, tuple | list):
        return [_as_stored(held) for held in x]
    return {key: _as_stored(held) for key, held in x.items()} if isinstance(x, dict) else x


def _same(a: Any, b: Any) -> bool:
    """Whether plain values are the same to a module, for which 1 and True, 1 and 1.0 may differ."""
    return repr(_as_stored(a)) == repr(_as_stored(b))


def _described(out: Any) -> Any:
    if isinstance(out, Tensor):
        return "tensor"
    if isinstance(out, Mapping):
        return {"dict": [[str(key), _described(value)] for key, value in out.items() if not _constant(value)]}
    if isinstance(out, tuple | list):
        kind = "list" if isinstance(out, list) else "tuple"
        return {kind: [_described(value) for value in out if not _constant(value)]}
    raise ExportError(f"outputs of type {type(out).__name__}", next="return tensors, in tuples, lists or dicts")


def _constant(value: Any) -> bool:
    """Whether an output is none of a graph's."""
    return value is None or isinstance(value, int | float | str)


def _leaves(structure: Any) -> Iterator[str]:
    if structure == "tensor":
        yield structure
        return
    ((kind, items),) = structure.items()
    for item in items:
        yield from _leaves(item[1] if kind == "dict" else item)


def _assembled(structure: Any, left: Iterator[Any]) -> Any:
    if structure == "tensor":
        return next(left)
    ((kind, items),) = structure.items()
    if kind == "dict":
        return Outputs((key, _assembled(inner, left)) for key, inner in items)
    return (list if kind == "list" else tuple)(_assembled(inner, left) for inner in items)


def sound(structure: Any, depth: int = 0) -> bool:
    """Whether this is the structure of outputs, as a file may hold it."""
    if structure == "tensor":
        return True
    if depth > _DEEPEST or not isinstance(structure, dict) or len(structure) != 1:
        return False
    ((kind, items),) = structure.items()
    if kind not in ("tuple", "list", "dict") or not isinstance(items, list):
        return False
    if kind == "dict":
        pairs = all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) for item in items)
        return pairs and all(sound(item[1], depth + 1) for item in items)
    return all(sound(item, depth + 1) for item in items)
