"""The calibration batches' way through a network whose blocks are not in memory, from one section to the next.

To see what flows into a section, each batch runs from the beginning, and ends there. In place of the blocks before it
stand their answers, so that only what lies between blocks is computed again, whatever the network does there. Of each
list of blocks the last answers are kept. Earlier ones are exchanged for NaN: a section that reads them is seen so.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lilliput.errors import InputError, LilliputError, raise_own
from lilliput.feeding import Batches, ask, fingerprint
from lilliput.model.views.inputs import Inputs
from lilliput.streaming.sections import Arguments, Section

_CALL = "_compiled_call_impl"  # of a module: what torch calls in place of its forward and hooks, if it is set


class _Arrived(BaseException):
    """Ends a pass at a section."""

    def __init__(self, path: str, args: Any, kwargs: Any) -> None:
        super().__init__(path)
        self.path, self.args_given, self.kwargs_given = path, args, kwargs


class Passes:
    """All batches on their way through `model`; they stop at each of the sections until it is passed."""

    def __init__(self, model: nn.Module, sections: Sequence[Section], batches: Batches) -> None:
        self.model, self.batches = model, batches
        self._answers: dict[str, list[Any]] = {}  # of the last block passed of each list, by its path
        self.batch, self.called = 0, set[str]()  # which batch is on its way, and the blocks that it has passed
        for path in (path for section in sections for path in section.paths):
            _exchange(model, path, functools.partial(_stop, path))

    def arrive(self) -> tuple[str, list[Arguments]]:
        """Where the batches come to next, and what each brings; an empty path where they have come to the end."""
        found: list[tuple[str, Arguments | None]] = []
        for i, inputs in enumerate(self.batches):
            where = f"{self.batches.field}[{i}]"
            found.append(self._arrived(i, inputs, where))
        path = found[0][0]
        for i, (other, _) in enumerate(found):
            if other != path:
                raise _apart(f"{self.batches.field}[{i}]", other, path)
        brought = [one for _, one in found if one is not None]
        for i, one in enumerate(brought):
            if not one.like(brought[0]):
                raise InputError(
                    "is called with other plain values for another batch",
                    where=path,
                    why=f"those of {self.batches.field}[{i}] differ from those of {self.batches.field}[0]",
                    next="give batches of one kind",
                )
        return path, brought

    def leave(self, section: Section) -> None:
        """Nothing stops there any more: its modules are called as they are."""
        for path in section.paths:
            vars(self.model.get_submodule(path)).pop(_CALL, None)

    def passed(self, section: Section, path: str, answers: list[Any]) -> None:
        """What a block gives, for each batch; it is not called again."""
        self.leave(section)
        siblings = path.rpartition(".")[0]
        for other in [held for held in self._answers if held.rpartition(".")[0] == siblings]:
            lost = [tree_map(_lost, one) for one in self._answers.pop(other)]
            _exchange(self.model, other, _Given(other, lost, self))
        self._answers[path] = answers
        _exchange(self.model, path, _Given(path, answers, self))

    def _arrived(self, i: int, inputs: Inputs, where: str) -> tuple[str, Arguments | None]:
        self.batch, self.called = i, set[str]()
        try:
            with torch.no_grad():
                ask(self.model, inputs, where)
        except _Arrived as arrived:
            found = Arguments.of(arrived.path, arrived.args_given, arrived.kwargs_given)
            if any(x.is_floating_point() and bool(x.isnan().any()) for x in found.tensors):
                raise InputError(
                    "is given NaN",
                    where=arrived.path,
                    why=f"with {where}; or it reads what blocks before the last one gave, which is not kept",
                    next="look at the batches, or compress the whole network: lp.apply",
                ) from None
            return arrived.path, found
        return "", None


def check_calls(model: nn.Module, sections: Sequence[Section], inputs: Inputs) -> None:
    """Refuse blocks that are called twice, or with objects, as far as the model runs without numbers."""
    seen: set[str] = set()

    def called(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        Arguments.of(path, args, kwargs)
        if path in seen:
            raise _twice(path)
        seen.add(path)

    blocks = {section.paths[0] for section in sections if section.block}
    for path in blocks:
        hook = functools.partial(called, path)
        model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad(), torch.device("meta"):
            inputs.map(lambda key, x: x.to("meta")).call(model)
    except LilliputError:
        raise
    except Exception as error:  # of code that reads numbers, which are not there yet
        raise_own(error)


def _twice(path: str) -> InputError:
    return InputError(
        "is called twice",
        where=path,
        why="a block that is in memory for a while runs once",
        next="compress the whole network: lp.apply",
    )


def _apart(where: str, path: str, other: str) -> InputError:
    return InputError(
        f"goes to {path or 'the end'} where the first batch goes to {other or 'the end'}",
        where=where,
        why="batches go through the network together, section by section",
        next="give batches that take the same way, or compress the whole network: lp.apply",
    )


def _stop(path: str, *args: Any, **kwargs: Any) -> None:
    raise _Arrived(path, args, kwargs)


class _Given:
    """Answers for a block, to each batch its own."""

    def __init__(self, path: str, answers: list[Any], passes: Passes) -> None:
        self.path, self.answers, self.passes = path, answers, passes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.path in self.passes.called:
            raise _twice(self.path)
        self.passes.called.add(self.path)
        given = self.answers[self.passes.batch]
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) and not _is_lost(x) else x, given)


def _exchange(model: nn.Module, path: str, call: Callable[..., Any]) -> None:
    vars(model.get_submodule(path))[_CALL] = call


def _lost(x: Any) -> Any:
    """In place of a tensor that is not kept: one of no memory, that shows where it is read."""
    if not isinstance(x, Tensor):
        return x
    return x.new_full((), torch.nan if x.is_floating_point() else 0).expand(x.shape)


def _is_lost(x: Tensor) -> bool:
    return x.numel() > 1 and not any(x.stride())


@dataclass(frozen=True)
class Flow(Batches):
    """What flows into a section from the sections as they are encoded by now; and from those as they were."""

    now: Sequence[Inputs] = ()
    before: Sequence[Inputs] = ()

    @classmethod
    def of(cls, now: Sequence[Inputs], before: Sequence[Inputs], where: str) -> Flow:
        digest = hashlib.sha256("".join(map(fingerprint, (*now, *before))).encode()).hexdigest()
        return cls(now, where, digest, len(now), now=now, before=before)

    @property
    def original(self) -> Flow:
        return Flow(self.before, self.field, self.digest, self.samples, now=self.before, before=self.before)

    def __iter__(self) -> Iterator[Inputs]:
        return iter(self.now)


def answers(model: nn.Module, flow: Sequence[Inputs], where: str) -> list[Any]:
    """What a section gives for each batch."""
    with torch.no_grad():
        return [ask(model, inputs, where) for inputs in flow]
