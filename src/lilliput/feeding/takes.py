"""What `forward` takes of a batch: the inputs, without labels, texts, and whatever else lies beside them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any

import numpy as np
from torch import Tensor

from lilliput.errors import InputError
from lilliput.feeding.rows import Uneven
from lilliput.model.views.inputs import Inputs

LABELS = frozenset(  # what networks call that which they make a loss of, if they are given it
    ("label", "labels", "label_ids", "next_sentence_label", "target", "targets", "start_positions", "end_positions")
)
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

LeftOut = dict[str, str]  # of a batch: what is no input, and why


@dataclass(frozen=True)
class Takes:
    """The parameters of a `forward`; None where Python does not tell them, and so takes anything.

    >>> import torch
    >>> def forward(x, mask=None, labels=None): ...
    >>> batch = {"x": torch.ones(2), "labels": torch.ones(2), "id": "a"}
    >>> inputs, left_out = Takes.of(forward).inputs(batch, "calibrate[0]")
    >>> list(inputs.tensors()), left_out
    (['x'], {'labels': 'labels never become an input', 'id': 'forward takes nothing of that name'})
    """

    parameters: Mapping[str, Parameter] | None = None
    also: frozenset[str] | None = field(default=frozenset())  # names that **kwargs takes; None: any

    @classmethod
    def of(cls, forward: Callable[..., Any]) -> Takes:
        """Those of a function."""
        try:
            known = inspect.signature(forward).parameters
        except (TypeError, ValueError):  # what is no Python
            return cls()
        rest = next((name for name, one in known.items() if one.kind is Parameter.VAR_KEYWORD), None)
        return cls(known, frozenset() if rest is None else _typed(rest, known[rest].annotation, forward))

    def inputs(self, batch: Any, where: str) -> tuple[Inputs, LeftOut]:
        """The inputs that lie in a batch, and what does not become one.

        A dict gives arguments by keyword; a tuple or list gives them by position, or first a dict of them and then
        what is none. Raises InputError where that holds no inputs.
        """
        given, left_out = batch, LeftOut()
        if isinstance(batch, tuple | list) and batch and self._are_keywords(batch[0]):
            given = batch[0]
            left_out = {f"[{i}]": "it follows the inputs" for i in range(1, len(batch))}
        if isinstance(given, Mapping) and self._are_keywords(given):
            given, more = self._by_keyword(given)
            left_out = {**more, **left_out}
        elif isinstance(given, Mapping):  # one argument
            left_out = {str(key): why for key, value in given.items() if (why := _no_input(key, value))}
            given = ({key: value for key, value in given.items() if str(key) not in left_out},)
        elif isinstance(given, tuple | list):
            given, left_out = self._by_position(given)
        _check_even(given, where)
        try:
            inputs = Inputs.of(given)
        except InputError as error:
            raise InputError(error.what, where=where, why=error.why, next=error.next) from None
        self._check(inputs, where)
        return inputs, left_out

    def _check(self, inputs: Inputs, where: str) -> None:
        """Refuse inputs that lack what `forward` needs."""
        if self.parameters is None:
            return
        try:
            inspect.Signature(list(self.parameters.values())).bind(*inputs.args, **inputs.kwargs)
        except TypeError as error:
            needs = ", ".join(name for name in self.parameters if self._needs(name)) or "nothing"
            raise InputError(
                "the model does not take this input",
                where=where,
                why=str(error),
                next=f"give what forward takes: {needs}",
            ) from None

    def _needs(self, name: str) -> bool:
        """Whether a call without this argument fails."""
        one = (self.parameters or {}).get(name)
        passing = one is not None and one.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        return one is not None and one.default is Parameter.empty and not passing

    def _are_keywords(self, given: Any) -> bool:
        """Whether a dict holds arguments by name, and is not one argument itself."""
        if not isinstance(given, Mapping):
            return False
        if self.parameters is None or self.also is None:
            return True
        needed = [one for name, one in self.parameters.items() if self._needs(name)]
        takes_one = len(needed) == 1 and needed[0].annotation not in (Tensor, "Tensor", "torch.Tensor")
        return any(self._knows(key) for key in given) or not takes_one

    def _knows(self, key: Any) -> bool:
        if self.parameters is None or self.also is None:
            return isinstance(key, str)
        one = self.parameters.get(key)
        passing = (Parameter.POSITIONAL_ONLY, Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        return key in self.also or (one is not None and one.kind not in passing)

    def _by_keyword(self, batch: Mapping[Any, Any]) -> tuple[dict[str, Any], LeftOut]:
        why = {key: self._why_not(key, value) for key, value in batch.items()}
        taken = {key: value for key, value in batch.items() if not why[key]}
        return taken, {str(key): reason for key, reason in why.items() if reason}

    def _by_position(self, batch: Sequence[Any]) -> tuple[tuple[Any, ...], LeftOut]:
        known = (self.parameters or {}).values()
        places: list[str] = [one.name for one in known if one.kind in _POSITIONAL]
        if self.parameters is None or any(one.kind is Parameter.VAR_POSITIONAL for one in known):
            return tuple(batch), {}
        end, why = len(places), f"forward takes no more than {len(places)} by position"
        for i, (name, value) in enumerate(zip(places, batch, strict=False)):
            if reason := self._why_not(name, value):
                end, why = i, reason
                break
        return tuple(batch[:end]), {f"[{i}]": why for i in range(end, len(batch))}

    def _why_not(self, name: Any, value: Any) -> str:
        """Why something in a batch is no input; empty where it is one."""
        if self._needs(name):
            return ""
        if not self._knows(name) and name not in (self.parameters or {}) and name not in LABELS:
            return "forward takes nothing of that name"
        return _no_input(name, value)


def _no_input(name: Any, value: Any) -> str:
    """Why what goes by this name is no input of any network that can do without it; empty where it may be one."""
    if name in LABELS:
        return "labels never become an input"
    return "texts are no input" if _texts(value) else ""


def _texts(value: Any) -> bool:
    """Whether this is a list of texts, or an array of things that are no numbers."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "biufcV"
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str | bytes) for one in value)


def _check_even(given: Any, where: str) -> None:
    held = given.items() if isinstance(given, Mapping) else enumerate(given if isinstance(given, tuple) else ())
    for name, value in held:
        if isinstance(value, Uneven):
            shapes = sorted(set(value.shapes))
            raise InputError(
                f"input {name!r} has samples of the shapes {shapes[0]} to {shapes[-1]}",
                where=where,
                why="no tensor holds them together",
                next="give collate=, a function from a list of samples to a batch, such as a collator that pads",
            )


def _typed(name: str, annotation: Any, forward: Callable[..., Any]) -> frozenset[str] | None:
    """The names that `**kwargs` of this type takes (`Unpack` of a `TypedDict`); None where it takes any."""
    if isinstance(annotation, str):
        try:
            annotation = typing.get_type_hints(inspect.unwrap(forward), include_extras=True)[name]
        except Exception:  # names that are there for type checkers alone
            return None
    (told, *_) = typing.get_args(annotation) or (None,)
    return told.__required_keys__ | told.__optional_keys__ if typing.is_typeddict(told) else None


ANY = Takes(None, None)
