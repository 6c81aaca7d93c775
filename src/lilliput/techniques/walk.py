"""Forward passes that wait: all calibration batches go through the model together, and stop wherever it is changed.

Each batch runs in a thread of its own, one at a time; while it waits, it holds what its forward holds there, which
without gradients is little more than the values that flow. So a layer is fitted to what the layers before it, as they
are encoded by then, make of the data, in one pass, and in memory for the activations of one place in the model.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lilliput.feeding import Batches, ask
from lilliput.model.carrier.parameters import read
from lilliput.model.edits.copies import as_it_stands
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.values import Interception, value_encodings
from lilliput.model.views.view import Call
from lilliput.techniques.blocks import Block, BlockStop
from lilliput.techniques.inputs import Stop
from lilliput.techniques.observe import batches_of
from lilliput.techniques.run import Run


class _Abandoned(BaseException):
    """Ends a pass whose rest nobody wants."""


class Walk:
    """The passes of all `batches` through `model`, as far as they have come.

    They stop where a call reads its input, and where a block is entered.
    """

    def __init__(self, model: nn.Module, batches: Batches, places: Sequence[Call | Block]) -> None:
        self.model, self.batches = model, batches
        alone = [place for place in places if isinstance(place, Call)]
        blocks = [place for place in places if isinstance(place, Block)]
        self.paths = {f"{call.value}@1": path for call in alone for path in call.weights}
        self.pending = {_name(place) for place in places}
        self.hooks = [
            model.get_submodule(block.path).register_forward_pre_hook(
                functools.partial(_entered, self, block.path), with_kwargs=True
            )
            for block in blocks
        ]
        self.abandoned = False
        self.passes: list[_Pass] = []
        self.weights: dict[str, Tensor] = {}  # of the calls that are being left

    def inputs(self, place: Call | Block) -> Mapping[int, Any]:
        """What a call reads (a tensor) or a block is called with (`Inputs`), once all that comes before has run.

        By the numbers of the batches that reach it.
        """
        name = _name(place)
        if not self.passes:
            field = self.batches.field
            self.passes = [_Pass(self, inputs, f"{field}[{i}]") for i, inputs in enumerate(self.batches)]
        self.weights = {}
        for one in self.passes:
            while one.at not in (*self.pending, ""):
                one.go_on()
        self.weights = {}
        return {i: one.held for i, one in enumerate(self.passes) if one.at == name and one.held is not None}

    def leave(self, place: Call | Block) -> None:
        """From now on nothing stops there."""
        self.pending.discard(_name(place))

    def weight(self, name: str) -> Tensor:
        """The weight that the call of this operand multiplies by, as it is now: the call read it before it waited."""
        if name not in self.weights:
            self.weights[name] = read(self.model, self.paths[name])
        return self.weights[name]

    def end(self) -> None:
        self.abandoned = True
        for hook in self.hooks:
            hook.remove()
        for one in self.passes:
            while one.at:
                one.go_on()


@contextmanager
def walking(model: nn.Module, batches: Batches, places: Sequence[Call | Block]) -> Iterator[Walk]:
    """A walk that ends with the context."""
    walk = Walk(model, batches, places)
    try:
        yield walk
    finally:
        walk.end()


def can_be_seen(call: Call) -> bool:
    """Whether the damage to a weight follows from what its call multiplies it by."""
    return call.value is not None and (call.op == "linear" or call.window is not None)


def walk(run: Run, places: Sequence[Call | Block]) -> Generator[Stop | BlockStop, None, None]:
    """The places in order, the calibration batches waiting at each; its weights may be encoded there.

    They wait in the model, and in a copy that stays as it is now.
    """
    model, batches = run.model, batches_of(run, f"what flows into {len(places)} layers or blocks")
    original = as_it_stands(model)
    with walking(model, batches, places) as now, walking(original, batches.original, places) as then:
        before: Stop | BlockStop | None = None
        for i, place in enumerate(places):
            run.progress("looking at what flows", i, len(places))
            flowing = functools.partial(now.inputs, place), functools.partial(then.inputs, place)
            stop: Stop | BlockStop
            if isinstance(place, Block):
                exact = torch.no_grad()(functools.partial(answers_alone, original, place.path, tensors={}))
                biases = {
                    bias: read(model, bias)
                    for path, call in place.calls.items()
                    if path in place.biased and (bias := call.bias)
                }
                stop = BlockStop(place, *flowing, functools.partial(answers_alone, model, place.path), exact, biases)
            else:
                stop = Stop(place, *flowing, before)
            yield stop
            for one in (now, then):
                one.leave(place)
            if before is not None:
                before.leave()
            before = stop
        run.progress("looking at what flows", len(places), len(places))


_BEGIN = "begin"


class _Pass(threading.Thread):
    """One batch on its way; `at` names the operand at which it waits, "" once it has arrived."""

    def __init__(self, walk: Walk, inputs: object, where: str) -> None:
        super().__init__(daemon=True)
        self.walk, self.inputs, self.where = walk, inputs, where
        self.at, self.held = _BEGIN, None  # type: tuple[str, Tensor | Inputs | None]
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
        self.wait(name, x)
        return x

    def wait(self, name: str, held: Tensor | Inputs) -> None:
        """Stop at a place, if passes still stop there, holding what flows into it."""
        if name in self.walk.pending:
            self.at, self.held = name, held
            self.rests.release()
            self.may_go.acquire()
            self.held = None
        if self.walk.abandoned:
            raise _Abandoned


def _name(place: Call | Block) -> str:
    return place.path if isinstance(place, Block) else f"{place.value}@0"


def _entered(walk: Walk, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    """Stop a pass of `walk`, whose thread this is, before a block computes; other calls of it are none of ours."""
    one = threading.current_thread()
    if isinstance(one, _Pass) and one.walk is walk:
        one.wait(path, Inputs(args, kwargs))


def answers_alone(model: nn.Module, path: str, inputs: Inputs, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The floating-point tensors that a module of `model` gives when it alone is called, on copies of the inputs.

    Operands named in `tensors` are read from there, as those of `Value`; values that the model encodes are encoded.
    """
    encoders = value_encodings(model)

    def visit(name: str, x: Tensor) -> Tensor:
        return tensors[name].to(x.dtype) if name in tensors else encoders[name].forward(x)

    own = tree_map_only(Tensor, torch.clone, (inputs.args, dict(inputs.kwargs)))
    with Interception(model, visit, only={*tensors, *encoders}):
        given = tree_leaves(model.get_submodule(path)(*own[0], **own[1]))
    return [x for x in given if isinstance(x, Tensor) and x.is_floating_point()]
