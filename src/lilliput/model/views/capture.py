"""From a module to a view of it: which calls it makes, what they read, which tensors are tied.

`torch.export` traces the whole model if it can. Where it cannot, each child is tried alone, down to single modules; the
rung that was reached and the reason for each failure are in the view.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from lilliput.errors import CaptureError, InputError, raise_own, reason
from lilliput.model.carrier.carrier import stored_of, tensors
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.views.flat import flat
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.program import operands, program, quiet, region
from lilliput.model.views.values import Value, mark, watched
from lilliput.model.views.view import BAG, CONVOLUTIONS, LOOKS_UP, MULTIPLIES, RECURRENT, Call, Rung, View, Window
from lilliput.modes import eval_mode
from lilliput.outputs import departure

_APART = 1e-4  # of the largest answer: the same operators, so less where the graph is right


def capture(
    model: nn.Module,
    inputs: Inputs,
    dynamic: Mapping[str | int, Mapping[int, str]],
    others: Iterable[tuple[str, Inputs]] = (),
    *,
    checks: bool = True,
) -> View:
    """What `model` does with `inputs`, at the highest rung that works.

    Raises CaptureError where nothing can be captured, and, if it `checks`, where the graph of the whole model answers
    one of `others`, further inputs with their names, otherwise than the model does. Parts are what any of them reaches.
    """
    others = list(others)
    ties = tuple(paths for paths in tensors(model) if len(paths) > 1)
    try:
        captured = _traced(model, inputs, dynamic)
        view = View("whole", _by_first_path(_calls(model, captured, ""), ties), ties, {})
    except Exception as error:  # torch.export raises whatever the model's own code raises
        raise_own(error)
        return _in_parts(model, [inputs, *(other for _, other in others)], ties, reason(error))
    for where, other in others if checks else ():
        _check_answers(model, captured, other, where)
    return view


def _traced(model: nn.Module, inputs: Inputs, dynamic: Mapping[str | int, Mapping[int, str]]) -> ExportedProgram:
    """The graph with a label on every value."""
    with watched(model, lambda name, x: mark(x, name)), eval_mode(model), quiet():
        return program(model, inputs, dynamic)


def _check_answers(model: nn.Module, captured: ExportedProgram, inputs: Inputs, where: str) -> None:
    """Refuse a graph that does not follow its inputs: what Python makes of their values is fixed in it."""
    with torch.no_grad(), eval_mode(model), quiet():
        try:
            with flat(model):
                expected = inputs.call(model)
        except Exception:  # the user's own code, on inputs that may be of our making
            return
        given = inputs.copied()
        try:
            apart = departure(expected, captured.module(check_guards=False)(*given.args, **given.kwargs))
            why = f"its answers are {apart:.2g} of the largest apart" if apart > _APART else ""
        except Exception as error:
            raise_own(error)
            why = reason(error)
    if why:
        raise CaptureError(
            "the captured graph does not answer as the model does",
            where=where,
            why=f"{why}; values that Python code reads (.item(), numpy(), if) are constants in a graph",
            next="compute with tensors alone, or give each such value as a number of its own",
        )


def _in_parts(model: nn.Module, inputs: Sequence[Inputs], ties: tuple[tuple[str, ...], ...], why: str) -> View:
    """What can be captured child by child, where the whole cannot, for the reason given."""
    problems, seen = {"": why}, _recorded_inputs(model, inputs)
    calls: list[Call] = []
    rungs: set[Rung] = set()
    for path, module in model.named_children():
        rungs |= _descend(path, module, seen, calls, problems)
    if not calls:
        raise CaptureError(
            "no part of the model could be captured", why="; ".join(f"{k or 'model'}: {v}" for k, v in problems.items())
        )
    rung: Rung = "module-local" if "module-local" in rungs else "submodule"
    return View(rung, _by_first_path(calls, ties), ties, problems)


def _by_first_path(calls: Iterable[Call], ties: tuple[tuple[str, ...], ...]) -> tuple[Call, ...]:
    """The calls with every tied tensor under its first path, whichever torch chose."""
    first = {path: paths[0] for paths in ties for path in paths}
    sources = {f"tensor {path}": f"tensor {known}" for path, known in first.items()}
    return tuple(
        replace(
            call,
            reads=tuple(sources.get(read or "", read) for read in call.reads),
            weights=tuple(dict.fromkeys(first.get(path, path) for path in call.weights)),
        )
        for call in calls
    )


def _descend(
    path: str, module: nn.Module, seen: Mapping[str, Inputs], calls: list[Call], problems: dict[str, str]
) -> set[Rung]:
    children = {name: child for name, child in module.named_children() if not isinstance(child, EncodedTensor)}
    rungs: set[Rung] = set()
    if path in seen:  # or else it was never called: a list of layers, or a branch not taken
        rungs = set() if children else {"module-local"}
        try:
            calls += _calls(module, _traced(module, seen[path], {}), path)
            return rungs or {"submodule"}
        except Exception as error:
            raise_own(error)
            problems[path] = reason(error)
    for name, child in children.items():
        rungs |= _descend(f"{path}.{name}", child, seen, calls, problems)
    return rungs


def _recorded_inputs(model: nn.Module, inputs: Sequence[Inputs]) -> dict[str, Inputs]:
    """What each submodule is called with, the first time, in runs of `model`; the first of these must work."""
    seen = dict[str, Inputs]()
    for i, given in enumerate(inputs):
        try:
            seen = {**_recorded(model, given), **seen}
        except Exception as error:  # the user's own code, on inputs that may be of our making
            if i == 0:
                raise InputError(
                    "the model fails on its example", why=reason(error), next="give an example it accepts"
                ) from error
    return seen


def _recorded(model: nn.Module, inputs: Inputs) -> dict[str, Inputs]:
    seen: dict[str, Inputs] = {}

    def remember(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.setdefault(path, Inputs(args, kwargs))

        return hook

    hooks = [
        module.register_forward_pre_hook(remember(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path
    ]
    try:
        with torch.no_grad(), eval_mode(model):
            inputs.call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _calls(model: nn.Module, captured: ExportedProgram, path: str) -> Iterator[Call]:
    """The calls of a captured graph in order, each with the name of its value and the sources of what it reads."""
    signature = captured.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    prefix = f"{path}." if path else ""
    sources: dict[Node, str | None] = {}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            name = held.get(node.name)
            sources[node] = f"input {prefix}{node.name}" if name is None else f"tensor {prefix}{stored_of(model, name)}"
    yield from _calls_of(captured.graph, sources, path, prefix)
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    reads = tuple(source for source in (sources.get(arg) for arg in output.all_input_nodes) if source)
    yield Call(id=f"{prefix}output", op="output", value=None, reads=reads, shape=())


def _calls_of(graph: Graph, sources: dict[Node, str | None], path: str, ids: str) -> Iterator[Call]:
    """The calls of a graph whose placeholders have known `sources`; those of what it computes are added."""
    for node in graph.nodes:
        if node.op != "call_function" or node.target is torch.ops.aten._assert_tensor_metadata.default:
            continue
        reads = tuple(sources.get(arg) for arg in _arguments(node))
        inner = region(node)
        if inner is not None:
            yield from _calls_of_region(node, inner.graph, sources, path, ids)
            continue
        if node in sources:  # a part of what a region answered with
            continue
        if _passes_on(node, reads):
            sources[node] = next(filter(None, reads), None)
            continue
        sources[node] = f"{ids}{node.name}"
        yield Call(
            id=f"{ids}{node.name}",
            op=_op_name(node),
            value=_label(node, path),
            reads=reads,
            shape=_shape(node),
            weight_shape=_weight_shape(node),
            window=_window(node),
            weights=tuple(_weights(node, sources, reads)),
            constants=tuple(arg for arg in node.args if isinstance(arg, int | float)),
            numbers=_numbers(node),
        )


def _calls_of_region(node: Node, inner: Graph, sources: dict[Node, str | None], path: str, ids: str) -> Iterator[Call]:
    """The calls inside of a call that runs a graph in another mode, as if they stood around it."""
    placeholders = (held for held in inner.nodes if held.op == "placeholder")
    sources |= {held: sources.get(given) for held, given in zip(placeholders, operands(node), strict=True)}
    yield from _calls_of(inner, sources, path, f"{ids}{node.name}/")
    (output,) = (held for held in inner.nodes if held.op == "output")
    answers: Any = output.args[0]
    sources |= {user: sources.get(answers[user.args[1]]) for user in node.users}


def _arguments(node: Node) -> list[Any]:
    """Positional arguments, lists of nodes flattened; a place that holds no node is None in the reads."""
    flat: list[Any] = []
    for arg in (*node.args, *node.kwargs.values()):
        flat += list(arg) if isinstance(arg, list | tuple) and any(isinstance(a, Node) for a in arg) else [arg]
    return [arg if isinstance(arg, Node) else None for arg in flat]


def _passes_on(node: Node, reads: tuple[str | None, ...]) -> bool:
    """Whether the node only labels, decodes or projects what it reads, or changes the type of a weight."""
    cast = node.target is torch.ops.aten.to.dtype and (reads[0] or "").startswith("tensor ")
    ours = getattr(node.target, "namespace", "") == "lilliput"
    return cast or _within_encoded(node) or (ours and _op_name(node) not in RECURRENT | {BAG})


def _within_encoded(node: Node) -> bool:
    """Whether an encoded tensor makes the call while it decodes: an encoding of a user's may do so by plain torch."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return bool(stack) and stack[-1][1] in (EncodedTensor, f"{EncodedTensor.__module__}.{EncodedTensor.__qualname__}")


