"""Branches: both as modules, of which the shapes of what flows tell the one that is taken."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from lilliput.errors import InputError
from lilliput.importers import names
from lilliput.importers.reading import Node
from lilliput.importers.scope import Scope


class Branch(nn.Module):
    """Two modules, and which tensors around them each takes."""

    def __init__(self, then: nn.Module, otherwise: nn.Module, takes: tuple[list[int], list[int]]) -> None:
        super().__init__()
        self.then, self.otherwise, self.takes = then, otherwise, takes

    def forward(self, condition: Any, *values: Any) -> tuple[Tensor, ...]:
        while isinstance(condition, list):
            (condition,) = condition
        branch, takes = (self.then, self.takes[0]) if condition else (self.otherwise, self.takes[1])
        answer: tuple[Tensor, ...] = branch(*(values[place] for place in takes))
        return answer


def branch(scope: Scope, node: Node) -> Any:
    """Raises InputError where what flows, and not its shape, tells which branch is taken."""
    from lilliput.importers.graph import imported  # a graph may hold branches, which hold graphs

    condition = scope.of(node.input(0))
    sides = node.graphs["then_branch"], node.graphs["else_branch"]
    if not isinstance(condition, fx.Node):
        taken = sides[0] if bool(torch.as_tensor(condition).reshape(())) else sides[1]
        return _inlined(scope, node, taken)
    if condition not in scope.numbers:
        raise InputError(
            "takes a branch by the values of an input",
            where=f"{node.where} (If)",
            next="give an input that is always the same to from_onnx: fixed={name: value}",
        )
    made = [imported(scope.file, side, scope.held, scope) for side in sides]
    around = list(dict.fromkeys(name for inner, _ in made for name in inner.taken))
    takes = tuple([around.index(name) for name in inner.taken] for inner, _ in made)
    module = Branch(made[0][1], made[1][1], takes)  # type: ignore[arg-type]
    values = [scope.of(name) for name in around]
    called = scope.layer(names.path(node.name or node.outputs[0]), module, condition, *values)
    return tuple(scope.call(operator.getitem, called, i) for i in range(len(node.outputs)))


def _inlined(scope: Scope, node: Node, side: Any) -> Any:
    """The nodes of the branch that is always taken, in the place of the whole."""
    from lilliput.importers.graph import write

    inner = scope.within(side)
    write(inner)
    return tuple(inner.of(one.name) for one in side.output)
