"""Rules of operators that leave each element where it is, look rows up, normalise, or reduce an axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from lilliput.model.surgery.coupling.flow import Axes, Flow, Reading, Rule

REDUCES = frozenset({"mean", "sum", "var", "std", "norm", "linalg_vector_norm"})  # what is left as well


def pointwise(flow: Flow, call: Reading) -> Axes:
    return flow.together(call.all_read, len(call.shape))


def same(flow: Flow, call: Reading) -> Axes:
    return list(call.all_read[0])


def made(flow: Flow, call: Reading) -> Axes:
    """A new tensor, by lengths that the source gives: whether they follow is seen when the network runs again."""
    if call.op.endswith("_like"):
        return same(flow, call)
    sizes = call.given.get("size") or ()
    axes = [flow.atoms.new(n) for n in call.shape]
    for size, axis in zip(sizes, axes, strict=False):
        call.number(size, axis)
    return axes


def prelu(flow: Flow, call: Reading) -> Axes:
    x, (weight,) = call.axes("self"), call.axes("weight")
    if len(weight) > 1:
        flow.atoms.join(x[1], weight)
    return x


def glu(flow: Flow, call: Reading) -> Axes:
    x, at = call.axes("self"), call.given["dim"]
    half = len(x[at]) // 2
    flow.atoms.join(x[at][:half], x[at][half:])
    x[at] = x[at][:half]
    return x


def batch_norm(flow: Flow, call: Reading) -> Axes:
    x = call.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.has(name):
            flow.atoms.join(x[1], call.axes(name)[0])
    call.number(len(x[1]), x[1], "num_features")
    if takes_statistics(call.given):
        flow.normalised += [axis for i, axis in enumerate(x) if i != 1]
    return x


def takes_statistics(given: Mapping[str, Any]) -> bool:
    """Whether a batch or instance norm takes its means and variances of what it reads."""
    return bool(given.get("training") or given.get("use_input_stats"))


def layer_norm(flow: Flow, call: Reading) -> Axes:
    x, over = call.axes("input"), len(call.given["normalized_shape"])
    for name in ("weight", "bias"):
        if call.has(name):
            for one, other in zip(x[-over:], call.axes(name), strict=True):
                flow.atoms.join(one, other)
    flow.normalised += x[-over:]
    if over == 1 and call.has("weight"):
        x[-1] = call.axes("weight")[0]
        if call.has("bias"):
            flow.with_bias(x[-1], call.axes("bias")[0])
    return x


def group_norm(flow: Flow, call: Reading) -> Axes:
    x, groups = call.axes("input"), int(call.given["num_groups"])
    for name in ("weight", "bias"):
        if call.has(name):
            flow.atoms.join(x[1], call.axes(name)[0])
    if groups == 1:
        flow.normalised.append(x[1])
        return x
    of, each = flow.atoms.split(x[1], groups, len(x[1]) // groups)
    call.number(groups, of, "num_groups")
    flow.normalised.append(each)
    return x


def softmax(flow: Flow, call: Reading) -> Axes:
    x = call.axes("self")
    flow.atoms.keep(x[call.given["dim"]], f"{call.words} is over all of it")
    return x


def reduced(flow: Flow, call: Reading) -> Any:
    """A sum or mean over some axes; over what is left of them once slices are gone."""
    x = call.axes("self")
    given = call.given.get("dim")
    over = range(len(x)) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {i % len(x) for i in over} if x else set()
    for i in gone:
        if call.op in REDUCES:
            flow.normalised.append(x[i])
        else:
            flow.atoms.keep(x[i], f"{call.words} is over all of it")
    if call.given.get("keepdim"):
        found = [axis if i not in gone else flow.atoms.fixed(1, "an axis of length 1") for i, axis in enumerate(x)]
    else:
        found = [axis for i, axis in enumerate(x) if i not in gone]
    value = call.node.meta.get("val")
    return found if isinstance(value, Tensor) else [list(found) for _ in value or ()]


def along(flow: Flow, call: Reading) -> Axes:
    """Something that mixes the positions of one axis: nothing of it can go."""
    x = call.axes("self")
    for name in ("dim", "dims"):
        given = call.given.get(name)
        for i in [given] if isinstance(given, int) else given or ():
            flow.atoms.keep(x[i], f"{call.words} goes along it")
    return x


def space(count: int) -> Rule:
    """Pooling, upsampling, padding: the last axes are no longer what they were."""

    def rule(flow: Flow, call: Reading) -> Any:
        x = call.all_read[0]
        for axis in x[-count:]:
            flow.atoms.keep(axis, "positions in space or time")
        found = [*x[:-count], *flow.fixed(call.shape[-count:], "positions in space or time")]
        value = call.node.meta.get("val")
        return found if isinstance(value, Tensor) else [list(found) for _ in value]  # type: ignore[union-attr]

    return rule


def pad(flow: Flow, call: Reading) -> Axes:
    x, added = call.all_read[0], list(call.given["pad"])
    for i in range(len(added) // 2):
        before, after = added[2 * i : 2 * i + 2]
        axis = x[-1 - i]
        if before < 0 or after < 0:
            flow.atoms.keep(axis, f"{call.words} cuts it")
        axis = axis[max(0, -before) : len(axis) - max(0, -after)]
        ends = [flow.atoms.fixed(max(0, n), f"zeros of {call.words}") for n in (before, after)]
        x[-1 - i] = np.concatenate([ends[0], axis, ends[1]]) if before or after else axis
    return x


def pixel_shuffle(flow: Flow, call: Reading) -> Axes:
    x, factor = call.axes("self"), int(call.given.get("upscale_factor") or call.given["downscale_factor"])
    if "un" in call.op:
        channels = flow.atoms.compound(x[-3], flow.atoms.fixed(factor**2, "positions in space"))
    else:
        channels, within = flow.atoms.split(x[-3], len(x[-3]) // factor**2, factor**2)
        flow.atoms.keep(within, "positions in space")
    return [*x[:-3], channels, *flow.fixed(call.shape[-2:], "positions in space")]


def channel_shuffle(flow: Flow, call: Reading) -> Axes:
    x, groups = call.axes("self"), int(call.given["groups"])
    of, each = flow.atoms.split(x[1], groups, len(x[1]) // groups)
    return [x[0], flow.atoms.compound(each, of), *x[2:]]


def indexed(flow: Flow, call: Reading) -> Axes | None:
    x, indices = call.axes("self"), call.given["indices"]
    places = [i for i, index in enumerate(indices) if index is not None]
    if not places or places != list(range(places[0], places[-1] + 1)):
        return None
    for i in places:
        flow.atoms.keep(x[i], f"{call.words} looks positions up")
    read = [flow.axes[indices[i]] for i in places]
    looked = flow.together(read, max(map(len, read)))
    return [*x[: places[0]], *looked, *x[places[-1] + 1 :]]


def gathered(flow: Flow, call: Reading) -> Axes:
    x, index = call.axes("self"), call.axes("index")
    at = int(call.given["dim"]) % len(x)
    flow.atoms.keep(x[at], f"{call.words} looks positions up")
    if call.op == "index_select":
        return [*x[:at], index[0], *x[at + 1 :]]
    for i, (one, other) in enumerate(zip(x, index, strict=True)):
        if i != at:
            if len(one) == len(other):
                flow.atoms.join(one, other)
            else:
                flow.atoms.keep(one, f"{call.words} takes a part of it")
    return index


def added_to(flow: Flow, call: Reading) -> Axes | None:
    x, at = call.axes("self"), int(call.given["dim"])
    at %= len(x)
    flow.atoms.keep(x[at], f"{call.words} looks positions up")
    rest = [call.axes(name) for name in ("source", "src") if call.has(name)]
    rest += [call.axes("index")] if len(call.axes("index")) == len(x) else []
    for other in rest:
        for i in range(len(x)):
            if i != at:
                if len(x[i]) != len(other[i]):
                    return None
                flow.atoms.join(x[i], other[i])
    return x