def _numbers(node: Node) -> tuple[int, ...]:
    lists = (arg for arg in node.args if isinstance(arg, list | tuple))
    return next((tuple(arg) for arg in lists if arg and all(isinstance(n, int) for n in arg)), ())


def _op_name(node: Node) -> str:
    name = str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))).rstrip("_")
    mode = node.args[2] if name == "pad" and len(node.args) > 2 else "constant"
    return name if mode == "constant" else f"{mode}_pad"


def _label(node: Node, path: str) -> str | None:
    """The name of the value that a node returns; of several outputs that of the first, whichever of them are read."""
    for user in node.users:
        if user.target is torch.ops.lilliput.mark.default and user.args[0] is node:
            value = Value.parse(str(user.args[1]))
            return str(replace(value, module=".".join(filter(None, (path, value.module)))))
    outputs = [user for user in node.users if user.target is operator.getitem] if _op_name(node) in RECURRENT else []
    labels = [label for label in (_label(output, path) for output in outputs) if label]
    return str(replace(Value.parse(labels[0]), output=0)) if labels else None


def _shape(node: Node) -> tuple[int | str, ...]:
    value = node.meta.get("val")
    return tuple(n if isinstance(n, int) else str(n) for n in value.shape) if isinstance(value, Tensor) else ()


