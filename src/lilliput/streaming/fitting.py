"""A recipe followed on one section after another, each as a network of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lilliput.engine.begin import stepped
from lilliput.engine.carried import check_carried
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.engine.told import Told
from lilliput.errors import InputError
from lilliput.feeding import Batches
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.carrier.identity import model_digest
from lilliput.model.carrier.snapshot import Snapshot
from lilliput.model.edits.copies import as_it_stands
from lilliput.model.edits.edits import SetTensor, State
from lilliput.model.views.inputs import Inputs
from lilliput.recipe import Recipe
from lilliput.streaming.passes import Flow, Passes, answers
from lilliput.streaming.sections import Alone, Arguments, Section, alone
from lilliput.streaming.weights import Weights
from lilliput.targets import Eager
from lilliput.techniques.technique import used_weights


@dataclass(frozen=True)
class Fitted:
    """A section as the recipe leaves it, and the paths of tensors that have other values than before."""

    section: Section
    network: Alone
    changed: frozenset[str]
    before: list[Any]  # what a block gave before its numbers were rounded, for each batch


@dataclass
class Fitting:
    """What all sections are fitted by, and what is told of them."""

    recipe: Recipe
    root: nn.Module  # on the meta device
    weights: Weights
    sections: Sequence[Section]
    batches: Batches | None
    store: Store
    environment: str
    notes: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    _carried: set[type[nn.Module]] = field(default_factory=set)  # of blocks, seen to compute with encoded tensors

    def all(self) -> Iterator[Fitted]:
        """The sections in turn; each may be forgotten once the next is asked for."""
        return self._by_themselves() if self.batches is None else self._flowing(self.batches)

    def _by_themselves(self) -> Iterator[Fitted]:
        for section in self.sections:
            fitted = self._by_itself(section)
            if fitted is not None:
                yield fitted
            del fitted  # before the next takes its place in memory

    def _by_itself(self, section: Section) -> Fitted | None:
        modules = self._taken(section)
        self.weights.fill(modules)
        network, example = alone(section, modules)
        if not example.args:
            self.skipped[section.paths[0]] = "no calibration batches, and no layer of torch: its use is not known"
            return None
        return self._fitted(section, network.eval(), example, None)

    def _flowing(self, batches: Batches) -> Iterator[Fitted]:
        """Each section by what flows into it: from the sections before as they are encoded, and as they were."""
        self.weights.fill({"": self.root}, without=[one for one in self.sections if one.block])
        original = as_it_stands(self.root)
        now, then = Passes(self.root, self.sections, batches), Passes(original, self.sections, batches)
        left = list(self.sections)
        while left:
            (path, brought), (other, earlier) = now.arrive(), then.arrive()
            if path != other:
                raise InputError(
                    f"the batches go to {other or 'the end'}, and once weights are rounded to {path or 'the end'}",
                    where=batches.field,
                    next="compress the whole network: lp.apply",
                )
            if not path:
                break
            section = next(one for one in left if path in one.paths)
            left.remove(section)
            yield self._passed(section, path, (now, then), (brought, earlier))
        for section in left:
            self.skipped |= dict.fromkeys(section.paths, "no calibration batch reaches it")

    def _passed(
        self,
        section: Section,
        path: str,
        passes: tuple[Passes, Passes],
        brought: tuple[Sequence[Arguments], Sequence[Arguments]],
    ) -> Fitted:
        """A section at which the batches wait; they may go on from there."""
        now, then = passes
        if not section.block:
            now.leave(section)
            then.leave(section)
        modules = self._taken(section)
        if section.block:
            self.weights.fill(modules)
        network = Alone(modules, [(path, brought[0][0])]).eval()
        given, before = ([one.inputs() for one in each] for each in brought)
        flow = Flow.of(given, before, path)
        fitted = self._fitted(section, network, flow.now[0], flow)
        if section.block:
            now.passed(section, path, answers(network, flow.now, path))
            then.passed(section, path, fitted.before)
        return fitted

    def _taken(self, section: Section) -> Mapping[str, nn.Module]:
        """The modules of a section: those of the network itself, or, of blocks and where nothing flows, copies."""
        modules = {path: self.root.get_submodule(path) for path in section.paths}
        return duplicate(modules) if section.block or self.batches is None else modules

    def _fitted(self, section: Section, network: Alone, example: Inputs, flow: Flow | None) -> Fitted:
        driver = Driver(
            network,
            Snapshot(network),
            State(model_digest(network)),
            example=example,
            dynamic={},
            calibrate=flow,
            target=Eager(),
            store=self.store,
            environment=self.environment,
            told=Told.of(network),
        )
        rounding = next((step for step in self.recipe.steps if step.rounds), self.recipe.steps[0])
        before: list[Any] = []
        for step in stepped(self.recipe, driver):
            if step is rounding and section.block and flow is not None:
                before = answers(network, flow.before, section.paths[0])
            meant = step.within(used_weights(driver))
            if meant is not None:
                meant.apply(driver)
        self._check_carried(driver, section)
        self.notes |= driver.told.notes
        self.skipped |= driver.told.skipped
        edits = (step.edit for step in driver.state.steps)
        changed = frozenset(edit.path for edit in edits if isinstance(edit, SetTensor))
        return Fitted(section, network, changed, before)

    def _check_carried(self, driver: Driver, section: Section) -> None:
        """Once for blocks of a class: code of the user's computes with encoded tensors as with others."""
        kind = type(self.root.get_submodule(section.paths[0]))
        if section.block and self.batches is not None and kind not in self._carried:
            check_carried(driver)
            self._carried.add(kind)
