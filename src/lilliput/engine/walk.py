"""Forward passes that wait: all calibration batches go through the model together, and stop wherever it is changed.

Each batch runs in a thread of its own, one at a time; while it waits, it holds what its forward holds there, which
without gradients is little more than the values that flow. So a layer is fitted to what the layers before it, as they
are encoded by then, make of the data, in one pass, and in memory for the activations of one place in the model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lilliput.model.parameters import read
from lilliput.model.values import Interception
from lilliput.model.view import Call
from lilliput.task import Batches, ask


class _Abandoned(BaseException):
    """Ends a pass whose rest nobody wants."""


class Walk:
    """The passes of all `batches` through `model`, as far as they have come."""

    def __init__(self, model: nn.Module, batches: Batches, calls: Iterable[Call]) -> None:
        self.model, self.batches = model, batches
        self.paths = {f"{call.value}@1": path for call in calls for path in call.weights}
        self.pending = {f"{call.value}@0" for call in calls}
        self.abandoned = False
        self.passes: list[_Pass] = []
        self.weights: dict[str, Tensor] = {}  # of the calls that are being left

    def inputs(self, call: Call) -> Mapping[int, Tensor]:
        """What `call` reads, by the numbers of the batches that reach it, once all that comes before it has run."""
        name = f"{call.value}@0"
        if not self.passes:
            field = self.batches.field
            self.passes = [_Pass(self, inputs, f"{field}[{i}]") for i, inputs in enumerate(self.batches)]
        self.weights = {}
        for one in self.passes:
            while one.at not in (*self.pending, ""):
                one.go_on()
        self.weights = {}
        return {i: one.held for i, one in enumerate(self.passes) if one.at == name and one.held is not None}

    def leave(self, call: Call) -> None:
        """From now on nothing stops at `call`."""
        self.pending.discard(f"{call.value}@0")

    def weight(self, name: str) -> Tensor:
        """The weight that the call of this operand multiplies by, as it is now: the call read it before it waited."""
        if name not in self.weights:
            self.weights[name] = read(self.model, self.paths[name])
        return self.weights[name]

    def end(self) -> None:
        self.abandoned = True
        for one in self.passes:
            while one.at:
                one.go_on()


@contextmanager
def walking(model: nn.Module, batches: Batches, calls: Iterable[Call]) -> Iterator[Walk]:
    """A walk that ends with the block."""
    walk = Walk(model, batches, calls)
    try:
        yield walk
    finally:
        walk.end()


_BEGIN = "begin"


class _Pass(threading.Thread):
    """One batch on its way; `at` names the operand at which it waits, "" once it has arrived."""

    def __init__(self, walk: Walk, inputs: object, where: str) -> None:
        super().__init__(daemon=True)
        self.walk, self.inputs, self.where = walk, inputs, where
        self.at, self.held = _BEGIN, None  # type: tuple[str, Tensor | None]
        self.error: BaseException | None = None
        self.may_go, self.rests = threading.Semaphore(0), threading.Semaphore(0)
        self.start()

    def go_on(self) -> None:
        """Run until the next stop; what fails there is raised here."""
        self.may_go.release()
        self.rests.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def run(self) -> None:
        self.may_go.acquire()
        walk = self.walk
        names = {*walk.pending, *walk.paths}
        try:
            if not walk.abandoned:
                with torch.no_grad(), Interception(walk.model, self._visit, only=names):
                    ask(walk.model, self.inputs, self.where)  # type: ignore[arg-type]
        except _Abandoned:
            pass
        except BaseException as error:  # raised where the pass is awaited
            self.error = error
        self.at, self.held = "", None
        self.rests.release()

    def _visit(self, name: str, x: Tensor) -> Tensor:
        walk = self.walk
        if name in walk.paths:
            return walk.weight(name)
        if name in walk.pending:
            self.at, self.held = name, x
            self.rests.release()
            self.may_go.acquire()
            self.held = None
        if walk.abandoned:
            raise _Abandoned
        return x
