"""The driver behind what techniques ask for: it makes the edits, remembers every answer, and reports progress."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding
from lilliput.encodings.encoding import tensor_digest
from lilliput.engine.budget import Cost
from lilliput.engine.encode import Asked, Known, told_where, within
from lilliput.engine.identity import model_digest
from lilliput.engine.lessons import Lessons, learn
from lilliput.engine.observe import observed
from lilliput.engine.store import Answer, Store
from lilliput.engine.tried import Tried
from lilliput.engine.walk import stops
from lilliput.errors import InputError
from lilliput.model.capture import capture
from lilliput.model.carrier import tensors
from lilliput.model.copies import private_copy
from lilliput.model.coupling import Coupling, Group, Shrinking, coupling
from lilliput.model.depth import Dispensable, blocks, layers, relied_on, repeated, with_configs, without
from lilliput.model.duplicate import duplicate
from lilliput.model.edit import Edit, structure
from lilliput.model.edits import EncodeValue, SetTensor, State, Step, Train
from lilliput.model.encoded_tensor import EncodedTensor
from lilliput.model.inputs import Inputs
from lilliput.model.origins import children, origins, renamed
from lilliput.model.parameters import held_at, one_held, read, rescaled, write
from lilliput.model.snapshot import Snapshot
from lilliput.model.structure import KeepChildren, LeaveOut, Resize
from lilliput.model.trial import Change, changed, misfit, shapes
from lilliput.model.values import value_encodings
from lilliput.model.view import Call, View
from lilliput.modes import exact_products
from lilliput.outputs import departure
from lilliput.plain import short_repr
from lilliput.progress import Progress, silent
from lilliput.targets.target import Target
from lilliput.task import Batches, ask, batch_size, fingerprint
from lilliput.techniques.blocks import Block, Entry
from lilliput.techniques.choice import NEAREST, Choice, JointChoice
from lilliput.techniques.finetune import Finetune
from lilliput.techniques.inputs import Stop
from lilliput.techniques.statistics import Observe, Statistics
from lilliput.techniques.technique import Going, Placed

_BATCHES = 4  # at most, that are asked what a network answers without each of its blocks


@dataclass
class Driver:
    """One model on its way through a recipe.

    `model` is a private copy that the edits are made in; `state` says how it came about. The user's model is only read.
    """

    model: nn.Module
    before: Snapshot  # of the model as it was copied
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
    factors: dict[str, Tensor] = field(default_factory=dict)  # by which parameters were rescaled
    trainings: list[dict[str, Any]] = field(default_factory=list)  # the losses of each, epoch by epoch
    evaluate: Batches | None = None  # on which builds are compared too, where there are no other samples
    probes: Sequence[tuple[str, Inputs]] = ()  # further inputs, named, on which the captured graph must answer right
    removed: list[dict[str, Any]] = field(default_factory=list)  # modules that were left out, as they were called first
    batch_s: dict[Finetune, float] = field(default_factory=dict)  # what a batch takes in each training, as it was tried
    checks: list[float] = field(default_factory=list)  # how far shrunk networks were, on the example, from those masked
    _lasting: set[str] = field(default_factory=set)  # of those skipped, which stay so when they are encoded
    tried: Tried | None = None  # on the target, in place of its own recipe; None where the recipe is the user's
    _notes: dict[str, dict[str, bool]] = field(default_factory=dict)  # texts, and which outlast another encoding
    _views: dict[str, View] = field(default_factory=dict)
    _coupled: tuple[str, Coupling] | None = None  # of which state
    _shrinks: Shrinking | None = None  # by that
    _origins: dict[str, str] = field(default_factory=dict)  # modules, with the paths that they had first
    _layers: int = 0  # that multiply or look up, as last captured
    _kept: frozenset[str] = frozenset()  # paths of what runs change in the model, which is of no consequence
    _encoded: set[str] = field(default_factory=set)  # paths that the step at work has encoded

    @classmethod
    def start(cls, model: nn.Module, **rest: Any) -> Driver:
        """A driver over a copy of `model`."""
        copied = private_copy(model).eval()
        return cls(copied, Snapshot(copied), State(model_digest(model)), _origins=origins(copied, ()), **rest)

    def afresh(self, model: nn.Module) -> Driver:
        """Another driver, over `model` as it is given, under the same conditions."""
        other = Driver.start(
            model,
            example=self.example,
            dynamic=self.dynamic,
            calibrate=self.calibrate,
            evaluate=self.evaluate,
            target=self.target,
            store=self.store,
            environment=self.environment,
            progress=self.progress,
        )
        other.warm(self._kept)
        return other

    def warm(self, kept: Iterable[str]) -> None:
        """Run the model once where it keeps something of its runs, so that it is captured with that; see `settle`."""
        self._kept = frozenset(kept)
        if self._kept:
            with torch.no_grad():
                ask(self.model, self.example, "example")

    def settle(self) -> None:
        """Put back what runs have changed in the model: it is delivered as it was given, but for the edits."""
        if self._kept:
            self.before.restore(self._kept)

    # what techniques ask

    def view(self) -> View:
        if self.state.digest not in self._views:
            view = self._views[self.state.digest] = capture(
                self.model, self.example, self.dynamic, () if self._views else self.probes
            )
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
        self._at_work_on(path)
        with told_where(path):
            asked = Asked.of(self.model, path, encoding, choice.values)
            answer = self._known.alone(path, asked, choice)
            self._take(asked, answer.data, answer.tensors)

    def encode_block(self, encodings: Mapping[str, Encoding], choice: JointChoice) -> None:
        asked = {}
        for path, encoding in encodings.items():
            with told_where(path):
                asked[path] = Asked.of(self.model, path, encoding)
        answer = self._known.together(asked, choice)
        for path, one in asked.items():
            self._at_work_on(path)
            self._take(one, answer.data, within(answer.tensors, path))
        for path in choice.entry.biases:
            if path in answer.tensors:
                self.set_tensor(path, answer.tensors[path])

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
            other = duplicate(self.model)
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

    def encoded_value(self, name: str) -> bool:
        return name in value_encodings(self.model)

    def place(self, encoding: Encoding, weights: Mapping[str, Encoding]) -> Placed:
        return self.target.place(self.view(), encoding, weights)

    def skip(self, path: str, reason: str, *, lasting: bool = False) -> None:
        self.skipped[path] = reason
        (self._lasting.add if lasting else self._lasting.discard)(path)

    def note(self, path: str, text: str, *, lasting: bool = False) -> None:
        self._notes.setdefault(path, {})[text] = lasting

    @property
    def notes(self) -> dict[str, str]:
        """What was done to layers that their encodings do not say, by the paths of tensors."""
        return {path: "; ".join(texts) for path, texts in self._notes.items() if texts}

    def statistics(self, wanted: Mapping[str, Observe]) -> dict[str, Statistics]:
        batches = self._batches(f"{len(wanted)} values that flow")
        question = ("statistics", self.environment, self.state.digest, batches.digest, dict(wanted))

        def compute() -> Answer:
            seen = observed(self.model, self.view(), wanted, batches, self.example, self.progress)
            packed = {f"{name}|{key}": x for name, one in seen.items() for key, x in one.pack().items()}
            return Answer(tensors=packed)

        packed = self.store.answer(question, compute).tensors
        return {name: Statistics.unpack(observe, within(packed, name)) for name, observe in wanted.items()}

    def walk(self, places: Sequence[Call | Block]) -> Generator[Stop | Entry, None, None]:
        batches = self._batches(f"what flows into {len(places)} layers or blocks")
        return stops(self.model, batches, places, self.progress)

    def repeated(self) -> list[str]:
        return repeated(self.model)

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

    def left(self, what: str, gone: Going | Sequence[Dispensable]) -> float:
        changes = self._changes(gone)
        cost, identity = Cost(self.example, self.dynamic, self.target), [Step(*one).digest() for one in changes]
        question = (
            "left",
            self.environment,
            self.state.digest,
            fingerprint(self.example),
            repr(self.target),
            what,
            identity,
        )
        self.progress(f"finding {what}", 0, 1)
        left, disturbance = self.store.answer(
            question, lambda: Answer(list(cost.left(what, self.model, changed(self.model, changes))))
        ).data
        if disturbance:
            self.skip(what, f"the budget was not measured well: {disturbance}")
        return float(left)

    def _changes(self, gone: Going | Sequence[Dispensable]) -> list[Change]:
        return self._shrinking().changes(_all(gone)) if isinstance(gone, Mapping) else without(self.model, gone)

    def shrink(self, going: Going) -> None:
        gone, shrinking = _all(going), self._shrinking()
        made, untold = shrinking.described(gone)
        self.checks.append(shrinking.apart)
        for path in shrinking.not_rescaled(gone):
            self.skip(path, "a norm over fewer channels now, whose gains are no parameter of its own to scale up")
        for edit, given in made:
            self._edit(edit, given)
        self._tell_untold(untold)

    def _shrinking(self) -> Shrinking:
        coupled = self.coupling()
        if self._shrinks is None or self._shrinks.coupling is not coupled:
            self._shrinks = Shrinking(self.model, coupled, self.example, self.progress)
        return self._shrinks

    @property
    def multiple(self) -> int:
        return self.target.multiple

    def dispensable(self, unit: str) -> list[Dispensable]:
        if unit == "layers":
            return layers(self.model, self._read("comparing layers"))
        return blocks(self.model, itertools.islice(self._read("reading batches"), _BATCHES), self.progress)

    def undroppable(self, gone: Sequence[Dispensable]) -> dict[str, str]:
        refused, going, expected = dict[str, str](), list[Dispensable](), shapes(self.model, self.example)
        needed = relied_on(self.model, self.example)
        for done, one in enumerate(gone):
            self.progress("leaving layers out", done, len(gone))
            why = f"{needed[one.path]} reads something else that it makes" if one.path in needed else ""
            why = why or misfit(self.model, without(self.model, [*going, one]), self.example, expected)
            if why:
                refused[one.path] = why
            else:
                going.append(one)
        return refused

    def drop(self, gone: Sequence[Dispensable]) -> dict[str, str]:
        if any(isinstance(edit, Resize) for edit in structure(self.model)):
            raise InputError(
                "layers and blocks are left out before channels are removed",
                why="a file tells widths by the numbers that layers had in their lists",
                next="prune layers first, then channels",
            )
        refused = self.undroppable(gone)
        going = [one for one in gone if one.path not in refused]
        for one in (one for one in gone if one.path in refused):
            self.skip(one.path, f"{one.told}, but cannot be left out: {refused[one.path]}")
        made, untold = with_configs(self.model, without(self.model, going), self.example)
        named = [(one, self._origins.get(one.path, one.path)) for one in going]
        held = {one.path: tensors(self.model.get_submodule(one.path)).values() for one in going}
        for edit, given in made:
            self._edit(edit, given)
        left = {id(x) for x in tensors(self.model).values()}
        for one, path in named:
            gone_with = {id(x): math.prod(x.shape) for x in held[one.path] if id(x) not in left}
            left |= gone_with.keys()  # what two of them shared is counted once
            self.removed.append(
                {"path": path, "parameters": sum(gone_with.values()), "score": one.change, "told": one.told}
            )
        self._tell_untold(untold)
        return refused

    def _tell_untold(self, why: str) -> None:
        if why:
            self.skipped.setdefault("config", f"keeps the old sizes: {why}; save the network by lilliput.save")

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

    @property
    def _known(self) -> Known:
        data = None if self.calibrate is None else self.calibrate.digest
        return Known(self.store, self.environment, self.state.digest, data)

    def _at_work_on(self, path: str) -> None:
        if path in self._encoded:
            self._encoded.clear()
        self._encoded.add(path)
        self.progress("encoding", min(len(self._encoded), self._layers), self._layers)

    def _take(self, asked: Asked, told: str, parts: Mapping[str, Tensor]) -> None:
        path = asked.paths[0]
        if path not in self._lasting:
            self.skipped.pop(path, None)  # an earlier step had no use for it
        self._notes[path] = {text: lasting for text, lasting in self._notes.get(path, {}).items() if lasting}
        if told:
            self.note(path, told)
        self._edit(asked.edit, {name: part.clone() for name, part in parts.items()})  # equal ones are no tie

    def _batches(self, known: str) -> Batches:
        if self.calibrate is None:
            raise InputError(
                "this recipe needs calibration batches",
                why=f"it must know {known}",
                next="give calibrate=, or quantize weights alone, to the nearest",
            )
        return self.calibrate

    def _read(self, doing: str) -> Iterator[Inputs]:
        """The calibration batches, or else the example alone, told as they are read."""
        if self.calibrate is None:
            yield self.example
            return
        done = 0
        for inputs in self.calibrate:
            yield Inputs.of(inputs)
            done += batch_size(inputs)
            self.progress(doing, done, self.calibrate.samples)

    def _edit(self, edit: Edit, given: Mapping[str, Tensor]) -> None:
        step = Step(edit, dict(given))
        if isinstance(edit, KeepChildren | LeaveOut):
            self._rename(edit)
        edit.apply(self.model, step.tensors)
        self.state = self.state.after(step)

    def _rename(self, edit: Edit) -> None:
        """What is known by paths follows modules that are numbered anew; of what goes nothing is told any more."""
        names = children(self._origins, edit.container) if isinstance(edit, KeepChildren) else ()

        def moved(known: Mapping[str, Any]) -> dict[str, Any]:
            found = {renamed(path, edit, names): x for path, x in known.items()}
            return {path: x for path, x in found.items() if path is not None}

        self._origins, self._notes, self.factors = moved(self._origins), moved(self._notes), moved(self.factors)
        self.skipped, self._lasting = moved(self.skipped), set(moved(dict.fromkeys(self._lasting)))


def _all(going: Going) -> list[int]:
    return sorted(atom for atoms in going.values() for atom in atoms)
