"""Following the axes of tensors through a captured graph, call by call, by the rules of the operators."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from lilliput.errors import raise_own
from lilliput.model.surgery.coupling.atoms import Atoms, Axis, Unfit

Axes = list[Axis]
ENCODED = "encoded already: prune first, encode then"
Rule = Callable[["Flow", "Reading"], Any]


@dataclass(frozen=True)
class Number:
    """A length that a call is given as a number, and the axis that has this length."""

    module: str  # whose forward makes the call
    name: str  # of the attribute that holds it, where the operator tells; else empty
    value: int
    axis: Axis
    source: str  # the line of the user's source


@dataclass
class Flow:
    """The axes of all that flows, as they become known."""

    atoms: Atoms = field(default_factory=Atoms)
    axes: dict[Node, Any] = field(default_factory=dict)  # of a tensor its Axes, of several a list of those
    heads: list[Axis] = field(default_factory=list)  # axes along which attention multiplies apart
    normalised: list[Axis] = field(default_factory=list)  # axes that a mean or a norm is taken over
    numbers: list[Number] = field(default_factory=list)
    made: list[tuple[Axis, Axis]] = field(default_factory=list)  # what a layer returns by its weight, and its bias
    contracted: dict[Node, Axis] = field(default_factory=dict)  # of products of two activations: the axis summed over

    def fixed(self, shape: Iterable[int], why: str) -> Axes:
        return [self.atoms.fixed(n, why) for n in shape]

    def with_bias(self, outputs: Axis, bias: Axis) -> None:
        """Join what a layer returns with its bias."""
        self.atoms.join(outputs, bias)
        self.made.append((outputs, bias))

    def together(self, read: Sequence[Axes], rank: int) -> Axes:
        """The axes that several tensors have together once they are stretched to one shape, as torch stretches."""
        found: Axes = []
        for i in range(1, rank + 1):
            here = [axes[-i] for axes in read if len(axes) >= i]
            wide = [axis for axis in here if len(axis) > 1]
            for axis in wide[1:]:
                self.atoms.join(wide[0], axis)
            found.insert(0, wide[0] if wide else here[0])
        return found


@dataclass(frozen=True)
class Reading:
    """One call of the graph: its arguments by name."""

    node: Node
    flow: Flow
    given: dict[str, Any]

    @classmethod
    def of(cls, node: Node, flow: Flow) -> Reading:
        return cls(node, flow, arguments(node))

    @property
    def op(self) -> str:
        return op_name(self.node)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it returns, of the first of several."""
        value = self.node.meta.get("val")
        value = value[0] if isinstance(value, list | tuple) else value
        return tuple(map(int, value.shape)) if isinstance(value, Tensor) else ()

    def axes(self, name: str) -> Axes:
        """The axes of the tensor given as `name`, in a list of its own."""
        return list(self.flow.axes[self.given[name]])

    def has(self, name: str) -> bool:
        return isinstance(self.given.get(name), Node)

    @property
    def all_read(self) -> list[Axes]:
        """The axes of each tensor that is read."""
        found = (self.flow.axes.get(node) for node in self.node.all_input_nodes)
        return [list(one) for axes in found if axes is not None for one in (axes if several(axes) else [axes])]

    @property
    def module(self) -> str:
        stack = self.node.meta.get("nn_module_stack") or {}
        paths = [re.sub(r"^L\['self'\]\.?|^L__self___?", "", str(path)) for path, _ in stack.values()]
        return paths[-1] if paths else ""

    @property
    def source(self) -> str:
        """The line of the user's source, as far as torch remembers it."""
        lines = [line.strip() for line in str(self.node.meta.get("stack_trace") or "").splitlines()]
        at = [i for i, line in enumerate(lines) if line.startswith("File ")]
        if not at:
            return ""
        where = re.match(r'File "(?:.*[/\\])?([^/\\"]+)", line (\d+)', lines[at[-1]])
        text = lines[at[-1] + 1] if at[-1] + 1 < len(lines) else ""
        return f"{where[1]}:{where[2]}: {text}" if where else text

    @property
    def words(self) -> str:
        of = f" of {self.module}" if self.module else ""
        return f"{self.op}{of}" + (f" ({self.source})" if self.source else "")

    def number(self, value: Any, axis: Axis, name: str = "") -> None:
        """Note that the call gives the length of an axis as a number."""
        if isinstance(value, int) and value == len(axis) > 1 and not self.flow.atoms.fixed_whole(axis):
            self.flow.numbers.append(Number(self.module, name, value, axis, self.source))


