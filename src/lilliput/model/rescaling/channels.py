"""Where the channels of a value lie, and which calls pass on what each is multiplied by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from lilliput.model.views.view import CONVOLUTIONS, MULTIPLIES, Call

NORMS: Mapping[str, int] = {  # ops that multiply by one weight a channel: where they read it; a bias comes next
    **{"layer_norm": 2, "rms_norm": 2, "group_norm": 2},
    **{"batch_norm": 1, "instance_norm": 1},
}
_LAST = frozenset({"layer_norm", "rms_norm", "mul", "linear"})  # what they return has its channels along the last axis
_ELEMENTWISE = frozenset(  # f(s · x) = s · f(x) for s > 0
    {
        *("relu", "leaky_relu", "prelu", "abs", "neg"),
        *("dropout", "feature_dropout", "contiguous", "clone", "detach", "alias", "identity", "to", "_to_copy"),
    }
)
_PADS = frozenset({"pad", "reflect_pad", "replicate_pad", "circular_pad"})
_POOLS = frozenset(  # over as many of the last axes as the name says
    f"{kind}{axes}d"
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest")
    for axes in (1, 2, 3)
) | {"upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"}
_LAID_OUT = frozenset({"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"})
_PRODUCTS = frozenset({"matmul", "bmm", "scaled_dot_product_attention"})


class Apart(Exception):
    """What is multiplied by something on one side would not come out multiplied on the other; says why."""


@dataclass(frozen=True)
class Channels:
    """Along which axes the channels of a value lie, in their order; `each` elements after one another are one channel.

    Axes are counted from the front; all but the last of several are whole factors of the number of channels.
    """

    axes: tuple[int, ...]
    each: int = 1


def made(call: Call) -> Channels:
    """The channels of what a convolution, linear layer or normalisation returns."""
    if call.op in _LAST:
        return Channels((len(call.shape) - 1,))
    return Channels((len(call.shape) - _space(call) - 1,)) if call.op in CONVOLUTIONS else Channels((1,))


def taken(call: Call, shape: tuple[int | str, ...], at: Channels) -> int:
    """How many elements of each channel a convolution or linear layer multiplies by weights of its own.

    Raises Apart where it takes something else than the channels for its inputs.
    """
    wanted = len(shape) - 1 if call.op == "linear" else len(shape) - _space(call) - 1
    if at.axes != (wanted,) or (call.op != "linear" and at.each > 1):
        raise Apart(f"{named(call)} takes channels apart")
    return at.each


def passed_on(call: Call, source: Call, at: Channels) -> Channels:
    """The channels of what `call` returns, where it reads those of `source`.

    Raises Apart where it mixes or bends them.
    """
    place = call.reads.index(source.id)
    before, after = source.shape, call.shape
    if call.op in ("mul", "div"):
        return _product(call, place, before, at)
    if call.op in _PRODUCTS and place == {"matmul": 1, "bmm": 1}.get(call.op, 2):
        same = len(before) == len(after) and all(before[i] == after[i] for i in at.axes)
        if same and len(before) - 2 not in at.axes:
            return at
    elif place == 0:
        if call.op in _ELEMENTWISE:
            return at
        if call.op in _POOLS and at.axes[-1] < len(before) - int(call.op[-2]):
            return at
        if call.op in _PADS and not any(call.constants) and all(before[i] == after[i] for i in at.axes):
            return at
        if call.op in ("transpose", "permute"):
            return replace(at, axes=tuple(_order(call, len(before)).index(i) for i in at.axes))
        if call.op in ("mean", "sum"):
            return _reduced(call, before, at)
        if call.op in _LAID_OUT:
            return _laid_out(call, before, at)
    raise Apart(f"what is multiplied before {named(call)} does not come out multiplied")


def sources(call: Call) -> tuple[str | None, ...]:
    """What `call` reads that it could pass on, the most promising last."""
    if call.op == "mul":
        return call.reads[:2]
    if call.op in _PRODUCTS:
        return call.reads[1:2] if call.op != "scaled_dot_product_attention" else call.reads[2:3]
    known = _ELEMENTWISE | _POOLS | _PADS | _LAID_OUT | {"div", "transpose", "permute", "mean", "sum"}
    return call.reads[:1] if call.op in known else ()


def named(call: Call) -> str:
    """A call in words."""
    return f"{call.op} of {call.module}" if call.module else call.op


def _space(call: Call) -> int:
    """The axes that a convolution goes along."""
    return int(call.op[-2])


def _product(call: Call, place: int, before: tuple[int | str, ...], at: Channels) -> Channels:
    """A product of two values is linear in each; the other may be stretched to the shape of this one."""
    if place > (1 if call.op == "mul" else 0) or len(call.shape) != len(before):
        raise Apart(f"{named(call)} is no product of it")
    if any(call.shape[i] != before[i] for i in at.axes):
        raise Apart(f"{named(call)} stretches it")
    return at


def _order(call: Call, axes: int) -> tuple[int, ...]:
    """Which axis of what it reads each axis of a transposed value is."""
    if call.op == "permute":
        return tuple(n % axes for n in call.numbers)
    order = list(range(axes))
    a, b = (int(n) % axes for n in call.constants[:2])
    order[a], order[b] = b, a
    return tuple(order)


def _reduced(call: Call, before: tuple[int | str, ...], at: Channels) -> Channels:
    gone = {n % len(before) for n in call.numbers}
    if not gone or gone & set(at.axes):
        raise Apart(f"{named(call)} goes over the channels")
    kept = len(call.shape) == len(before)
    return at if kept else replace(at, axes=tuple(i - sum(n < i for n in gone) for i in at.axes))


def _laid_out(call: Call, before: tuple[int | str, ...], at: Channels) -> Channels:
    """The channels in another shape of the same elements in the same order."""
    after = call.shape
    if before == after:
        return at
    first, last = at.axes[0], at.axes[-1]
    lengths = [before[i] for i in range(first, len(before))]
    if at.axes == tuple(range(first, last + 1)) and all(isinstance(n, int) for n in lengths):
        inner = prod(int(n) for n in lengths[last + 1 - first :])
        total = prod(int(n) for n in lengths)
        if inner > 1:  # a channel's elements beyond its own axis lie after one another
            if before[:first] == after[:-1] and after[-1] == total:
                return Channels((first,), at.each * inner)
        else:
            axes = _trailing(after, total)
            if axes and (len(axes) == 1 or at.each == 1):
                return Channels(axes, at.each)
    raise Apart(f"{named(call)} takes channels apart")


def _trailing(shape: tuple[int | str, ...], total: int) -> tuple[int, ...]:
    """The last axes that hold `total` elements, without those of length 1; empty where none do."""
    held, axes = 1, list[int]()
    for i in reversed(range(len(shape))):
        length = shape[i]
        if not isinstance(length, int) or held == total:
            break
        held *= length
        if length > 1:
            axes.insert(0, i)
    return tuple(axes) if held == total else ()


def multiplies(call: Call) -> bool:
    """Whether a call takes channels in, each with weights of its own."""
    return call.op in MULTIPLIES
