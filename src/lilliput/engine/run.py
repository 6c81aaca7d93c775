"""The driver behind what techniques ask for: it makes the edits, remembers every answer, and reports progress."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding
from lilliput.encodings.encoding import tensor_digest
from lilliput.engine.identity import model_digest
from lilliput.engine.lessons import Lessons, learn
from lilliput.engine.store import Answer, Store
from lilliput.engine.walk import answers_alone, walking
from lilliput.errors import EncodingError, InputError, reason
from lilliput.measure import flatten_outputs
from lilliput.model.capture import Inputs, capture
from lilliput.model.carrier import EncodedTensor, fold_parametrizations, freeze, tensors
from lilliput.model.edits import Edit, EncodeTensor, EncodeValue, SetTensor, State, Step, Train, check_encodable
from lilliput.model.values import Interception
from lilliput.model.view import Call, View
from lilliput.plain import short_repr
from lilliput.progress import Progress, silent
from lilliput.targets.target import Target
from lilliput.task import Batches, ask, batch_size, fingerprint
from lilliput.techniques.finetune import Finetune
from lilliput.techniques.inputs import Block, Entry, Stop
from lilliput.techniques.rounding import BRECQ, Rounding
from lilliput.techniques.statistics import Observe, Statistics
from lilliput.techniques.technique import Fit, Placement

_UNREACHED = "no calibration batch reaches it: rounded to the nearest"


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
        return tensor_at(self.model, path)

    def encoding(self, path: str) -> Encoding | None:
        held = held_at(self.model, path)[1]
        return held.encoding if isinstance(held, EncodedTensor) else None

    def encode(
        self,
        path: str,
        encoding: Encoding,
        *,
        x: Tensor | None = None,
        fit: Fit | None = None,
        rounding: Rounding | None = None,
        stop: Stop | None = None,
    ) -> None:
        self._progressed(path)
        try:
            self._encode(path, encoding, x, fit, rounding, stop)
        except EncodingError as error:
            if error.where:
                raise
            raise EncodingError(error.what, where=path, why=error.why, next=_or_leave_out(error.next, path)) from None

    def _progressed(self, path: str) -> None:
        if path in self._encoded:
            self._encoded.clear()
        self._encoded.add(path)
        self.progress("encoding", min(len(self._encoded), self._layers), self._layers)

    def _encode(
        self,
        path: str,
        encoding: Encoding,
        x: Tensor | None,
        fit: Fit | None,
        rounding: Rounding | None,
        stop: Stop | None,
    ) -> None:
        asked = self._asked(path, encoding, x)
        x, encoding = asked.x, asked.encoding
        question: tuple[Any, ...] = ("encode", self.environment, tensor_digest(x), encoding, fit, asked.grid)
        if rounding is not None and self.calibrate is not None:  # what flows follows from the model and the batches
            question = (*question, rounding, self.state.digest, self.calibrate.digest, path)

        def compute() -> Answer:
            parameters, rounded = asked.fitted(fit), x
            reached = stop is not None and bool(stop.inputs)
            if rounding is not None and stop is not None and reached:
                rounded, parameters = rounding.round(x, encoding, parameters, stop)
            note = "" if stop is None or reached else _UNREACHED
            return Answer(note, encoding.represent(rounded, parameters).tensors())

        answer = self.store.answer(question, compute)
        self._take(asked, answer.data, answer.tensors)

    def encode_block(
        self, encodings: Mapping[str, Encoding], *, fit: Fit | None, rounding: BRECQ, entry: Entry
    ) -> None:
        block = entry.block
        asked = {path: self._asked(path, encoding, None) for path, encoding in encodings.items()}
        data = None if self.calibrate is None else self.calibrate.digest
        grids = {path: (one.encoding, one.grid) for path, one in asked.items()}
        moving = sorted(block.biased)
        known = (self.environment, self.state.digest, data)
        question = ("block", *known, block.path, moving, grids, fit, rounding)

        def compute() -> Answer:
            parameters = {path: one.fitted(fit) for path, one in asked.items()}
            found = {path: one.x for path, one in asked.items()}
            if entry.inputs:
                carried = {path: one.encoding for path, one in asked.items()}
                found = rounding.block(found, carried, parameters, entry)
            parts = {
                f"{path}|{name}": part
                for path, one in asked.items()
                for name, part in one.encoding.represent(found[path], parameters[path]).tensors().items()
            }
            biases = {path: x for path, x in found.items() if path not in asked}
            return Answer("" if entry.inputs else _UNREACHED, {**parts, **biases})

        answer = self.store.answer(question, compute)
        for path, one in asked.items():
            self._progressed(path)
            self._take(one, answer.data, _within(answer.tensors, path))
        for path in entry.biases.keys() & answer.tensors.keys():
            self.set_tensor(path, answer.tensors[path])

    def _asked(self, path: str, encoding: Encoding, x: Tensor | None) -> _Asked:
        """A tensor that is to be encoded, with what an earlier encoding of it has established carried on."""
        paths, held = held_at(self.model, path)
        x, kept = self.tensor(path) if x is None else x, None
        check_encodable(encoding, path, x)
        if isinstance(held, EncodedTensor):
            frozen = held.encoded()
            x, encoding = frozen.encoding.enforce(x, frozen), encoding.keeping(frozen.encoding)
            kept = encoding.kept_parameters(frozen)
        return _Asked(paths, x, encoding, kept)

    def _take(self, asked: _Asked, note: str, parts: Mapping[str, Tensor]) -> None:
        self.skipped.pop(asked.paths[0], None)  # an earlier step had no use for it
        self.notes.pop(asked.paths[0], None)
        if note:
            self.note(asked.paths[0], note)
        dtype = str(asked.x.dtype).removeprefix("torch.")
        self._edit(EncodeTensor(asked.paths, asked.encoding, tuple(asked.x.shape), dtype), parts)

    def encode_value(self, value: str, encoding: Encoding, parameters: Mapping[str, Tensor]) -> None:
        self._edit(EncodeValue(value, encoding), parameters)

    def set_tensor(self, path: str, x: Tensor) -> None:
        paths, held = held_at(self.model, path)
        if isinstance(held, EncodedTensor):
            self.encode(path, held.encoding, x=x)
        else:
            self._edit(SetTensor(paths[0]), {"value": x})

    def rescale(self, factors: Mapping[str, Tensor], tolerance: float) -> float:
        rescaled = {path: times(self.tensor(path), factor) for path, factor in factors.items()}
        asked = [self.example, *itertools.islice(self.calibrate or (), 1)]

        def compute() -> Answer:
            other = copy.deepcopy(self.model)
            for path, x in rescaled.items():
                write(other, path, x)
            return Answer(data=max(departure(self.model, other, inputs) for inputs in asked))

        digests = {path: tensor_digest(factor) for path, factor in factors.items()}
        question = ("rescale", self.environment, self.state.digest, digests, [fingerprint(inputs) for inputs in asked])
        found = float(self.store.answer(question, compute).data)
        if found <= tolerance:
            for path, x in rescaled.items():
                self.set_tensor(path, x)
                self.factors[path] = self.factors.get(path, torch.ones(())) * factors[path]
        return found

    def place(self, encoding: Encoding, weights: Mapping[str, Encoding]) -> Sequence[Placement]:
        return self.target.place(self.view(), encoding, weights)

    def skip(self, path: str, reason: str) -> None:
        self.skipped[path] = reason

    def note(self, path: str, text: str) -> None:
        self.notes[path] = f"{self.notes[path]}; {text}" if path in self.notes else text

    def statistics(self, wanted: Mapping[str, Observe]) -> dict[str, Statistics]:
        batches = self._batches(f"{len(wanted)} values that flow")
        question = ("statistics", self.environment, self.state.digest, batches.digest, dict(wanted))

        def compute() -> Answer:
            seen = self._observe(wanted, batches)
            packed = {f"{name}|{key}": x for name, one in seen.items() for key, x in one.pack().items()}
            return Answer(tensors=packed)

        packed = self.store.answer(question, compute).tensors
        return {name: Statistics.unpack(observe, _within(packed, name)) for name, observe in wanted.items()}

    def walk(self, places: Sequence[Call | Block]) -> Generator[Stop | Entry, None, None]:
        batches = self._batches(f"what flows into {len(places)} layers or blocks")
        original = copy.deepcopy(self.model)
        with (
            walking(self.model, batches, places, self.tensor) as now,
            walking(original, batches, places, lambda path: tensor_at(original, path)) as then,
        ):
            before: Stop | Entry | None = None
            for i, place in enumerate(places):
                self.progress("looking at what flows", i, len(places))
                seen = functools.partial(now.inputs, place), functools.partial(then.inputs, place)
                stop: Stop | Entry
                if isinstance(place, Block):
                    stop = self._entry(place, original, *seen)
                else:
                    stop = Stop(place, *seen, before if isinstance(before, Stop) else None)
                yield stop
                for walk in (now, then):
                    walk.leave(place)
                if before is not None:
                    before.leave()
                before = stop
            self.progress("looking at what flows", len(places), len(places))

    def _entry(self, block: Block, original: nn.Module, now: Callable[[], Any], then: Callable[[], Any]) -> Entry:
        def exact(inputs: Inputs) -> Sequence[Tensor]:
            with torch.no_grad():
                return answers_alone(original, block.path, inputs, {})

        answer = functools.partial(answers_alone, self.model, block.path)
        biases = {bias: self.tensor(bias) for path in block.biased if (bias := block.calls[path].bias)}
        return Entry(block, now, then, answer, exact, biases)

    def repeated(self) -> list[str]:
        return [
            f"{path}.{name}" if path else name
            for path, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList | nn.Sequential)
            for name, child in module.named_children()
            if sum(type(other) is type(child) for other in module.children()) > 1
        ]

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


@dataclass(frozen=True)
class _Asked:
    """A tensor to encode, under all its paths, and the parameters that an earlier encoding leaves no choice of."""

    paths: tuple[str, ...]
    x: Tensor
    encoding: Encoding
    kept: Mapping[str, Tensor] | None

    @property
    def grid(self) -> dict[str, str] | None:
        return None if self.kept is None else {name: tensor_digest(part) for name, part in self.kept.items()}

    def fitted(self, fit: Fit | None) -> Mapping[str, Tensor]:
        if self.kept is not None:
            return self.kept
        return fit.fit(self.x, self.encoding) if fit else self.encoding.fit(self.x)


def _within(tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Of tensors named path|part, the parts of one."""
    split = {tuple(name.rpartition("|")[::2]): x for name, x in tensors.items()}
    return {part: x for (of, part), x in split.items() if of == path}