def arguments(node: Node) -> dict[str, Any]:
    """What a call is given, by name, with the defaults of what it is not."""
    schema = getattr(node.target, "_schema", None)
    given = {} if schema is None else {argument.name: argument.default_value for argument in schema.arguments}
    return given | dict(zip(given, node.args, strict=False)) | dict(node.kwargs)


def op_name(node: Node) -> str:
    name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
    return str(name).rstrip("_")


def several(axes: Any) -> bool:
    return bool(axes) and isinstance(axes[0], list)


def follow(flow: Flow, graph: Graph, module: GraphModule, rules: Mapping[str, Rule]) -> None:
    """Follow the axes through a graph whose placeholders are known; what comes out of it is kept."""
    alive = _alive(graph)
    for node in graph.nodes:
        if node not in alive:
            continue
        if node.op == "call_function":
            flow.axes[node] = _returned(flow, node, rules)
        elif node.op == "get_attr":
            value = getattr(module, str(node.target), None)
            flow.axes[node] = flow.fixed(value.shape, "a constant of the source") if isinstance(value, Tensor) else None
        elif node.op == "output":
            for axes in Reading(node, flow, {}).all_read:
                for axis in axes:
                    flow.atoms.keep(axis, "an axis of what the model returns")


def _alive(graph: Graph) -> set[Node]:
    """What the outputs, or writing in place, depend on: a tensor whose length alone was asked for says nothing."""
    found: set[Node] = set()
    work = [node for node in graph.nodes if node.op == "output" or _in_place(node)]
    while work:
        node = work.pop()
        if node not in found:
            found.add(node)
            work += node.all_input_nodes
    return found


def _in_place(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _returned(flow: Flow, node: Node, rules: Mapping[str, Rule]) -> Any:
    call = Reading.of(node, flow)
    if node.target is operator.getitem:
        held: Any = flow.axes.get(node.args[0])  # type: ignore[arg-type]
        return list(held[node.args[1]]) if several(held) else None
    if call.op.startswith("decode_"):
        return flow.fixed(call.shape, ENCODED)
    rule = rules.get(call.op)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = rules["pointwise"]
    try:
        found = None if rule is None else rule(flow, call)
    except Unfit:
        found = None
    except (ValueError, IndexError, KeyError, TypeError) as error:  # a form that its rule was not made for
        raise_own(error)
        found = None
    if found is not None and _fits(found, node.meta.get("val")):
        return found
    return _unknown(flow, call)


def _fits(axes: Any, value: Any) -> bool:
    if isinstance(value, Tensor):
        return not several(axes) and [len(axis) for axis in axes] == list(value.shape)
    if not isinstance(value, list | tuple) or not several(axes) or len(axes) != len(value):
        return value is None
    return all(map(_fits, axes, value))


def _unknown(flow: Flow, call: Reading) -> Any:
    """Nothing goes from what is read by an operator that no rule knows."""
    for axes in call.all_read:
        for axis in axes:
            if len(axis) > 1:
                flow.atoms.keep(axis, f"what {call.words} does to it is not known")
    value = call.node.meta.get("val")
    why = f"made by {call.words}, which is not known"
    if isinstance(value, Tensor):
        return flow.fixed(value.shape, why)
    if isinstance(value, list | tuple):
        return [flow.fixed(one.shape, why) if isinstance(one, Tensor) else [] for one in value]
    return None
