"""What integer kernels of runtimes compute with, and which layers ask for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from lilliput.encodings import Encoding, Int, LowRank, Sparse
from lilliput.encodings.integer import Uniform
from lilliput.measure import cpu
from lilliput.model.views.view import LOOKS_UP, Call, View

INTEGER_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


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


def two_products(call: Call, weight: Encoding | None, activation: Encoding | None) -> str:
    """What is to be said of a layer that is written as two, one behind the other; empty where it is one."""
    divided = call.op == "linear" or (call.window is not None and call.window.groups == 1)
    if not divided or not isinstance(weight, LowRank) or weight.products(call.weight_shape) == prod(call.weight_shape):
        return ""
    if activation is None:
        return "two float products in place of one"
    return "two products in place of one, integers where a kernel takes them" if eight_bits(weight.factors) else ""


def at_run_time(encoding: Encoding) -> bool:
    """Whether the range of a value so encoded is found at each run."""
    return isinstance(encoding, Int) and encoding.dynamic


def no_kernel_finds(encoding: Uniform) -> bool:
    """Whether it is a range found at run time for fewer than the 8 bits that runtimes find one for."""
    return at_run_time(encoding) and encoding.bits < 8


def alike(one: Encoding, other: Encoding) -> bool:
    """Whether two formats of values that flow are one, but for ranges: integers of as many bits, found as early."""
    same = type(one) is type(other) and at_run_time(one) == at_run_time(other)
    return same and (
        one.bits == other.bits if isinstance(one, Uniform) and isinstance(other, Uniform) else one == other
    )


def beyond_kernels(weight: Encoding | None, activation: Encoding) -> bool:
    """Whether no integer kernel computes with a weight, or with what flows, in such a format."""
    return not isinstance(activation, Uniform) or no_kernel_finds(activation) or not integers(weight)


def reading(view: View, weights: Mapping[str, Encoding]) -> Iterator[tuple[Call, list[str]]]:
    """The calls that multiply what flows by some of `weights`, with the paths of those; looking up reads no floats."""
    for call in view.calls:
        mine = [path for path in call.weights if path in weights]
        if mine and call.op not in LOOKS_UP:
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