def held_at(model: nn.Module, path: str) -> tuple[tuple[str, ...], Tensor | EncodedTensor]:
    """A parameter of `model`, with all its paths."""
    for paths, tensor in tensors(model).items():
        if path in paths:
            return paths, tensor
    raise InputError("the model has no such parameter", where=path)


def tensor_at(model: nn.Module, path: str) -> Tensor:
    """A copy of a parameter, decoded."""
    held = held_at(model, path)[1]
    return (held().detach() if isinstance(held, EncodedTensor) else held.detach()).clone()


def times(x: Tensor, factor: Tensor) -> Tensor:
    """`x` multiplied in float64, rounded once."""
    return (x.double() * factor).to(x.dtype)


def write(model: nn.Module, path: str, x: Tensor) -> None:
    """Give a parameter of `model` new values, in place."""
    held = held_at(model, path)[1]
    if isinstance(held, EncodedTensor):
        held.write(x)
    else:
        held.detach().copy_(x)


def departure(model: nn.Module, changed: nn.Module, inputs: Inputs) -> float:
    """The largest difference between what two models answer, relative to the largest answer; infinite beside NaN."""
    found = 0.0
    with torch.no_grad():
        answers = (flatten_outputs(ask(net, inputs, "a calibration batch")) for net in (model, changed))
        for a, b in zip(*answers, strict=True):
            alike = a == b
            error = torch.where(alike, 0.0, (a.double() - b.double()).abs()).nan_to_num(nan=math.inf)
            size = torch.where(a.isfinite(), a, 0).abs().double()
            found = max(found, float(error.max() / size.max().clamp(min=1e-30))) if a.numel() else found
    return found


