"""Rules of operators that multiply and sum: layers, products of activations, attention, recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from lilliput.model.surgery.coupling.atoms import Axis
from lilliput.model.surgery.coupling.flow import Axes, Flow, Reading


def linear(flow: Flow, call: Reading) -> Axes:
    x, (outputs, inputs) = call.axes("input"), call.axes("weight")
    flow.atoms.join(x[-1], inputs)
    if call.has("bias"):
        flow.with_bias(outputs, call.axes("bias")[0])
    return [*x[:-1], outputs]


def bilinear(flow: Flow, call: Reading) -> Axes:
    one, two, (outputs, a, b) = call.axes("input1"), call.axes("input2"), call.axes("weight")
    flow.atoms.join(one[-1], a)
    flow.atoms.join(two[-1], b)
    if call.has("bias"):
        flow.atoms.join(outputs, call.axes("bias")[0])
    return [*flow.together([one[:-1], two[:-1]], len(one) - 1), outputs]


def convolution(flow: Flow, call: Reading) -> Axes:
    x, weight = call.axes("input"), call.axes("weight")
    groups, across = int(call.given["groups"]), len(weight) - 2
    channels = len(x) - across - 1
    for axis in weight[2:]:
        flow.atoms.keep(axis, "positions of a kernel")
    for axis in x[channels + 1 :]:
        flow.atoms.keep(axis, "positions in space or time")
    transposed = "transpose" in call.op
    ours, theirs = (weight[0], weight[1]) if not transposed else (weight[1], weight[0])  # outputs, inputs
    if groups == 1:
        outputs = ours
        flow.atoms.join(x[channels], theirs)
    else:
        of, each = flow.atoms.split(x[channels], groups, len(x[channels]) // groups)
        whole = weight[0]  # of a transposed one its inputs, group by group
        also, rest = flow.atoms.split(whole, groups, len(whole) // groups)
        flow.atoms.join(of, also)
        flow.atoms.join(each, rest if transposed else weight[1])
        outputs = whole if not transposed else flow.atoms.compound(of, weight[1])
        call.number(groups, of, "groups")
    if call.has("bias"):
        flow.with_bias(outputs, call.axes("bias")[0])
    return [*x[:channels], outputs, *flow.fixed(call.shape[-across:], "positions in space or time")]


def matmul(flow: Flow, call: Reading) -> Axes:
    a, b = call.all_read[0], call.all_read[-1]
    flow.contracted[call.node] = a[-1]
    if len(a) == 1 or len(b) == 1:
        flow.atoms.join(a[-1], b[-2] if len(b) > 1 else b[0])
        return [*a[:-1], *b[:-2], *(b[-1:] if len(b) > 1 else [])]
    flow.atoms.join(a[-1], b[-2])
    apart = flow.together([a[:-2], b[:-2]], max(len(a), len(b)) - 2)
    flow.heads += [axis for axis in apart if len(axis) > 1 and not flow.atoms.fixed_whole(axis)]
    return [*apart, a[-2], b[-1]]


def addmm(flow: Flow, call: Reading) -> Axes:
    a, b = (call.axes(n) for n in (("mat1", "mat2") if call.op == "addmm" else ("batch1", "batch2")))
    flow.atoms.join(a[-1], b[-2])
    flow.contracted[call.node] = a[-1]
    found = [*flow.together([a[:-2], b[:-2]], len(a) - 2), a[-2], b[-1]]
    bias = call.axes("self")
    flow.together([found, bias], len(found))
    if bias and len(bias[-1]) == len(b[-1]):
        flow.with_bias(b[-1], bias[-1])
    return found


def grouped(flow: Flow, call: Reading) -> Axes:
    """Rows multiplied each by the matrix of its group."""
    x, (groups, inputs, outputs) = call.axes("input"), call.axes("weight")
    flow.atoms.keep(groups, "matrices that are looked up")
    flow.atoms.join(x[-1], inputs)
    return [*x[:-1], outputs]


def einsum(flow: Flow, call: Reading) -> Axes | None:
    read, _, written = str(call.given["equation"]).replace(" ", "").partition("->")
    if "." in read or not written:
        return None
    known: dict[str, Axis] = {}
    terms = read.split(",")
    for letters, axes in zip(terms, (flow.axes[node] for node in call.given["tensors"]), strict=True):
        for letter, axis in zip(letters, axes, strict=True):
            if letter in known and len(known[letter]) == len(axis):
                flow.atoms.join(known[letter], axis)
            elif letter not in known or len(axis) > 1:
                known[letter] = axis
    gone = [x for x in terms[0] if x not in written]
    if gone:
        flow.contracted[call.node] = flow.axes[call.given["tensors"][0]][terms[0].index(gone[0])]
    flow.heads += [known[x] for x in written if all(x in term for term in terms) and len(terms) > 1]
    return [known[letter] for letter in written]


def attention(flow: Flow, call: Reading) -> Axes:
    q, k, v = (call.axes(name) for name in ("query", "key", "value"))
    atoms = flow.atoms
    flow.contracted[call.node] = q[-1]
    atoms.join(q[-1], k[-1])
    atoms.join(k[-2], v[-2])
    heads, pairs = q[-3] if len(q) > 2 else None, k[-3] if len(k) > 2 else None
    if heads is not None and pairs is not None and len(heads) != len(pairs):  # several queries share keys and values
        atoms.join(v[-3], pairs)
        of, _ = atoms.split(heads, len(pairs), len(heads) // len(pairs))
        atoms.join(of, pairs)
        apart = [*flow.together([q[:-3], k[:-3], v[:-3]], len(q) - 3), heads]
    else:
        apart = flow.together([q[:-2], k[:-2], v[:-2]], len(q) - 2)
    if call.has("attn_mask"):
        flow.together([call.axes("attn_mask"), [*apart, q[-2], k[-2]]], len(q))
    flow.heads += apart[-1:]
    return [*apart, q[-2], v[-1]]


def embedding(flow: Flow, call: Reading) -> Axes:
    rows, columns = call.axes("weight")
    flow.atoms.keep(rows, "rows that are looked up")
    return [*call.axes("indices"), columns]


def bag(flow: Flow, call: Reading) -> Axes:
    given, columns = embedding(flow, call)[0], call.axes("weight")[1]
    return [call.axes("offsets")[0] if call.given.get("offsets") is not None else given, columns]


def recurrent(flow: Flow, call: Reading) -> list[Axes]:
    """Layers and directions have the same widths, as torch's own recurrent layers have."""
    atoms, given = flow.atoms, call.given
    x = call.axes("x")
    states, weights = [flow.axes[node] for node in given["hx"]], [flow.axes[node] for node in given["params"]]
    directions = 2 if given["bidirectional"] else 1
    cells = given["num_layers"] * directions
    each = len(weights) // cells
    outputs = states[0][-1]
    hidden = states[1][-1] if len(states) > 1 else outputs
    gates = {"lstm": 4, "gru": 3}.get(call.op, 1)
    if each in (2, 4):  # no projection between what a cell holds and what it tells
        atoms.join(outputs, hidden)
    inputs = x[-1]
    for cell in range(cells):
        mine = weights[cell * each : (cell + 1) * each]
        for axes in mine[: 4 if given["has_biases"] else 2]:
            if gates > 1:
                kinds, units = atoms.split(axes[0], gates, len(axes[0]) // gates)
                atoms.keep(kinds, "the gates of a cell")
            else:
                units = axes[0]
            atoms.join(units, hidden)
        atoms.join(mine[1][1], outputs)
        if each in (3, 5):
            atoms.join(mine[-1][0], outputs)
            atoms.join(mine[-1][1], hidden)
        atoms.join(mine[0][1], inputs)
        if cell % directions == directions - 1:
            inputs = np.concatenate([outputs] * directions)
    return [[*x[:-1], inputs], *([*axes[:-1], width] for axes, width in zip(states, (outputs, hidden), strict=False))]


def cell(flow: Flow, call: Reading) -> Any:
    """One step of a recurrent layer."""
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(call.op, 1)
    states = [flow.axes[x] for x in call.given["hx"]] if gates == 4 else [call.axes("hx")]
    x, hidden = call.axes("input"), states[0][-1]
    for state in states[1:]:
        flow.atoms.join(state[-1], hidden)
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        if call.has(name):
            rows, *columns = call.axes(name)
            kinds, units = flow.atoms.split(rows, gates, len(hidden))
            flow.atoms.keep(kinds, "the gates of a cell")
            flow.atoms.join(units, hidden)
            for axis in columns:
                flow.atoms.join(axis, x[-1] if name == "w_ih" else hidden)
    found = [flow.together([state, [*x[:-1], hidden]], len(state)) for state in states]
    return found if gates == 4 else found[0]
