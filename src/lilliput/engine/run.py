"""The driver behind what techniques ask for: it makes the edits, remembers every answer, and keeps what is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.engine.plan import Plan
from lilliput.engine.room import is_large
from lilliput.engine.store import Store
from lilliput.engine.told import Told
from lilliput.engine.tried import Tried
from lilliput.feeding import Batches, ask
from lilliput.model.carrier.identity import model_digest
from lilliput.model.carrier.snapshot import Snapshot
from lilliput.model.edits.copies import as_it_stands, private_copy
from lilliput.model.edits.edit import Edit
from lilliput.model.edits.edits import EncodeTensor, EncodeValue, State, Step
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.view import View
from lilliput.plain import digest
from lilliput.progress import Progress, silent
from lilliput.targets.target import Target
from lilliput.techniques.run import Answer, Lessons, Rough


@dataclass
class Driver:
    """One model on its way through a recipe: a `Run`, with what its beginning and its end need beside.

    `model` is a private copy that the edits are made in; `state` says how it came about. The user's model is only read.
    """

    model: nn.Module
    before: Snapshot  # of the model as it was copied
    state: State
    example: Inputs
    dynamic: Dynamic
    calibrate: Batches | None
    target: Target
    store: Store
    environment: str  # digest of what results may depend on: versions, threads, processor
    told: Told
    progress: Progress = silent
    lessons: Lessons | None = None
    evaluate: Batches | None = None  # on which builds are compared too, where there are no other samples
    probes: Sequence[tuple[str, Inputs]] = ()  # further inputs, named, on which the captured graph must answer right
    measures: bool = True  # what loading takes; what calls take is the target's `seconds`
    plan: Plan | None = None  # of a dry run
    keeps_floats: bool = False  # for a later step that asks what flowed before numbers were rounded
    kept_floats: Driver | None = None
    tried: Tried | None = None  # on the target, in place of its own recipe; None where the recipe is the user's
    _views: dict[str, View] = field(default_factory=dict)
    _kept: frozenset[str] = frozenset()  # paths of what runs change in the model, which is of no consequence

    @classmethod
    def start(cls, model: nn.Module, *, shares: bool = False, **rest: Any) -> Driver:
        """A driver over a copy of `model`, which may share the memory of parameters that nothing writes into."""
        copied = private_copy(model, shares=shares).eval()
        return cls(copied, Snapshot(copied), State(model_digest(model)), told=Told.of(copied), **rest)

    def afresh(self, model: nn.Module, *, reads: bool = False) -> Driver:
        """Another driver, over `model` as it is given, under the same conditions.

        One that only `reads` holds large weights in the same memory, where `model` is the one that this run began with:
        a model that writes into its parameters was refused then.
        """
        names = ("example", "dynamic", "calibrate", "evaluate", "target", "store", "environment", "progress")
        shares = reads and is_large(model) and self.state.base == model_digest(model)
        other = Driver.start(model, shares=shares, **{name: getattr(self, name) for name in names})
        other.warm(self._kept)
        return other

    def fork(self) -> Driver:
        self.settle()
        model = as_it_stands(self.model)
        other = replace(self, model=model, before=Snapshot(model), told=self.told.copy(), _views=dict(self._views))
        for one in (self, other):
            one.warm(self._kept)
        return other

    def warm(self, kept: Iterable[str]) -> None:
        """Run the model once where it keeps something of its runs, so that it is captured with that; see `settle`."""
        self._kept = frozenset(kept)
        self.before.forget_all_but(self._kept)  # or the weights would be in memory as they were before their encoding
        if self._kept:
            with torch.no_grad():
                ask(self.model, self.example, "example")

    def settle(self) -> None:
        """Put back what runs have changed in the model: it is delivered as it was given, but for the edits."""
        if self._kept:
            self.before.restore(self._kept)

    # what techniques ask

    @property
    def folder(self) -> Path | None:
        return self.store.folder

    @property
    def dry(self) -> bool:
        return self.plan is not None

    @property
    def digest(self) -> str:
        return digest(self.environment, self.state.digest)

    @property
    def floats(self) -> Driver:
        return self.kept_floats or self

    def view(self) -> View:
        if self.state.digest not in self._views:
            checks = not self._views  # what edits make of a graph that answered right is checked where they are made
            self._views[self.state.digest] = capture(self.model, self.example, self.dynamic, self.probes, checks=checks)
        return self._views[self.state.digest]

    def ask(
        self,
        question: Sequence[Any],
        compute: Callable[[], Answer],
        *,
        model: bool = True,
        data: bool = True,
        rough: Callable[[], Rough] | None = None,
        lasting: bool = True,
    ) -> Answer:
        if self.plan is not None and rough is not None:
            return self.plan.taken(rough())
        return self.store.answer(self._question(question, model, data), compute, lambda found: lasting)

    def known(self, question: Sequence[Any], *, model: bool = True, data: bool = True) -> Answer | None:
        return self.store.known(self._question(question, model, data))

    def _question(self, question: Sequence[Any], model: bool, data: bool) -> tuple[Any, ...]:
        batches = self.calibrate.digest if data and self.calibrate is not None else None
        return (*question, self.environment, self.state.digest if model else None, batches)

    def apply(self, edit: Edit, tensors: Mapping[str, Tensor]) -> None:
        if self.keeps_floats and self.kept_floats is None and isinstance(edit, EncodeTensor | EncodeValue):
            self.kept_floats = self.fork()
        step = Step(edit, dict(tensors))
        self.told.follow(edit)
        edit.apply(self.model, step.tensors)
        self.state = self.state.after(step)

    def note(self, path: str, text: str, *, lasting: bool = False) -> None:
        self.told.note(path, text, lasting)

    def skip(self, path: str, reason: str, *, lasting: bool = False) -> None:
        self.told.skip(path, reason, lasting)

    def tell(self, kind: str, fact: Any, *, path: str = "") -> None:
        self.told.tell(kind, fact, path)
