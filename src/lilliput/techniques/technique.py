"""What a technique is, and what it may ask of the run that drives it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from lilliput.encodings import Encoding
from lilliput.model.coupling import Coupling, Group
from lilliput.model.depth import Dispensable
from lilliput.model.view import MULTIPLIES, Call, View
from lilliput.plain import short_repr
from lilliput.techniques.blocks import Block, Entry
from lilliput.techniques.choice import NEAREST, Choice, JointChoice
from lilliput.techniques.inputs import Stop
from lilliput.techniques.statistics import Observe, Statistics
from lilliput.techniques.where import Where

_PRODUCTS = frozenset({"matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"})
_SUMS = frozenset({"addmm", "baddbmm"})  # whose first operand is added
_TURNS = frozenset({"t", "numpy_T", "transpose", "permute", "contiguous"})

Going = Mapping[Group, Sequence[int]]  # the atoms of groups that are to be removed


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


class Run(Protocol):
    """The driver, as a technique sees it. Every call is remembered by its content."""

    @property
    def calibrated(self) -> bool:
        """Whether there are batches that `statistics` can look at."""
        ...

    def view(self) -> View:
        """The model as it stands."""
        ...

    def prepare(self) -> None:
        """Make the edits that the target needs before anything is encoded (folding of normalisations)."""
        ...

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all parameters, each under its first path."""
        ...

    def tensor(self, path: str) -> Tensor:
        """A parameter, decoded."""
        ...

    def encoding(self, path: str) -> Encoding | None:
        """How a parameter is represented now."""
        ...

    def encode(self, path: str, encoding: Encoding, choice: Choice = NEAREST) -> None:
        """Represent a parameter by the numbers that are chosen so."""
        ...

    def encode_block(self, encodings: Mapping[str, Encoding], choice: JointChoice) -> None:
        """Represent the weights of a block by numbers chosen together; the biases that may move are set beside them."""
        ...

    def encode_value(self, value: str, encoding: Encoding, parameters: Mapping[str, Tensor]) -> None:
        """Represent a value that flows."""
        ...

    def set_tensor(self, path: str, x: Tensor) -> None:
        """Give a parameter new values."""
        ...

    def rescale(self, factors: Mapping[str, Tensor], tolerance: float) -> float:
        """Multiply parameters by factors with which the model computes the same; tells by how much its outputs differ.

        Relative to the largest, on the example and on a calibration batch. Nothing is changed where it is not within
        the tolerance.
        """
        ...

    def statistics(self, wanted: Mapping[str, Observe]) -> Mapping[str, Statistics]:
        """What the named values look like over the calibration batches."""
        ...

    def walk(self, places: Sequence[Call | Block]) -> Generator[Stop | Entry, None, None]:
        """The calls and blocks in order, the calibration batches waiting at each; its weights may be encoded there."""
        ...

    def repeated(self) -> Sequence[str]:
        """Paths of the modules in lists and sequences beside others of their class."""
        ...

    def coupling(self) -> Coupling:
        """What of the model as it stands can only be removed together.

        Raises InputError for a model that cannot be captured whole.
        """
        ...

    def unremovable(self, going: Going) -> dict[Group, str]:
        """Which of these groups cannot lose these atoms, and why; the others can, together."""
        ...

    def left(self, what: str, gone: Going | Sequence[Dispensable]) -> float:
        """The ``macs``, ``parameters`` or measured ``latency`` without what is gone, relative to those there are."""
        ...

    def shrink(self, going: Going) -> None:
        """Remove these atoms, of groups that can lose them, from the model.

        Raises CaptureError, and changes nothing, where the model would then make other calls than it does.
        """
        ...

    @property
    def multiple(self) -> int:
        """What the target likes numbers of channels to be multiples of."""
        ...

    def dispensable(self, unit: str) -> Sequence[Dispensable]:
        """The ``layers`` or ``blocks`` that might be left out, and how much that changes."""
        ...

    def undroppable(self, gone: Sequence[Dispensable]) -> dict[str, str]:
        """Which of these cannot be left out, by path, and why; the others can, together."""
        ...

    def drop(self, gone: Sequence[Dispensable]) -> dict[str, str]:
        """Leave layers or blocks out; tells by path which cannot be left out, and why, and reports them as skipped."""
        ...

    def remember(self, question: Any, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives for the model as it stands and the calibration batches, computed once."""
        ...

    def encoded_value(self, name: str) -> bool:
        """Whether a value that flows, or an operand, is encoded already."""
        ...

    def place(self, encoding: Encoding, weights: Mapping[str, Encoding]) -> Placed:
        """The values that the target wants encoded if `weights` are: what each of their layers reads, or why not."""
        ...

    def train(self, step: Any) -> None:
        """Train the model by the knobs of a `Finetune`."""
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


@dataclass(frozen=True, repr=False, kw_only=True)
class Technique(ABC):
    """A frozen set of knobs and one method, whose only inputs are those knobs and what the run answers."""

    where: Where = "*"  # module paths, with * and ?; a leading ! excludes

    @abstractmethod
    def apply(self, run: Run) -> None:
        """Decide, and ask the run to change the model."""

    @property
    def establishes(self) -> frozenset[str]:
        """What later steps rely on: ``"ranges"`` once activations are calibrated, ``"values"`` once they are encoded,
        ``"widths"`` once channels are gone.
        """
        return frozenset()

    @property
    def disturbs(self) -> frozenset[str]:
        """What this step makes stale if an earlier one established it."""
        return frozenset()

    @property
    def needs(self) -> Mapping[str, str]:
        """Fields of the task without which it cannot be done, each with what to do about it; asked before any step."""
        return {}

    @property
    def times(self) -> bool:
        """Whether it goes by what networks take on the target."""
        return False

    def __repr__(self) -> str:
        return short_repr(self)


def used_weights(run: Run) -> dict[str, list[Call]]:
    """The parameters that layers multiply by or look rows up in, with their calls in order.

    Layers whose weight is no parameter are reported as skipped.
    """
    view, shapes = run.view(), run.shapes()
    for call in view.calls:
        if call.op in MULTIPLIES and not call.weights:
            run.skip(call.module or call.id, "its weight is computed or no parameter: make it an nn.Parameter")
    for path in view.weights:
        if path not in shapes:
            run.skip(path, "a buffer, not a parameter: make it an nn.Parameter")
    for path in _multiplied(view):
        if path not in shapes:
            run.skip(path, "a buffer that is multiplied by: make it the weight of a linear layer")
    return {path: calls for path, calls in view.weights.items() if path in shapes}


def _multiplied(view: View) -> Iterator[str]:
    """Paths of tensors that are operands of a product which is no layer's, as they are or turned."""
    for call in view.calls:
        operands = call.reads[call.op in _SUMS :] if call.op in _PRODUCTS else ()
        for source in operands:
            while source in view.by_id and view.by_id[source].op in _TURNS:
                source = view.by_id[source].reads[0]
            if source and source.startswith("tensor "):
                yield source.removeprefix("tensor ")
