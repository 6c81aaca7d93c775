"""Recurrent operators as the layers of torch that they are.

ONNX orders the gates otherwise, has the directions first, and holds both biases in one tensor.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from lilliput.errors import InputError
from lilliput.importers import names
from lilliput.importers.placing import fill, without_numbers
from lilliput.importers.reading import Node
from lilliput.importers.scope import Scope

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # ONNX's, in the order of torch
_KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def recurrent(scope: Scope, node: Node) -> tuple[fx.Node, ...]:
    """One layer, of one direction or both; outputs of all steps, then the last states.

    Raises InputError for what torch's layers have not: peepholes, lengths of sequences, other activations.
    """
    told = node.attributes
    direction, directions = told.get("direction", "forward"), 2 if told.get("direction") == "bidirectional" else 1
    _check(scope, node, directions)
    layer = _layer(scope, node, directions)
    x = scope.input(node, 0)
    first, backwards = told.get("layout", 0) == 1, direction == "reverse"
    x = scope.call(_turned, x, first, backwards) if first or backwards else x
    states = [scope.input(node, place) for place in ((5, 6) if node.op == "LSTM" else (5,))]
    if any(state is None for state in states) and not all(state is None for state in states):
        raise _refused(node, "one of its two first states is left out")
    args = () if states[0] is None else (tuple(states) if len(states) > 1 else states[0],)
    path = names.of_layer("", node.name, node.outputs[0])
    made = scope.layer(path, layer, x, *args)
    steps = scope.call(_directions_apart, scope.call(operator.getitem, made, 0), directions, backwards, first)
    last = scope.call(operator.getitem, made, 1)
    states = [scope.call(operator.getitem, last, i) for i in range(2)] if node.op == "LSTM" else [last]
    return (steps, *(scope.call(torch.transpose, state, 0, 1) if first else state for state in states))


def _check(scope: Scope, node: Node, directions: int) -> None:
    told = node.attributes
    if scope.constant(node, 1) is None or scope.constant(node, 2) is None or scope.is_computed(node, 3):
        raise _refused(node, "its weights are computed")
    if node.input(4):
        raise _refused(node, "it is told the lengths of sequences")
    if node.input(7):
        raise _refused(node, "it has peepholes")
    usual = [_USUAL[node.op] * directions, ["Relu"] * directions if node.op == "RNN" else None]
    if "clip" in told or told.get("input_forget", 0) or told.get("activations", usual[0]) not in usual:
        raise _refused(node, "its activations are others, or cut")
    if node.op == "GRU" and not told.get("linear_before_reset", 0):
        raise _refused(node, "it resets before it multiplies (linear_before_reset=0)")
    if told.get("layout", 0) and (node.input(5) or node.input(6)):
        raise _refused(node, "its states lie batch first")


def _refused(node: Node, why: str) -> InputError:
    return InputError(
        f"is no {node.op} that torch has",
        where=node.where,
        why=why,
        next="export the network with a layer as torch and Keras have it by default",
    )


def _layer(scope: Scope, node: Node, directions: int) -> nn.Module:
    w, r = scope.constant(node, 1), scope.constant(node, 2)  # [directions, rows, inputs], [directions, rows, hidden]
    b = scope.constant(node, 3)  # [directions, 2 rows]
    assert w is not None and r is not None
    settings = {"nonlinearity": "relu"} if "Relu" in node.attributes.get("activations", ()) else {}
    layer = without_numbers(
        _KINDS[node.op], w.shape[2], r.shape[2], bias=b is not None, bidirectional=directions == 2, **settings
    )
    held = scope.held.once((w, r) if b is None else (w, r, b), lambda: _tensors(node.op, w, r, b))
    return fill(layer, **held)


def _tensors(op: str, w: Tensor, r: Tensor, b: Tensor | None) -> dict[str, Tensor]:
    """The tensors of each direction, by torch's names for them."""
    tensors: dict[str, Tensor] = {}
    for i, ending in enumerate(["_l0", "_l0_reverse"][: len(w)]):
        tensors |= {f"weight_ih{ending}": _rows(w[i], op), f"weight_hh{ending}": _rows(r[i], op)}
        if b is not None:
            ours, theirs = b[i].chunk(2)
            tensors |= {f"bias_ih{ending}": _rows(ours, op), f"bias_hh{ending}": _rows(theirs, op)}
    return {name: nn.Parameter(held) for name, held in tensors.items()}


def _rows(given: Tensor, op: str) -> Tensor:
    """The rows of each gate in the order of torch."""
    gates = given.chunk(len(_GATES[op]))
    return torch.cat([gates[i] for i in _GATES[op]])


def _turned(x: Tensor, batch_first: bool, backwards: bool) -> Tensor:
    x = x.transpose(0, 1) if batch_first else x
    return x.flip(0) if backwards else x


def _directions_apart(steps: Tensor, directions: int, backwards: bool, batch_first: bool) -> Tensor:
    """From [steps, batch, directions · hidden] to [steps, directions, batch, hidden], or with the batch first."""
    steps = steps.flip(0) if backwards else steps
    apart = steps.unflatten(2, (directions, -1))
    return torch.transpose(apart, 0, 1) if batch_first else torch.transpose(apart, 1, 2)