def _weight_shape(node: Node) -> tuple[int, ...]:
    weight = node.args[1] if len(node.args) > 1 else None
    shape = _shape(weight) if isinstance(weight, Node) else ()
    return tuple(n for n in shape if isinstance(n, int))


def _window(node: Node) -> Window | None:
    if _op_name(node) not in CONVOLUTIONS or "transpose" in _op_name(node):
        return None
    schema: Any = node.target
    names = [argument.name for argument in schema._schema.arguments]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    kernel = _weight_shape(node)[2:]
    stride, dilation = (_each(given.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        whole = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        ends = tuple((n // 2, n - n // 2) for n in whole)
    else:
        ends = tuple((n, n) for n in _each(padding, len(kernel)))
    return Window(kernel, stride, ends, dilation, int(given.get("groups", 1)))


def _each(numbers: Any, axes: int) -> tuple[int, ...]:
    """One number for all axes of space, or one for each."""
    listed = list(numbers) if isinstance(numbers, list | tuple) else [numbers]
    return tuple(listed * axes if len(listed) == 1 else listed)


def _weights(node: Node, sources: Mapping[Node, str | None], reads: tuple[str | None, ...]) -> Iterator[str]:
    """The held tensors that a node multiplies by or looks rows up in; of a recurrent layer those that are no biases."""
    op = _op_name(node)
    read = reads[1:2] if op in MULTIPLIES else reads[:1] if op in LOOKS_UP else ()
    if op in RECURRENT:
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        tensors: Any = node.args[names.index("params")]
        read = tuple(sources.get(tensor) for tensor in tensors if len(_shape(tensor)) > 1)
    for source in read:
        kind, _, path = (source or "").partition(" ")
        if kind == "tensor":
            yield path
