"""What a network computes with slices masked: what a shrunk one must compute too.

The captured graph of the original is run with every slice that is gone set to zero, in all tensors that it touches.
What is normalised or averaged over an axis that lost positions is so over those that are left, and the gains of a
norm over fewer channels are scaled up as those of the shrunk network are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves

from lilliput.model.surgery.coupling.atoms import Axis
from lilliput.model.surgery.coupling.flow import Reading, op_name
from lilliput.model.surgery.coupling.groups import Coupling
from lilliput.model.surgery.coupling.rescaling import NORMS, narrowed
from lilliput.model.surgery.coupling.rules_elements import REDUCES, takes_statistics
from lilliput.model.views.inputs import Inputs

_OVER_REST = ("batch_norm", "instance_norm")  # over what is no channel, where they take statistics as they run
_OVER_GROUPS = ("group_norm",)
_OVER = REDUCES.union(NORMS, _OVER_REST, _OVER_GROUPS)


def masked(coupling: Coupling, gone: Collection[int], inputs: Inputs) -> list[Tensor]:
    """What the network answers to `inputs` without the slices that go with these atoms."""
    signature = coupling.captured.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    state = {**dict(coupling.captured.named_parameters()), **dict(coupling.captured.named_buffers())}
    own = inputs.copied()
    run, given, values = _Masked(coupling, gone), iter(tree_leaves((own.args, dict(own.kwargs)))), list[Any]()
    for node in coupling.captured.graph.nodes:
        if node.op == "placeholder":
            if node.name in named:
                values.append(run.masked(node, state[named[node.name]].detach()))
            elif node.name in signature.inputs_to_lifted_tensor_constants:
                values.append(coupling.captured.constants[signature.inputs_to_lifted_tensor_constants[node.name]])
            else:
                values.append(next(given))
    with torch.no_grad():
        return [x for x in tree_leaves(run.run(*values)) if isinstance(x, Tensor)]


class _Masked(Interpreter):
    def __init__(self, coupling: Coupling, gone: Collection[int]) -> None:
        super().__init__(coupling.captured.graph_module)
        self.flow, self.gone = coupling.flow, np.array(sorted(gone), np.int64)
        self.narrowed = narrowed(coupling, gone)

    def left(self, axis: Axis) -> npt.NDArray[np.bool_]:
        return self.flow.atoms.left(axis, self.gone)

    def masked(self, node: Node, x: Tensor) -> Tensor:
        for i, axis in enumerate(self.flow.axes.get(node) or ()):
            if not (mask := self.left(axis)).all():
                x = x * torch.from_numpy(mask).reshape([-1 if k == i else 1 for k in range(x.dim())]).to(x.dtype)
        return x

    def run_node(self, node: Node) -> Any:
        _, factor = self.narrowed.get(node, ("", 1.0)) if op_name(node) not in NORMS else ("", 1.0)
        result = self._of_what_is_left(node)
        return result if factor == 1 else result * factor

    def _of_what_is_left(self, node: Node) -> Any:
        if node.op != "call_function" or op_name(node) not in _OVER or node not in self.flow.axes:
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        call = Reading.of(node, self.flow)
        given = {**call.given, **dict(zip(call.given, args, strict=False)), **kwargs}
        x: Tensor = next(iter(given.values()))
        axes = self.flow.axes[node.all_input_nodes[0]]
        kept = {i: np.flatnonzero(self.left(axes[i])) for i in _axes_of(call.op, given, x.dim())}
        if all(len(kept[i]) == x.shape[i] for i in kept):
            return super().run_node(node)
        if node in self.narrowed:
            given["weight"] = given["weight"] * self.narrowed[node][1]
        if call.op in _OVER_GROUPS:
            count = given["num_groups"]
            given["num_groups"] = int(self.left(self.flow.atoms.split(axes[1], count, len(axes[1]) // count)[0]).sum())
        small = _called(node, given, {i: torch.from_numpy(index) for i, index in kept.items()})
        if call.op in REDUCES:
            return small
        full = torch.zeros_like(x)
        places = [torch.from_numpy(kept[i]) if i in kept else torch.arange(n) for i, n in enumerate(x.shape)]
        full[torch.meshgrid(*places, indexing="ij")] = small
        return full


def _axes_of(op: str, given: Mapping[str, Any], rank: int) -> Sequence[int]:
    """The axes that an operator goes over."""
    if op in NORMS:
        return range(rank - len(given["normalized_shape"]), rank)
    if op in _OVER_REST:
        return [i for i in range(rank) if i != 1] if takes_statistics(given) else []
    if op in _OVER_GROUPS:
        return [1]
    dims = given.get("dim")
    return (
        range(rank) if dims is None or dims == [] else [i % rank for i in ([dims] if isinstance(dims, int) else dims)]
    )


def _called(node: Node, given: dict[str, Any], kept: Mapping[int, Tensor]) -> Any:
    """The operator on what is left."""
    first, *_ = given
    for i, index in kept.items():
        given[first] = given[first].index_select(i, index)
    for name in ("weight", "bias"):
        if isinstance(given.get(name), Tensor) and op_name(node) not in _OVER_REST:
            for k, index in enumerate(kept.values()):
                given[name] = given[name].index_select(k, index)
    if "normalized_shape" in given:
        given["normalized_shape"] = [len(index) for index in kept.values()]
    target: Any = node.target
    arguments = target._schema.arguments
    return target(
        *(given[a.name] for a in arguments if not a.kwarg_only),
        **{a.name: given[a.name] for a in arguments if a.kwarg_only},
    )
