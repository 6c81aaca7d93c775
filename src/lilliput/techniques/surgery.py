"""Taking parts out of a network: what may go, what is left of a cost, and how it is done."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from lilliput.errors import InputError
from lilliput.feeding import batch_size, fingerprint
from lilliput.model.carrier.carrier import tensors
from lilliput.model.edits.edit import structure
from lilliput.model.edits.edits import Step
from lilliput.model.edits.structure import LeaveOut, Resize
from lilliput.model.surgery.coupling import Coupling, Group, Shrinking, coupling
from lilliput.model.surgery.depth import Dispensable, blocks, layers, relied_on, with_configs, without
from lilliput.model.surgery.trial import Change, changed, misfit, shapes
from lilliput.model.views.inputs import Inputs
from lilliput.techniques.budget import left_of
from lilliput.techniques.run import Answer, Run, only_by_doing

Going = Mapping[Group, Sequence[int]]  # the atoms of groups that are to be removed

_BATCHES = 4  # at most, that are asked what a network answers without each of its blocks


# channels and heads


@dataclass
class Slices:
    """The slices of the model as it stands: what can only be removed together, and the removing.

    Raises InputError for a model that cannot be captured whole.
    """

    run: Run
    coupling: Coupling
    shrinking: Shrinking

    @classmethod
    def of(cls, run: Run) -> Slices:
        view = run.view()
        if view.rung != "whole":
            path, why = next(iter(view.problems.items()))
            raise InputError(
                "the model cannot be captured whole",
                where=path,
                why=why,
                next="rewrite what stands in the way, or prune weights: they need no whole graph",
            )
        run.progress("looking for what is coupled", 0, 1)
        found = coupling(run.model, run.example)
        run.progress("looking for what is coupled", 1, 1)
        return cls(run, found, Shrinking(run.model, found, run.example, run.progress))

    def refused(self, going: Going) -> dict[Group, str]:
        """Which of these groups cannot lose these atoms, and why; the others can, together."""
        only_by_doing(self.run, "what goes is only found by shrinking copies and comparing them")
        return self.shrinking.refused(going)

    def left(self, what: str, going: Going) -> float:
        """The ``macs``, ``parameters`` or measured ``latency`` without what goes, relative to those there are."""
        return left(self.run, what, self.shrinking.changes(_atoms(going)))

    def remove(self, going: Going) -> None:
        """Remove these atoms, of groups that can lose them.

        Raises CaptureError, and changes nothing, where the model would then make other calls than it does.
        """
        made, untold = self.shrinking.described(_atoms(going))
        self.run.tell("check", self.shrinking.apart)
        for path in self.shrinking.not_rescaled(_atoms(going)):
            self.run.skip(path, "a norm over fewer channels now, whose gains are no parameter of its own to scale up")
        for edit, given in made:
            self.run.apply(edit, given)
        _tell_untold(self.run, untold)


def _atoms(going: Going) -> list[int]:
    return sorted(atom for atoms in going.values() for atom in atoms)


# layers and blocks


def dispensable(run: Run, unit: str) -> Sequence[Dispensable]:
    """The ``layers`` or ``blocks`` that might be left out, and how much that changes."""
    if unit == "layers":
        return layers(run.model, _read(run, "comparing layers"))

    def compute() -> Answer:
        some = itertools.islice(_read(run, "reading batches"), _BATCHES)
        return Answer(
            [(one.path, one.change, one.by and asdict(one.by)) for one in blocks(run.model, some, run.progress)]
        )

    only_by_doing(run, "which blocks go is only found by running the network without each")
    found = run.ask(("dispensable", unit, fingerprint(run.example)), compute).data
    return [Dispensable(path, change, LeaveOut(**by)) for path, change, by in found]


def undroppable(run: Run, gone: Sequence[Dispensable]) -> dict[str, str]:
    """Which of these cannot be left out, by path, and why; the others can, together."""

    def compute() -> Answer:
        refused, going, expected = dict[str, str](), list[Dispensable](), shapes(run.model, run.example)
        needed = relied_on(run.model, run.example)
        for done, one in enumerate(gone):
            run.progress("leaving layers out", done, len(gone))
            why = f"{needed[one.path]} reads something else that it makes" if one.path in needed else ""
            why = why or misfit(run.model, without(run.model, [*going, one]), run.example, expected)
            if why:
                refused[one.path] = why
            else:
                going.append(one)
        return Answer(refused)

    only_by_doing(run, "what goes is only found by running the network without it")
    question = ("undroppable", fingerprint(run.example), [repr(one) for one in gone])
    return dict(run.ask(question, compute, data=False).data)


def drop(run: Run, gone: Sequence[Dispensable]) -> dict[str, str]:
    """Leave layers or blocks out; tells by path which cannot be left out, and why, and reports them as skipped."""
    if any(isinstance(edit, Resize) for edit in structure(run.model)):
        raise InputError(
            "layers and blocks are left out before channels are removed",
            why="a file tells widths by the numbers that layers had in their lists",
            next="prune layers first, then channels",
        )
    refused = undroppable(run, gone)
    going = [one for one in gone if one.path not in refused]
    for one in (one for one in gone if one.path in refused):
        run.skip(one.path, f"{one.told}, but cannot be left out: {refused[one.path]}")
    made, untold = with_configs(run.model, without(run.model, going), run.example)
    for one, parameters in zip(going, _own(run, going), strict=True):
        run.tell("removed", {"parameters": parameters, "score": one.change, "told": one.told}, path=one.path)
    for edit, given in made:
        run.apply(edit, given)
    _tell_untold(run, untold)
    return refused


def _own(run: Run, going: Sequence[Dispensable]) -> list[int]:
    """How many parameters go with each; what two of them share is counted once, what others hold not at all."""
    inside = tuple(f"{one.path}." for one in going)
    every = tensors(run.model)
    stay = {id(x) for paths, x in every.items() if not all(path.startswith(inside) for path in paths)}
    found = []
    for one in going:
        held = {id(x): math.prod(x.shape) for x in tensors(run.model.get_submodule(one.path)).values()}
        found.append(sum(count for x, count in held.items() if x not in stay))
        stay |= held.keys()
    return found


def _read(run: Run, doing: str) -> Iterator[Inputs]:
    """The calibration batches, or else the example alone, told as they are read."""
    if run.calibrate is None:
        yield run.example
        return
    done = 0
    for inputs in run.calibrate:
        yield Inputs.of(inputs)
        done += batch_size(inputs)
        run.progress(doing, done, run.calibrate.samples)


# both


def left(run: Run, what: str, changes: Sequence[Change]) -> float:
    """The ``macs``, ``parameters`` or measured ``latency`` once changed, relative to those there are."""
    only_by_doing(run, "how much goes is only found by trying")
    identity = [Step(edit, dict(given)).digest() for edit, given in changes]
    question = ("left", fingerprint(run.example), repr(run.target), what, identity)
    run.progress(f"finding {what}", 0, 1)
    found, disturbance = run.ask(
        question, lambda: Answer(list(left_of(run, what, changed(run.model, changes)))), data=False
    ).data
    if disturbance:
        run.skip(what, f"the budget was not measured well: {disturbance}")
    return float(found)


def left_without(run: Run, what: str, gone: Sequence[Dispensable]) -> float:
    """As `left`, without layers or blocks."""
    return left(run, what, without(run.model, gone))


def _tell_untold(run: Run, why: str) -> None:
    if why:
        run.skip("config", f"keeps the old sizes: {why}; save the network by lilliput.save")
