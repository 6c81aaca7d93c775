"""The driver behind what techniques ask for: it makes the edits, remembers every answer, and reports progress."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding
from lilliput.encodings.encoding import tensor_digest
from lilliput.engine.identity import model_digest
from lilliput.engine.lessons import Lessons, learn
from lilliput.engine.store import Answer, Store
from lilliput.engine.walk import walking
from lilliput.errors import EncodingError, InputError
from lilliput.measure import departure, macs, parameters
from lilliput.model.capture import Inputs, capture
from lilliput.model.carrier import EncodedTensor, tensors
from lilliput.model.copies import as_it_stands, private_copy
from lilliput.model.coupling import Coupling, Group, Shrinking, coupling
from lilliput.model.depth import changes, fails_without, without
from lilliput.model.edits import (
    Edit,
    EncodeTensor,
    EncodeValue,
    Resize,
    SetTensor,
    State,
    Step,
    Train,
    check_encodable,
    structure,
)
from lilliput.model.parameters import held_at, one_held, read, rescaled, write
from lilliput.model.values import Interception
from lilliput.model.view import Call, View
from lilliput.modes import exact_products
from lilliput.plain import short_repr
from lilliput.progress import Progress, silent
from lilliput.targets.target import Target
from lilliput.task import Batches, ask, batch_size, fingerprint
from lilliput.techniques.choice import NEAREST, Choice
from lilliput.techniques.finetune import Finetune
from lilliput.techniques.inputs import Stop
from lilliput.techniques.statistics import Observe, Statistics
from lilliput.techniques.technique import Going, Placement


@dataclass
class Driver:
    """One model on its way through a recipe.

    `model` is a private copy that the edits are made in; `state` says how it came about. The user's model is only read.
    """

    model: nn.Module
    state: State
    example: Inputs
    dynamic: Mapping[str | int, Mapping[int, str]]
    calibrate: Batches | None
    target: Target
    store: Store
    environment: str  # digest of what results may depend on: versions, threads, processor
    progress: Progress = silent
    lessons: Lessons | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # what was done to a layer otherwise than was asked
    factors: dict[str, Tensor] = field(default_factory=dict)  # by which parameters were rescaled
    trainings: list[dict[str, Any]] = field(default_factory=list)  # the losses of each, epoch by epoch
    _views: dict[str, View] = field(default_factory=dict)
    _coupled: tuple[str, Coupling] | None = None  # of which state
    _shrinks: Shrinking | None = None  # by that
    _layers: int = 0  # that multiply or look up, as last captured
    _encoded: set[str] = field(default_factory=set)  # paths that the step at work has encoded

    @classmethod
    def start(cls, model: nn.Module, **rest: Any) -> Driver:
        """A driver over a copy of `model`."""
        return cls(private_copy(model).eval(), State(model_digest(model)), **rest)

    def afresh(self, model: nn.Module) -> Driver:
        """Another driver, over `model` as it is given, under the same conditions."""
        return Driver.start(
            model,
            example=self.example,
            dynamic=self.dynamic,
            calibrate=self.calibrate,
            target=self.target,
            store=self.store,
            environment=self.environment,
            progress=self.progress,
        )

    # what techniques ask

    def view(self) -> View:
        if self.state.digest not in self._views:
            view = self._views[self.state.digest] = capture(self.model, self.example, self.dynamic)
            self._layers = len(view.weights)
        return self._views[self.state.digest]

    @property
    def calibrated(self) -> bool:
        return self.calibrate is not None

    def prepare(self) -> None:
        for edit, given in self.target.prepare(self.view(), self.model):
            self._edit(edit, given)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {paths[0]: tuple(tensor.shape) for paths, tensor in tensors(self.model).items()}

    def tensor(self, path: str) -> Tensor:
        return read(self.model, path)

    def encoding(self, path: str) -> Encoding | None:
        held = one_held(self.model, path)
        return held.encoding if isinstance(held, EncodedTensor) else None

    def encode(self, path: str, encoding: Encoding, choice: Choice = NEAREST) -> None:
        if path in self._encoded:
            self._encoded.clear()
        self._encoded.add(path)
        self.progress("encoding", min(len(self._encoded), self._layers), self._layers)
        try:
            self._encode(path, encoding, choice)
        except EncodingError as error:
            if error.where:
                raise
            raise EncodingError(error.what, where=path, why=error.why, next=_or_leave_out(error.next, path)) from None

    def _encode(self, path: str, encoding: Encoding, choice: Choice) -> None:
        paths, held = held_at(self.model, path)
        x, kept = self.tensor(path) if choice.values is None else choice.values, None
        check_encodable(encoding, path, x)
        if isinstance(held, EncodedTensor):
            frozen = held.encoded()
            x, encoding = frozen.encoding.enforce(x, frozen), encoding.keeping(frozen.encoding)
            kept = encoding.kept_parameters(frozen)
        grid = None if kept is None else {name: tensor_digest(part) for name, part in kept.items()}
        question: tuple[Any, ...] = ("encode", self.environment, tensor_digest(x), encoding, choice.fit, grid)
        if choice.rounding is not None and self.calibrate is not None:  # what flows follows from model and batches
            question = (*question, choice.rounding, self.state.digest, self.calibrate.digest, path)

        def compute() -> Answer:
            rounded, parameters, told = choice.numbers(x, encoding, kept)
            return Answer(told, encoding.represent(rounded, parameters).tensors())

        answer = self.store.answer(question, compute)
        self.skipped.pop(paths[0], None)  # an earlier step had no use for it
        self.notes.pop(paths[0], None)
        if answer.data:
            self.note(path, answer.data)
        dtype = str(x.dtype).removeprefix("torch.")
        self._edit(EncodeTensor(paths, encoding, tuple(x.shape), dtype), answer.tensors)

    def encode_value(self, value: str, encoding: Encoding, parameters: Mapping[str, Tensor]) -> None:
        self._edit(EncodeValue(value, encoding), parameters)

    def set_tensor(self, path: str, x: Tensor) -> None:
        paths, held = held_at(self.model, path)
        if isinstance(held, EncodedTensor):
            self.encode(path, held.encoding, Choice(x))
        else:
            self._edit(SetTensor(paths[0]), {"value": x})

    def rescale(self, factors: Mapping[str, Tensor], tolerance: float) -> float:
        changed = {path: rescaled(self.tensor(path), factor) for path, factor in factors.items()}
        asked = [self.example, *itertools.islice(self.calibrate or (), 1)]

        def compute() -> Answer:
            other = copy.deepcopy(self.model)
            for path, x in changed.items():
                write(other, path, x)
            with torch.no_grad(), exact_products():
                both = ((ask(net, inputs, "a calibration batch") for net in (self.model, other)) for inputs in asked)
                return Answer(data=max(departure(*answers) for answers in both))

        digests = {path: tensor_digest(factor) for path, factor in factors.items()}
        question = ("rescale", self.environment, self.state.digest, digests, [fingerprint(inputs) for inputs in asked])
        found = float(self.store.answer(question, compute).data)
        if found <= tolerance:
            for path, x in changed.items():
                self.set_tensor(path, x)
                self.factors[path] = self.factors.get(path, torch.ones(())) * factors[path]
        return found

    def place(self, encoding: Encoding, weights: Mapping[str, Encoding]) -> Sequence[Placement]:
        return self.target.place(self.view(), encoding, weights)

    def skip(self, path: str, reason: str) -> None:
        self.skipped[path] = reason

    def note(self, path: str, text: str) -> None:
        self.notes[path] = text

    def statistics(self, wanted: Mapping[str, Observe]) -> dict[str, Statistics]:
        batches = self._batches(f"{len(wanted)} values that flow")
        question = ("statistics", self.environment, self.state.digest, batches.digest, dict(wanted))

        def compute() -> Answer:
            seen = self._observe(wanted, batches)
            packed = {f"{name}|{key}": x for name, one in seen.items() for key, x in one.pack().items()}
            return Answer(tensors=packed)

        packed = self.store.answer(question, compute).tensors
        return {
            name: Statistics.unpack(
                observe, {key.rpartition("|")[2]: x for key, x in packed.items() if key.rpartition("|")[0] == name}
            )
            for name, observe in wanted.items()
        }

    def walk(self, calls: Sequence[Call]) -> Iterator[Stop]:
        batches = self._batches(f"what flows into {len(calls)} layers")
        original = as_it_stands(self.model)
        with walking(self.model, batches, calls) as now, walking(original, batches, calls) as then:
            before: Stop | None = None
            for i, call in enumerate(calls):
                self.progress("looking at what flows", i, len(calls))
                stop = Stop(call, functools.partial(now.inputs, call), functools.partial(then.inputs, call), before)
                yield stop
                for walk in (now, then):
                    walk.leave(call)
                if before is not None:
                    before.leave()
                before = stop
            self.progress("looking at what flows", len(calls), len(calls))

    def coupling(self) -> Coupling:
        if self._coupled is None or self._coupled[0] != self.state.digest:
            view = self.view()
            if view.rung != "whole":
                path, why = next(iter(view.problems.items()))
                raise InputError(
                    "the model cannot be captured whole",
                    where=path,
                    why=why,
                    next="rewrite what stands in the way, or prune weights: they need no whole graph",
                )
            self.progress("looking for what is coupled", 0, 1)
            self._coupled = (self.state.digest, coupling(self.model, self.example))
            self.progress("looking for what is coupled", 1, 1)
        return self._coupled[1]

    def unremovable(self, going: Going) -> dict[Group, str]:
        return self._shrinking().refused(going)

    def within(self, choice: Callable[[float], Going], what: str, share: float) -> Going:
        def cost(model: nn.Module) -> int:
            if what == "parameters":
                return parameters(model)
            return macs(model, self.example.args, self.example.kwargs).total

        shrinking, allowed = self._shrinking(), share * cost(self.model)
        low, high = 0.0, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            gone = {atom for atoms in choice(middle).values() for atom in atoms}
            low, high = (low, middle) if cost(shrinking.without(gone)) <= allowed else (middle, high)
        if high == 1:
            raise InputError(
                f"the model cannot come down to {share:.0%} of its {what}",
                why="what may be removed is not enough",
                next="allow more, or see in the report of a smaller step what stays and why",
            )
        return choice(high)

    def shrink(self, going: Going) -> None:
        for edit, given in self._shrinking().proven(atom for atoms in going.values() for atom in atoms):
            self._edit(edit, given)

    def _shrinking(self) -> Shrinking:
        coupled = self.coupling()
        if self._shrinks is None or self._shrinks.coupling is not coupled:
            self._shrinks = Shrinking(self.model, coupled, self.example)
        return self._shrinks

    @property
    def multiple(self) -> int:
        return self.target.multiple

    def layer_changes(self) -> dict[str, float]:
        batches = [self.example] if self.calibrate is None else self.calibrate
        return changes(self.model, (Inputs.of(inputs) for inputs in batches))

    def drop(self, layers: Sequence[str]) -> dict[str, str]:
        if any(isinstance(edit, Resize) for edit in structure(self.model)):
            raise InputError(
                "layers are left out before channels are removed",
                why="a file tells widths by the numbers that layers had in their lists",
                next="prune layers first, then channels",
            )
        refused, gone = dict[str, str](), list[str]()
        for path in layers:
            why = fails_without(self.model, [*gone, path], self.example)
            if why:
                refused[path] = why
            else:
                gone.append(path)
        for edit in without(self.model, gone):
            self._edit(edit, {})
        return refused

    def remember(self, question: Any, compute: Callable[[], Tensor]) -> Tensor:
        data = None if self.calibrate is None else self.calibrate.digest
        whole = ("remember", self.environment, self.state.digest, data, question)
        return self.store.answer(whole, lambda: Answer(tensors={"found": compute()})).tensors["found"]

    def train(self, step: Finetune) -> None:
        conditions = (self.environment, self.state.digest)
        learnt = learn(self.model, step, self.lessons, self.store, conditions, self.progress)
        self.trainings.append({"step": short_repr(step), "epochs": learnt.history})
        self._edit(Train(learnt.how), learnt.tensors)

    # how it is done

    def _batches(self, known: str) -> Batches:
        if self.calibrate is None:
            raise InputError(
                "this recipe needs calibration batches",
                why=f"it must know {known}",
                next="give calibrate=, or quantize weights alone, to the nearest",
            )
        return self.calibrate

    def _observe(self, wanted: Mapping[str, Observe], batches: Batches) -> dict[str, Statistics]:
        seen = {name: Statistics(observe) for name, observe in wanted.items()}

        def visit(name: str, x: Tensor) -> Tensor:
            seen[name].update(x)
            return x

        done = 0
        for i, inputs in enumerate(batches):
            with torch.no_grad(), Interception(self.model, visit, only=wanted.keys()):
                ask(self.model, inputs, f"{batches.field}[{i}]")
            done += batch_size(inputs)
            self.progress("calibrating", done, batches.samples)
        return seen

    def _edit(self, edit: Edit, given: Mapping[str, Tensor]) -> None:
        step = Step(edit, dict(given))
        edit.apply(self.model, step.tensors)
        self.state = self.state.after(step)


def _or_leave_out(next: str, path: str) -> str:
    """A remedy, and the other one that always works."""
    left_out = f'where="!{path.rpartition(".")[0] or path}"'
    return f"{next}, or {left_out}" if next else f"leave it out with {left_out}"
