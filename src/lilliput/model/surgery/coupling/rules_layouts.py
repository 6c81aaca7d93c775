"""Rules of operators that lay the same elements out otherwise, or take some of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from lilliput.model.surgery.coupling.atoms import Axis
from lilliput.model.surgery.coupling.flow import Axes, Flow, Reading


def laid_out(flow: Flow, call: Reading) -> Axes:
    """The same elements in the same order, under other axes."""
    x, shape = call.all_read[0], call.shape
    asked = next((call.given[name] for name in ("size", "shape", "sizes") if name in call.given), ())
    found: Axes = []
    i = j = 0
    while i < len(x) or j < len(shape):
        here, length, wanted, lengths = list[Axis](), 1, 1, list[int]()
        while not (here and lengths and length == wanted):
            if i < len(x) and (length <= wanted or j == len(shape)) and (not here or length != wanted):
                here.append(x[i])
                length *= len(x[i])
                i += 1
            elif j < len(shape):
                lengths.append(shape[j])
                wanted *= shape[j]
                j += 1
            else:
                break
        found += _block(flow, here, lengths)
    if len(asked) == len(found):
        for size, axis in zip(asked, found, strict=True):
            call.number(size, axis)
    return found


def _block(flow: Flow, axes: Axes, lengths: list[int]) -> Axes:
    """Axes merged, and split again into these lengths."""
    if [len(axis) for axis in axes] == lengths:
        return axes
    whole = np.zeros(1, np.int64)
    for n, axis in enumerate(axes):
        whole = axis if n == 0 else flow.atoms.compound(whole, axis)
    if not axes:
        return flow.fixed(lengths, "an axis of length 1")
    found: Axes = []
    for n, length in enumerate(lengths):
        rest = math.prod(lengths[n + 1 :])
        if n == len(lengths) - 1:
            found.append(whole)
        else:
            outer, whole = flow.atoms.split(whole, length, rest)
            found.append(outer)
    return found


def permuted(flow: Flow, call: Reading) -> Axes:
    x = call.all_read[0]
    if call.op == "permute":
        return [x[i] for i in call.given["dims"]]
    if call.op in ("t", "numpy_T", "mT"):
        return x[:-2] + x[-2:][::-1]
    a, b = (int(call.given[n]) for n in (("dim0", "dim1") if "dim0" in call.given else ("axis0", "axis1")))
    x[a], x[b] = x[b], x[a]
    return x


def expanded(flow: Flow, call: Reading) -> Axes:
    x, shape = call.axes("self"), call.shape
    sizes = call.given.get("size") or [-1] * len(shape)
    found: Axes = []
    for i, n in enumerate(shape):
        k = i - (len(shape) - len(x))
        axis = x[k] if k >= 0 and len(x[k]) == n else flow.atoms.new(n)
        if k < 0 or len(x[k]) != n:
            call.number(sizes[i], axis)
        found.append(axis)
    return found


def repeated(flow: Flow, call: Reading) -> Axes | None:
    x = call.all_read[0]
    if call.op == "repeat_interleave":
        times, at = call.given.get("repeats"), call.given.get("dim")
        if not isinstance(times, int) or at is None:
            return None
        x[at] = flow.atoms.compound(x[at], flow.atoms.new(times))
        return x
    times = call.given.get("repeats") or call.given["dims"]
    x = [flow.atoms.fixed(1, "an axis of length 1") for _ in range(len(times) - len(x))] + x
    times = [1] * (len(x) - len(times)) + list(times)
    return [flow.atoms.compound(flow.atoms.new(n), axis) for n, axis in zip(times, x, strict=True)]


def pieces(flow: Flow, call: Reading) -> list[Axes] | None:
    """An axis cut into pieces; equal ones lose the same positions, so that the cuts come where they were meant."""
    x = call.axes("self") if "self" in call.given else call.all_read[0]
    at = call.given.get("dim") or 0
    value = call.node.meta["val"]
    if call.op == "unbind":
        flow.atoms.keep(x[at], f"{call.words} takes it apart")
        return [_taken(flow, x, at % len(x), k) for k in range(len(value))]
    lengths = [one.shape[at] for one in value]
    bounds = np.cumsum([0, *lengths])
    parts = [x[at][a:b] for a, b in itertools.pairwise(bounds)]
    if len(set(lengths)) == 1:
        for part in parts[1:]:
            flow.atoms.join(parts[0], part)
    for length, part in zip(call.given.get("split_sizes") or [call.given.get("split_size")], parts, strict=False):
        call.number(length, part)
    found = []
    for part in parts:
        axes = list(x)
        axes[at] = part
        found.append(axes)
    return found


def sliced(flow: Flow, call: Reading) -> Axes:
    x, at = call.axes("self"), int(call.given["dim"])
    axis = x[at]
    start, step = call.given.get("start"), call.given.get("step") or 1
    end: Any = call.given.get("end")
    if call.op == "narrow":
        end = int(call.given["start"]) + int(call.given["length"])
    cut = slice(start, None if end is None else min(int(end), len(axis)), step)
    piece = axis[cut]
    if len(piece) < len(axis) and not flow.atoms.fixed_whole(axis):
        first, last, _ = cut.indices(len(axis))
        n = len(piece)
        if step == 1 and n and len(axis) % n == 0 and first % n == 0 and last % n == 0:
            for k in range(n, len(axis), n):  # equal pieces lose the same positions
                flow.atoms.join(axis[:n], axis[k : k + n])
        elif step > 1 and len(axis) % step == 0:
            _, each = flow.atoms.split(axis, len(axis) // step, step)
            flow.atoms.keep(each, f"{call.words} takes some of them")
        else:
            flow.atoms.keep(axis, f"{call.words} takes a part of it")
        piece = axis[cut]
    x[at] = piece
    return x


def select(flow: Flow, call: Reading) -> Axes:
    x, at = call.axes("self"), int(call.given["dim"])
    flow.atoms.keep(x[at], f"{call.words} takes one of them")
    return _taken(flow, x, at % len(x), int(call.given["index"]))


def _taken(flow: Flow, x: Axes, at: int, index: int) -> Axes:
    """What is left of the axes at one position of one of them."""
    rest = [axis for i, axis in enumerate(x) if i != at]
    here = x[at][index : index + 1] if index >= 0 else x[at][len(x[at]) + index :][:1]
    return [axis if flow.atoms.fixed_whole(axis) else flow.atoms.narrowed(axis, here) for axis in rest]


def cat(flow: Flow, call: Reading) -> Axes:
    read = [flow.axes[node] for node in call.given["tensors"]]
    read = [axes for axes in read if len(axes) == len(call.shape)]  # torch passes over empty ones
    at = int(call.given.get("dim") or 0) % len(call.shape)
    found = list(read[0])
    for i in range(len(found)):
        if i == at:
            found[i] = np.concatenate([axes[i] for axes in read])
        else:
            for axes in read[1:]:
                flow.atoms.join(found[i], axes[i])
    return found


def stack(flow: Flow, call: Reading) -> Axes:
    read = [flow.axes[node] for node in call.given["tensors"]]
    found = flow.together(read, len(read[0]))
    at = int(call.given.get("dim") or 0) % len(call.shape)
    found.insert(at, flow.atoms.fixed(len(read), "tensors that are stacked"))
    return found
