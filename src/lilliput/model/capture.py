"""From a module to a view of it: which calls it makes, what they read, which tensors are tied.

`torch.export` traces the whole model if it can. Where it cannot, each child is tried alone, down to single modules; the
rung that was reached and the reason for each failure are in the view.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import logging
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from lilliput.errors import CaptureError, InputError, reason
from lilliput.model.carrier import SUFFIX, EncodedTensor, tensors
from lilliput.model.passed import flat
from lilliput.model.recurrent import WholeLayers
from lilliput.model.values import Value, mark, watched
from lilliput.model.view import CONVOLUTIONS, MULTIPLIES, RECURRENT, Call, Rung, View, Window
from lilliput.modes import eval_mode

Dynamic = Mapping[str | int, Mapping[int, str]]


@dataclass(frozen=True)
class Inputs:
    """One set of arguments for a model: what a user gives as a tensor, a tuple or a dict."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: Any) -> Inputs:
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Tensor):
            return cls((example,), {})
        if isinstance(example, Mapping):
            return cls((), dict(example))
        if isinstance(example, tuple | list) and all(isinstance(x, Tensor) for x in example):
            return cls(tuple(example), {})
        raise InputError(
            f"inputs of type {type(example).__name__}", next="give a tensor, a tuple of tensors or a dict of tensors"
        )

    def call(self, model: Any) -> Any:
        return model(*self.args, **self.kwargs)

    def tensors(self) -> dict[str | int, Tensor]:
        """The tensors by position or keyword."""
        named: Iterable[tuple[str | int, Any]] = itertools.chain(enumerate(self.args), self.kwargs.items())
        return {key: x for key, x in named if isinstance(x, Tensor)}

    def by_parameter(self, forward: Any) -> dict[str, Any]:
        """The arguments by the name of the parameter of `forward` that takes them."""
        return dict(inspect.signature(forward).bind(*self.args, **self.kwargs).arguments)

    def map(self, change: Any) -> Inputs:
        """The same arguments, each tensor replaced by ``change(key, tensor)``."""
        return Inputs(
            tuple(change(i, x) if isinstance(x, Tensor) else x for i, x in enumerate(self.args)),
            {key: change(key, x) if isinstance(x, Tensor) else x for key, x in self.kwargs.items()},
        )


def dynamic_axes(inputs: Inputs, dynamic: Dynamic | None) -> dict[str | int, dict[int, str]]:
    """The named axes that vary, checked against the inputs; by default the first axis of each input is the batch."""
    known = inputs.tensors()
    if dynamic is None:
        return {key: {0: "batch"} for key, x in known.items() if x.dim() > 0}
    for key, axes in dynamic.items():
        if key not in known:
            raise InputError(f"dynamic= names an input {key!r}", next=f"the example has {', '.join(map(repr, known))}")
        for axis in axes:
            if not 0 <= axis < known[key].dim():
                raise InputError(f"dynamic= names axis {axis} of {key!r}", why=f"it has {known[key].dim()} axes")
    return {key: dict(axes) for key, axes in dynamic.items()}


def program(model: nn.Module, inputs: Inputs, dynamic: Mapping[str | int, Mapping[int, str]]) -> ExportedProgram:
    """`model` as an exported program with the named axes left open; `model` must be in eval mode."""
    dims = {name: Dim.DYNAMIC for axes in dynamic.values() for name in axes.values()}

    def widen(key: str | int, x: Tensor) -> Tensor:
        # an axis of length 1 would be taken for a constant
        for axis in dynamic.get(key, {}):
            x = x.repeat_interleave(2, dim=axis) if x.shape[axis] == 1 else x
        return x

    wide = inputs.map(widen)
    open_axes = {
        key: {axis: dims[name] for axis, name in dynamic.get(key, {}).items()} or None for key in wide.tensors()
    }
    shapes = Inputs(tuple(map(open_axes.get, range(len(wide.args)))), {key: open_axes.get(key) for key in wide.kwargs})
    given = shapes.by_parameter(model.forward)
    with torch.no_grad(), WholeLayers(), flat(model):
        return torch.export.export(
            model, wide.args, dict(wide.kwargs), dynamic_shapes=given if dims else None, strict=False
        )


