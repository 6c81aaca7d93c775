"""The values to encode for layers to run on integers, found by going back from each convolution and linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from lilliput.encodings import Encoding
from lilliput.encodings.integer import Uniform
from lilliput.model.views.view import Call, View
from lilliput.targets.kernels import INTEGER_CONVOLUTIONS, alike, at_run_time, hidden, integers, reading
from lilliput.targets.simulated import operands
from lilliput.techniques.run import Placed, Placement, Wanted

_SAME_SCALE = frozenset(  # what comes out has the range of what goes in
    (
        *("max_pool1d", "max_pool2d", "max_pool3d", "flatten", "reshape", "view"),
        *("transpose", "permute", "squeeze", "unsqueeze"),
    )
)
_ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh"})  # taken into the rounding of what comes after a convolution
_FEW_CHANNELS, _FEW_PRODUCTS = 4, 64  # of one group: input channels, and products summed for one output


class Placing:
    """The values to encode so far, in `places`.

    Beside weights in a format that kernels compute with, only what pays: the rest stays float and is told. Where no
    kernel computes with a format nothing gets faster anyway, so all is encoded as asked: rounded in float, to show what
    it costs. What layers want otherwise of one value, each of them rounds as it reads it.
    """

    def __init__(self, view: View, wanted: Wanted, *, outputs: bool) -> None:
        """`outputs`: whether a kernel writes integers only where the file says so; else what reads it tells."""
        self.view, self.wanted, self.outputs = view, wanted, outputs
        self.places: dict[str, Placement] = {}
        self.integer = {call.id for call in view.calls if call.value in wanted.flowing}  # whose output is encoded
        self._readers = self._wishes()
        self._simulated: list[tuple[Call, Encoding]] = []
        self._left: list[tuple[Call, str]] = []
        self._grids: dict[str, Encoding] = {}

    def calls(self) -> Iterator[tuple[Call, Uniform]]:
        """Those that read what has a name, with how it is wanted; of the others it stays float.

        What is wanted in a grid of other numbers no kernel takes: it is `simulated`.
        """
        for call, paths in reading(self.view, self.wanted.activations):
            encoding = self.wanted.activations[paths[0]]
            if not isinstance(encoding, Uniform):
                self._grids |= dict.fromkeys(paths, encoding)
            elif why := hidden(call):
                self.leave(call, why)
            else:
                yield call, encoding

    def leave(self, call: Call, why: str) -> None:
        """What a call reads stays float, unless it is encoded for another."""
        self._left.append((call, why))

    def simulate(self, call: Call, encoding: Encoding) -> None:
        """What a call reads is rounded in float."""
        self._simulated.append((call, encoding))

    def lacks(self, call: Call, encoding: Encoding, why: str) -> None:
        """No kernel, or none that pays, multiplies what a call reads by its weights."""
        weights = self.wanted.weights
        if all(integers(weights[path]) for path in call.weights if path in weights):
            self.leave(call, why)
        else:
            self.simulate(call, encoding)

    def placed(self) -> Placed:
        """What was decided; what a simulated layer reads is encoded once, by it or where it arises."""
        for call, encoding in self._simulated:
            held = self._encoded(call.reads[0])
            if held is None or not alike(held, encoding):
                self.operand(call, encoding)
        grids = operands(self.view, self._grids)
        left: dict[str, str] = dict(grids.left)
        for call, why in self._left:
            if call.value is None or self._encoded(call.reads[0]) is None:
                for path in call.weights:
                    left.setdefault(path, f"what it reads stays float: {why}")
        told = {path: why for path, why in left.items() if path in self.wanted.activations}
        return Placed([*self.places.values(), *grids.values], told, grids.told)

    def pays_not(self, call: Call) -> str:
        """Why a convolution gains nothing from integers: a small one over an image's few channels, or a depthwise one
        (whose float kernel is the faster) unless its input is encoded already. Empty where it gains.
        """
        if call.op not in INTEGER_CONVOLUTIONS or prod(call.weight_shape[1:]) >= _FEW_PRODUCTS:
            return ""
        if call.weight_shape[1] > _FEW_CHANNELS or self._reads_integers(call):
            return ""
        return "its float kernel is the faster, so few products does it sum"

    def _reads_integers(self, call: Call) -> bool:
        source = self.view.by_id.get(call.reads[0] or "")
        while source is not None and (source.passes or source.op in _ACTIVATIONS):
            source = self.view.by_id.get(source.reads[0] or "")
        return source is not None and source.id in self.integer

    def operand(self, call: Call, encoding: Encoding) -> None:
        self._place(f"{call.value}@0", encoding)

    def layer(self, call: Call, encoding: Encoding) -> None:
        """Encode what a layer reads, and what it gives where a kernel wants to be told."""
        if self._source(call.reads[0], encoding) is None:
            self.operand(self._first_through(call), encoding)
        self.integer.add(call.id)
        if self.outputs:
            self._output(call, encoding)

    def additions(self) -> None:
        """An addition of two encoded values runs on integers if its own is encoded too."""
        for call in self.view.calls:
            if call.op == "add" and len(call.reads) > 1:
                first, second = (self._encoded(read) for read in call.reads[:2])
                if first is not None and second is not None:
                    self._output(call, _finest([first, second]))

    def _wishes(self) -> dict[str, list[Encoding]]:
        """How what a call gives is wanted by the layers that read it, also through what keeps its range; by its id."""
        found: dict[str, list[Encoding]] = {}
        for call, paths in reading(self.view, self.wanted.activations):
            encoding, source = self.wanted.activations[paths[0]], self.view.by_id.get(call.reads[0] or "")
            while source is not None and (source.passes or source.op in _SAME_SCALE):
                source = self.view.by_id.get(source.reads[0] or "")
            if source is not None and isinstance(encoding, Uniform) and not at_run_time(encoding):
                found.setdefault(source.id, []).append(encoding)
        return found

    def _place(self, value: str, encoding: Encoding, like: str = "") -> None:
        """Encode a value, unless it is encoded so already."""
        held = self.wanted.flowing.get(value)
        if held is None or not alike(held, encoding):
            self.places.setdefault(value, Placement(value, encoding, like))

    def _held(self, value: str | None) -> Encoding | None:
        """How a value is encoded, so far."""
        place = self.places.get(value or "")
        return self.wanted.flowing.get(value or "") if place is None else place.encoding

    def _encoded(self, source: str | None) -> Encoding | None:
        """How what a call reads is encoded where it arises."""
        call = self.view.by_id.get(source or "")
        while call is not None and call.passes:
            call = self.view.by_id.get(call.reads[0] or "")
        return None if call is None else self._held(call.value)

    def _output(self, call: Call, encoding: Encoding) -> None:
        """Encode what a call returns, or what the activation right after it makes of that, as finely as it is read."""
        after = self.view.only_reader(call)
        fused = after if after is not None and after.op in _ACTIVATIONS and after.value else call
        if fused.value is not None and self._held(fused.value) is None:
            self._place(fused.value, _finest(self._readers.get(fused.id) or [encoding]))

    def _first_through(self, call: Call) -> Call:
        """Back over padding and the like: encoded before it, the padding becomes part of the convolution."""
        before = self.view.by_id.get(call.reads[0] or "")
        while before is not None and before.passes and before.value is not None:
            call, before = before, self.view.by_id.get(before.reads[0] or "")
        return call

    def _source(self, source: str | None, encoding: Encoding) -> str | None:
        """Encode the value at `source`, where it has a name and is wanted so; returns the value whose range it has."""
        call = self.view.by_id.get(source or "")
        if call is None:
            return None
        if call.passes:
            return self._source(call.reads[0], encoding)
        if call.value is None:
            return None
        if call.op in _SAME_SCALE:
            like = self._source(call.reads[0], encoding)
            if like is not None:
                self._place(call.value, encoding, like)
            return like
        held = self._held(call.value)
        if not all(alike(other, encoding) for other in (*self._readers.get(call.id, ()), *([held] if held else ()))):
            return None
        self.integer.add(call.id)
        self._place(call.value, encoding)
        if call.op == "add" and held is None and self.outputs:
            for read in call.reads:
                self._source(read, encoding)
        return call.value


def _finest(encodings: Sequence[Encoding]) -> Encoding:
    """The one of most bits."""
    return max(encodings, key=lambda one: one.bits if isinstance(one, Uniform) else 0)
