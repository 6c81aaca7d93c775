"""The values to encode for layers to run on integers, found by going back from each convolution and linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from lilliput.encodings import Encoding, Int, Sparse
from lilliput.encodings.integer import Uniform
from lilliput.measure import cpu
from lilliput.model.view import Call, View
from lilliput.techniques.run import Placed, Placement

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


def integers(encoding: Encoding | None) -> bool:
    """Whether integer kernels compute with weights in such a format, in one layer or another."""
    inner = encoding.values if isinstance(encoding, Sparse) else encoding
    if not isinstance(inner, Uniform) or inner.group is not None or not 2 <= inner.bits <= 8:
        return False
    return not isinstance(inner, Int) or inner.symmetric is not False


def eight_bits(encoding: Encoding | None) -> bool:
    """Whether integer kernels take a weight so encoded: with a scale for each output, or one for all."""
    inner = encoding.values if isinstance(encoding, Sparse) else encoding
    return integers(inner) and isinstance(inner, Uniform) and (inner.axis == 0 or inner.per == "tensor")


def exact_here() -> Int:
    """Weights whose products this processor sums without overflow: of 8 bits, or of 7 on x86 without VNNI."""
    return Int(7 if cpu().may_saturate else 8)


def at_run_time(encoding: Encoding) -> bool:
    """Whether the range of a value so encoded is found at each run."""
    return isinstance(encoding, Int) and encoding.dynamic


def no_kernel_finds(encoding: Uniform) -> bool:
    """Whether it is a range found at run time for fewer than the 8 bits that runtimes find one for."""
    return at_run_time(encoding) and encoding.bits < 8


def beyond_kernels(weight: Encoding | None, activation: Encoding) -> bool:
    """Whether no integer kernel computes with a weight, or with what flows, in such a format."""
    return not isinstance(activation, Uniform) or no_kernel_finds(activation) or not integers(weight)


def reading(view: View, weights: Mapping[str, Encoding]) -> Iterator[tuple[Call, list[str]]]:
    """The calls that multiply what flows by some of `weights`, with the paths of those; looking up reads no floats."""
    for call in view.calls:
        mine = [path for path in call.weights if path in weights]
        if mine and call.op != "embedding":
            yield call, mine


def hidden(call: Call) -> str:
    """Why what a call reads cannot be encoded; empty where it can."""
    return "" if call.value is not None else "inside a function of torch's it has no name by which it could be encoded"


def weights_lack(call: Call, weights: Mapping[str, Encoding]) -> str:
    """Why integer kernels do not take the weights of a call as they are encoded; empty where they do."""
    if not all(path in weights for path in call.weights):
        return "not all weights of the layer are encoded"
    whole = all(eight_bits(weights[path]) for path in call.weights)
    return "" if whole else "integer kernels want scales of weights along their outputs"


def _through(call: Call) -> bool:
    """Whether there is nothing to encode between the two sides of a call: zeros around an image are a convolution's."""
    return call.op in _THROUGH and not (call.op == "pad" and any(call.constants))


class Placing:
    """The values to encode so far, in `places`.

    Beside weights in a format that kernels compute with, only what pays: the rest stays float and is told. Where no
    kernel computes with a format nothing gets faster anyway, so all is encoded as asked: rounded in float, to show what
    it costs.
    """

    def __init__(self, view: View, encoding: Encoding, weights: Mapping[str, Encoding], *, outputs: bool) -> None:
        """`outputs`: whether a kernel writes integers only where the file says so; else what reads it tells."""
        self.view, self.encoding, self.weights, self.outputs = view, encoding, weights, outputs
        self.places: dict[str, Placement] = {}
        self.integer: set[str] = set()  # ids of calls whose output is encoded
        self._simulated: list[Call] = []
        self._left: list[tuple[Call, str]] = []

    def calls(self) -> Iterator[Call]:
        """Those that multiply by the weights and whose input has a name; of the others it stays float."""
        for call, _ in reading(self.view, self.weights):
            if why := hidden(call):
                self.leave(call, why)
            else:
                yield call

    def leave(self, call: Call, why: str) -> None:
        """What a call reads stays float, unless it is encoded for another."""
        self._left.append((call, why))

    def simulate(self, call: Call) -> None:
        """What a call reads is rounded in float."""
        self._simulated.append(call)

    def lacks(self, call: Call, why: str) -> None:
        """No kernel, or none that pays, multiplies what a call reads by its weights."""
        if all(integers(self.weights[path]) for path in call.weights if path in self.weights):
            self.leave(call, why)
        else:
            self.simulate(call)

    def placed(self) -> Placed:
        """What was decided; what a simulated layer reads is encoded once, by it or where it arises."""
        for call in self._simulated:
            if not self._encoded(call.reads[0]):
                self.operand(call)
        left: dict[str, str] = {}
        for call, why in self._left:
            if call.value is None or not self._encoded(call.reads[0]):
                for path in call.weights:
                    left.setdefault(path, f"what it reads stays float: {why}")
        return Placed(list(self.places.values()), {path: why for path, why in left.items() if path in self.weights})

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