def capture(model: nn.Module, inputs: Inputs, dynamic: Mapping[str | int, Mapping[int, str]]) -> View:
    """What `model` does with `inputs`, at the highest rung that works."""
    ties = tuple(paths for paths in tensors(model) if len(paths) > 1)
    try:
        return View("whole", _by_first_path(_calls(model, inputs, dynamic, ""), ties), ties, {})
    except Exception as error:  # torch.export raises whatever the model's own code raises
        problems = {"": reason(error)}
    seen = _recorded_inputs(model, inputs)
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
            calls += _calls(module, seen[path], {}, path)
            return rungs or {"submodule"}
        except Exception as error:
            problems[path] = reason(error)
    for name, child in children.items():
        rungs |= _descend(f"{path}.{name}", child, seen, calls, problems)
    return rungs


def _recorded_inputs(model: nn.Module, inputs: Inputs) -> dict[str, Inputs]:
    """What each submodule is called with, the first time, in one run of `model`."""
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
    except Exception as error:
        raise InputError(
            "the model fails on its example", why=reason(error), next="give an example it accepts"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _calls(
    model: nn.Module, inputs: Inputs, dynamic: Mapping[str | int, Mapping[int, str]], path: str
) -> Iterator[Call]:
    """The calls of a captured graph in order, each with the name of its value and the sources of what it reads."""
    with watched(model, lambda name, x: mark(x, name)), eval_mode(model), quiet():
        captured = program(model, inputs, dynamic)
    signature = captured.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    prefix = f"{path}." if path else ""
    sources: dict[Node, str | None] = {}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            name = held.get(node.name)
            sources[node] = f"input {prefix}{node.name}" if name is None else f"tensor {prefix}{_owner(name)}"
        elif node.op == "call_function":
            reads = tuple(sources.get(arg) for arg in _arguments(node))
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                continue
            if _passes_on(node, reads):
                sources[node] = reads[0]
                continue
            sources[node] = f"{prefix}{node.name}"
            yield Call(
                id=f"{prefix}{node.name}",
                op=_op_name(node),
                value=_label(node, prefix),
                reads=reads,
                shape=_shape(node),
                weight_shape=_weight_shape(node),
                window=_window(node),
                weights=tuple(_weights(node, sources, reads)),
                constants=tuple(arg for arg in node.args if isinstance(arg, int | float)),
                numbers=_numbers(node),
            )
        elif node.op == "output":
            outputs = tuple(source for source in (sources.get(arg) for arg in node.all_input_nodes) if source)
            yield Call(id=f"{prefix}output", op="output", value=None, reads=outputs, shape=())


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
    return cast or (ours and _op_name(node) not in RECURRENT)


def _numbers(node: Node) -> tuple[int, ...]:
    lists = (arg for arg in node.args if isinstance(arg, list | tuple))
    return next((tuple(arg) for arg in lists if arg and all(isinstance(n, int) for n in arg)), ())


def _op_name(node: Node) -> str:
    name = str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))).rstrip("_")
    mode = node.args[2] if name == "pad" and len(node.args) > 2 else "constant"
    return name if mode == "constant" else f"{mode}_pad"


def _label(node: Node, prefix: str) -> str | None:
    """The name of the value that a node returns; of several outputs that of the first, whichever of them are read."""
    for user in node.users:
        if user.target is torch.ops.lilliput.mark.default and user.args[0] is node:
            name = str(user.args[1])
            return prefix.removesuffix(".") + name if name.startswith(":") else prefix + name
    outputs = [user for user in node.users if user.target is operator.getitem] if _op_name(node) in RECURRENT else []
    labels = [label for label in (_label(output, prefix) for output in outputs) if label]
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
    read = reads[1:2] if op in MULTIPLIES else reads[:1] if op == "embedding" else ()
    if op in RECURRENT:
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        tensors: Any = node.args[names.index("params")]
        read = tuple(sources.get(tensor) for tensor in tensors if len(_shape(tensor)) > 1)
    for source in read:
        kind, _, path = (source or "").partition(" ")
        if kind == "tensor":
            yield path


def _owner(name: str) -> str:
    """The tensor that a held name belongs to: ``conv.weight`` for ``conv.weight_encoded.codes``."""
    return name.partition(f"{SUFFIX}.")[0]


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
