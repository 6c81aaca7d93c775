"""A module as an exported program."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.wrap import wrap_with_autocast, wrap_with_set_grad_enabled
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, GraphModule, Node

from lilliput.model.carrier.forward import called
from lilliput.model.carrier.snapshot import unchanged
from lilliput.model.views.bags import WholeBags
from lilliput.model.views.flat import flat
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.recurrent import WholeLayers

OUTPUTS = "lilliput outputs"  # in the meta of a program's graph: the places of its outputs in the module's answer


def program(model: nn.Module, inputs: Inputs, dynamic: Mapping[str | int, Mapping[int, str]]) -> ExportedProgram:
    """`model` as an exported program with the named axes left open; `model` must be in eval mode.

    What its forward keeps in the module while it is traced (tensors without numbers) is taken out of it again.
    """
    dims = {name: Dim.DYNAMIC for axes in dynamic.values() for name in axes.values()}

    def widen(key: str | int, x: Tensor) -> Tensor:
        # an axis of length 1 would be taken for a constant
        for axis in dynamic.get(key, {}):
            x = x.repeat_interleave(2, dim=axis) if x.shape[axis] == 1 else x
        return x

    wide = inputs.copied().map(widen)  # one tensor given twice would be one input
    open_axes = {
        key: {axis: dims[name] for axis, name in dynamic.get(key, {}).items()} or None for key in wide.tensors()
    }
    given = wide.each(lambda key, _: open_axes.get(key)).by_parameter(model.forward)
    with unchanged(model), torch.no_grad(), WholeLayers(), WholeBags(), called(model), flat(model) as places:
        captured = torch.export.export(
            model, wide.args, dict(wide.kwargs), dynamic_shapes=given if dims else None, strict=False
        )
    _open_regions(captured)
    captured.graph_module.meta[OUTPUTS] = list(places)
    return captured


def region(node: Node) -> GraphModule | None:
    """The graph inside of a call that runs one in another mode of torch: with gradients, or in another precision.

    Its placeholders are what the call reads after it, `operands`.
    """
    if node.target not in (wrap_with_set_grad_enabled, wrap_with_autocast):
        return None
    held = _body(node)
    return getattr(held.graph.owning_module, str(held.target))  # type: ignore[no-any-return]


def operands(node: Node) -> tuple[Any, ...]:
    """What the graph inside of a `region` reads, in the order of its placeholders."""
    return tuple(node.args[node.args.index(_body(node)) + 1 :])


def _body(node: Node) -> Node:
    return next(arg for arg in node.args if isinstance(arg, Node) and arg.op == "get_attr")


def _open_regions(captured: ExportedProgram) -> None:
    """Put what stands in regions that change no number among the calls around them.

    Gradients are never asked for here, and a precision switched off is what it is anyway.
    """
    module, graph = captured.graph_module, captured.graph
    while found := next((node for node in graph.nodes if _changes_nothing(node)), None):
        inner = region(found)
        assert inner is not None
        for gone, now in _inline(graph, found, inner):
            captured.graph_signature.replace_all_uses(gone, now)  # where it is an answer of the program
    graph.lint()
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    for name in [
        name for name, child in module.named_children() if isinstance(child, GraphModule) and name not in read
    ]:
        delattr(module, name)  # torch's exporter writes all that there are
    module.recompile()


def _changes_nothing(node: Node) -> bool:
    if node.target is wrap_with_set_grad_enabled:
        return True
    return node.target is wrap_with_autocast and node.args[2] is False


def _inline(graph: Graph, call: Node, inner: GraphModule) -> list[tuple[str, str]]:
    """Put the calls of a region in place of the one that runs it; the names of its answers, before and now."""
    own: Any = graph.owning_module
    known = dict(zip((node for node in inner.graph.nodes if node.op == "placeholder"), operands(call), strict=True))
    with graph.inserting_before(call):
        for node in inner.graph.nodes:
            if node.op == "get_attr":  # a region within this one
                name = f"{call.name}_{node.target}"
                setattr(own, name, getattr(inner, str(node.target)))
                known[node] = graph.get_attr(name)
                known[node].meta = dict(node.meta)
            elif node.op not in ("placeholder", "output"):
                known[node] = graph.node_copy(node, known.__getitem__)
    (output,) = (node for node in inner.graph.nodes if node.op == "output")
    answers, names = output.args[0], []
    for user in list(call.users):  # a region answers with a tuple, of which each part is looked up
        answer = answers[user.args[1]]
        now = known[answer] if isinstance(answer, Node) else answer
        names += [(user.name, now.name)] if isinstance(now, Node) else []
        user.replace_all_uses_with(now)
        graph.erase_node(user)
    body = _body(call)
    graph.erase_node(call)
    if not body.users:
        graph.erase_node(body)
    return names


@contextmanager
def quiet() -> Iterator[None]:
    """torch's exporters print, log and warn; errors still come out as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