def _or_leave_out(next: str, path: str) -> str:
    """A remedy, and the other one that always works."""
    left_out = f'where="!{path.rpartition(".")[0] or path}"'
    return f"{next}, or {left_out}" if next else f"leave it out with {left_out}"


def private_copy(model: nn.Module) -> nn.Module:
    """A copy of the user's model to make changes in, parametrizations folded, encoded tensors frozen."""
    try:
        private = copy.deepcopy(model)
    except Exception as error:  # whatever the model holds
        raise InputError(
            "the model cannot be copied", why=reason(error), next="give a model that copy.deepcopy takes"
        ) from error
    return freeze(fold_parametrizations(private))


def check_runs(model: nn.Module, inputs: Inputs, where: str) -> None:
    """Refuse a model (in eval mode) that fails on `inputs`, or answers them with NaN or infinity."""
    with torch.no_grad():
        out = ask(model, inputs, where)
    if all(bool(torch.isfinite(x).all()) for x in flatten_outputs(out)):
        return
    damaged = _damaged(model)
    raise InputError(
        "the model answers with NaN or infinity",
        where=damaged or where,
        why="this tensor of the model holds some" if damaged else "no tensor of the model holds any",
        next="repair the model" if damaged else "give inputs that it is made for",
    )


def _damaged(model: nn.Module) -> str:
    """The first parameter that is not finite, or buffer that holds NaN (infinity in a buffer may be a mask)."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return name
    return next((name for name, buffer in model.named_buffers() if bool(buffer.isnan().any())), "")
