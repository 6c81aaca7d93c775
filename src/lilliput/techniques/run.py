"""What a technique may ask of the run that drives it, and what a runtime says of its wishes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from lilliput.encodings import Encoding
from lilliput.feeding import Batches
from lilliput.measure import Latencies
from lilliput.model.edits.edit import Edit
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.view import View


@dataclass(frozen=True)
class Answer:
    """What is remembered: plain data and tensors."""

    data: Any = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Rough:
    """What a dry run takes for an answer, and the seconds that the true one takes; None where only doing it tells."""

    answer: Answer
    seconds: float | None = None
    stage: str = "encoding"


class Undecided(Exception):
    """What a dry run cannot tell."""


def only_by_doing(run: Run, why: str) -> None:
    """In a dry run, say that from here on only doing it tells."""
    if run.dry:
        raise Undecided(why)


@dataclass(frozen=True)
class Wanted:
    """How what flows into layers is to be encoded, by the paths of their weights; and what is encoded already."""

    activations: Mapping[str, Encoding]
    weights: Mapping[str, Encoding]  # all that are encoded
    flowing: Mapping[str, Encoding] = field(default_factory=dict)  # values that are, by their names


@dataclass(frozen=True)
class Placement:
    """One value that the target wants encoded: its name, and the value whose range it must share, if any."""

    value: str
    encoding: Encoding
    like: str = ""


@dataclass(frozen=True)
class Placed:
    """The values that a target wants encoded beside weights, and what becomes of the layers' other inputs.

    Both tables are by the paths of those weights.
    """

    values: Sequence[Placement] = ()
    left: Mapping[str, str] = field(default_factory=dict)  # beside which a layer's input stays float -> why
    told: Mapping[str, str] = field(default_factory=dict)  # whose layer's input is encoded otherwise than asked -> how


class PreferencesLike(Protocol):
    """What a target prefers, as far as techniques ask for it."""

    @property
    def multiple(self) -> int:
        """What it likes numbers of channels to be multiples of, on any machine."""
        ...

    def prepare(self, view: View, root: nn.Module) -> Iterable[tuple[Edit, Mapping[str, Tensor]]]:
        """Edits that change how the model is written but not what it computes, wanted before encoding."""
        ...

    def place(self, view: View, wanted: Wanted) -> Placed:
        """The values to encode: what each of those layers reads, or why not."""
        ...


class TargetLike(Protocol):
    """What a target says to techniques."""

    @property
    def prefers(self) -> PreferencesLike: ...

    @property
    def multiple_here(self) -> int:
        """What the kernels of this machine take at once."""
        ...

    @property
    def threads_used(self) -> int:
        """While it is measured."""
        ...

    def timed(self, networks: Mapping[str, nn.Module], example: Inputs, dynamic: Dynamic) -> Latencies:
        """What each network takes on the example once it is built and opened, in turns."""
        ...


class Lessons(Protocol):
    """What a task gives to train with."""

    def teach(self, run: Run, step: Any) -> None:
        """Train the model by the knobs of a `Finetune`."""
        ...

    def backward(self, model: nn.Module, most: int) -> Iterator[None]:
        """After each of the first batches the parameters of `model` have the gradients of its loss."""
        ...

    def rehearse(self, run: Run, step: Any) -> float:
        """Try that on one batch, without a step; the seconds that a batch takes."""
        ...


class Run(Protocol):
    """One model on its way through a recipe, as a technique sees it."""

    model: nn.Module  # as it stands; only `apply` changes it
    example: Inputs
    dynamic: Dynamic
    calibrate: Batches | None

    @property
    def target(self) -> TargetLike: ...

    @property
    def lessons(self) -> Lessons | None: ...

    @property
    def folder(self) -> Path | None:
        """Where files may lie that let a killed run go on; None: nowhere."""
        ...

    @property
    def dry(self) -> bool:
        """Whether it only tells what would be done: nothing is searched, rounded by what flows, timed or trained."""
        ...

    @property
    def digest(self) -> str:
        """Of the model as it stands, and of what results may depend on: versions, threads, processor."""
        ...

    @property
    def floats(self) -> Run:
        """The network as it stood before its numbers were rounded: statistics of what flows are taken there.

        Itself, where nothing has rounded them since the last step that changed the network otherwise.
        """
        ...

    def view(self) -> View:
        """The model as it stands: its calls, what they read, what is tied."""
        ...

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
        """What `compute` finds, remembered under the question (plain data): a resumed run computes nothing twice.

        It is remembered for the model as it stands unless `model` is false, and for the calibration batches unless
        `data` is. A dry run takes what is `rough` instead. What is not `lasting` is forgotten with the process.
        """
        ...

    def known(self, question: Sequence[Any], *, model: bool = True, data: bool = True) -> Answer | None:
        """What `ask` would answer without computing; None where it is not remembered."""
        ...

    def apply(self, edit: Edit, tensors: Mapping[str, Tensor]) -> None:
        """Change the model."""
        ...

    def note(self, path: str, text: str, *, lasting: bool = False) -> None:
        """Report what was done to a layer that its encoding does not say, beside what else was.

        It is told until the layer is encoded again; if `lasting`, then too.
        """
        ...

    def skip(self, path: str, reason: str, *, lasting: bool = False) -> None:
        """Report that something wanted was not done to a layer, and why.

        It is told until the layer is encoded; if `lasting`, then too.
        """
        ...

    def tell(self, kind: str, fact: Any, *, path: str = "") -> None:
        """Report a fact of a kind, of the module or tensor at a path, under the path that it had first."""
        ...

    def progress(self, doing: str, done: int, of: int) -> None:
        """Show how far it is."""
        ...

    def fork(self) -> Run:
        """A run that goes on from here by itself; it shares what is remembered, and all tensors not changed."""
        ...


Item = TypeVar("Item")


def counted(run: Run, doing: str, items: Collection[Item]) -> Iterator[Item]:
    """The items, with the progress shown once each is done."""
    for i, item in enumerate(items):
        yield item
        run.progress(doing, i + 1, len(items))
