"""The values to encode for layers to run on integers, found by going back from each convolution and linear layer."""

from __future__ import annotations

from math import prod

from lilliput.encodings import Encoding, Int, Sparse
from lilliput.encodings.integer import Uniform
from lilliput.model.view import Call, View
from lilliput.techniques.technique import Placement

INTEGER_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_SAME_SCALE = frozenset(  # what comes out has the range of what goes in
    (
        *("max_pool1d", "max_pool2d", "max_pool3d", "flatten", "reshape", "view"),
        *("transpose", "permute", "squeeze", "unsqueeze"),
    )
)
_THROUGH = frozenset({"dropout", "contiguous", "identity", "pad"})
_ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh"})  # taken into the rounding of what comes after a convolution
_FEW_CHANNELS, _FEW_PRODUCTS = 4, 64  # of one group: input channels, and products summed for one output


def eight_bits(encoding: Encoding | None) -> bool:
    """Whether integer kernels take a weight so encoded."""
    inner = encoding.values if isinstance(encoding, Sparse) else encoding
    if not isinstance(inner, Uniform) or inner.group is not None or not 4 < inner.bits <= 8:
        return False
    symmetric = not isinstance(inner, Int) or inner.symmetric is not False
    return symmetric and (inner.axis == 0 or inner.per == "tensor")


def at_run_time(encoding: Encoding) -> bool:
    """Whether the range of a value so encoded is found at each run."""
    return isinstance(encoding, Int) and encoding.dynamic


def _through(call: Call) -> bool:
    """Whether there is nothing to encode between the two sides of a call: zeros around an image are a convolution's."""
    return call.op in _THROUGH and not (call.op == "pad" and any(call.constants))


class Placing:
    """The values to encode so far, in `places`."""

    def __init__(self, view: View, encoding: Encoding, *, outputs: bool) -> None:
        """`outputs`: whether a kernel writes integers only where the file says so; else what reads it tells."""
        self.view, self.encoding, self.outputs = view, encoding, outputs
        self.places: dict[str, Placement] = {}
        self.integer: set[str] = set()  # ids of calls whose output is encoded

    def pays(self, call: Call) -> bool:
        """Whether a convolution gains from integers: not a small one over an image's few channels, and a depthwise one
        (whose float kernel is the faster) only where its input is encoded already.
        """
        if prod(call.weight_shape[1:]) >= _FEW_PRODUCTS or call.weight_shape[1] > _FEW_CHANNELS:
            return True
        source = self.view.by_id.get(call.reads[0] or "")
        while source is not None and (_through(source) or source.op in _ACTIVATIONS):
            source = self.view.by_id.get(source.reads[0] or "")
        return source is not None and source.id in self.integer

    def operand(self, call: Call) -> None:
        name = f"{call.value}@0"
        self.places[name] = Placement(name, self.encoding)

    def convolution(self, call: Call) -> None:
        if self._source(call.reads[0]) is None:
            self.operand(self._first_through(call))
        self.integer.add(call.id)
        if self.outputs:
            self._output(call)

    def additions(self) -> None:
        """An addition of two encoded values runs on integers if its own is encoded too."""
        for call in self.view.calls:
            if call.op == "add" and len(call.reads) > 1 and all(self._encoded(read) for read in call.reads[:2]):
                self._output(call)

    def _encoded(self, source: str | None) -> bool:
        call = self.view.by_id.get(source or "")
        while call is not None and _through(call):
            call = self.view.by_id.get(call.reads[0] or "")
        return call is not None and call.value in self.places

    def _output(self, call: Call) -> None:
        """Encode what a call returns, or what the activation right after it makes of that."""
        after = self.view.only_reader(call)
        fused = after if after is not None and after.op in _ACTIVATIONS and after.value else call
        if fused.value is not None:
            self.places.setdefault(fused.value, Placement(fused.value, self.encoding))

    def _first_through(self, call: Call) -> Call:
        """Back over padding and the like: encoded before it, the padding becomes part of the convolution."""
        before = self.view.by_id.get(call.reads[0] or "")
        while before is not None and _through(before) and before.value is not None:
            call, before = before, self.view.by_id.get(before.reads[0] or "")
        return call

    def _source(self, source: str | None) -> str | None:
        """Encode the value at `source`, where it has a name; returns the value whose range it has."""
        call = self.view.by_id.get(source or "")
        if call is None:
            return None
        if _through(call):
            return self._source(call.reads[0])
        if call.value is None:
            return None
        if call.op in _SAME_SCALE:
            like = self._source(call.reads[0])
            if like is not None:
                self.places.setdefault(call.value, Placement(call.value, self.encoding, like=like))
            return like
        known = call.value in self.places
        self.integer.add(call.id)
        self.places.setdefault(call.value, Placement(call.value, self.encoding))
        if call.op == "add" and not known and self.outputs:
            for read in call.reads:
                self._source(read)
        return call.value
