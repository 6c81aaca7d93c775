"""What a module takes and gives, as plain data: enough to call what was built of it as one calls the module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lilliput.errors import ExportError, InputError
from lilliput.model.capture import Inputs

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
    """Which argument each input is (position or keyword), and how the outputs are put together."""

    inputs: tuple[str | int, ...]
    outputs: Any  # "tensor", {"tuple": […]}, {"list": […]} or {"dict": [[key, …], …]}

    @classmethod
    def of(cls, inputs: Inputs, outputs: Any) -> Signature:
        """That of a call with `inputs` that was answered with `outputs`.

        >>> import torch
        >>> Signature.of(Inputs.of(torch.ones(1)), (torch.ones(1), {"a": torch.ones(2)}))
        Signature(inputs=(0,), outputs={'tuple': ['tensor', {'dict': [['a', 'tensor']]}]})
        """
        return cls(tuple(inputs.tensors()), _described(outputs))

    def arguments(self, given: Inputs) -> list[Tensor]:
        """The tensors of a call in the order of the inputs."""
        tensors = given.tensors()
        if set(tensors) != set(self.inputs):
            raise InputError(
                f"called with {', '.join(map(repr, tensors)) or 'nothing'}",
                next=f"give {', '.join(map(repr, self.inputs))}, as in the example it was built with",
            )
        return [tensors[key] for key in self.inputs]

    def assemble(self, tensors: Sequence[Any]) -> Any:
        """Outputs, from left to right, put together as the module does."""
        left = iter(tensors)
        return _assembled(self.outputs, left)

    @property
    def count(self) -> int:
        """How many tensors the outputs are."""
        return sum(1 for _ in _leaves(self.outputs))


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
