"""A graph of a file as a module: its nodes as calls of torch.fx, one after the other."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnx import GraphProto, TensorProto
from torch import Tensor, fx, nn

from lilliput.errors import InputError, LilliputError, raise_own, reason
from lilliput.importers import names
from lilliput.importers.operators.numbers import are_numbers, tensor
from lilliput.importers.operators.table import Operator, found
from lilliput.importers.placing import Held, put_module, put_tensor
from lilliput.importers.reading import File, Node, every

_TENSORS = ("Tensor", "Still")
_LITERAL = 64  # numbers of a list that are written into the code; more are held as a tensor


class Scope:
    """One graph while it is imported: what is known of each name, and the calls that were written so far.

    A name is known as a tensor or numbers, where it depends on no input, or as the call that gives it.
    """

    def __init__(self, file: File, graph: GraphProto, held: Held, outer: Scope | None = None) -> None:
        self.file, self.outer, self.held = file, outer, held
        self.root, self.graph = nn.Module(), fx.Graph()
        self.known: dict[str, Any] = {one.name: file.tensor(one) for one in graph.initializer}
        self.names: dict[Any, str] = {self._memory(value): name for name, value in self.known.items()}
        self.numbers: set[fx.Node] = set()  # calls that give no tensor
        self.taken: list[str] = []  # what is taken from the graph around this one, in the order of the arguments
        self.placed: dict[int, str] = {}  # tensors that stand alone -> their path
        self.done: set[str] = set()  # nodes that were made part of another, by what they give
        self._read(graph)

    def _read(self, graph: GraphProto) -> None:
        self.nodes = list(self.file.nodes(graph))
        self.readers = Counter(name for node in every(graph) for name in node.input)
        self.readers.update(one.name for one in graph.output)

    def within(self, graph: GraphProto) -> Scope:
        """A graph within this one, to be written into the same code."""
        inner = copy.copy(self)
        inner.known.update({one.name: self.file.tensor(one) for one in graph.initializer})
        inner._read(graph)
        return inner

    def placeholder(self, name: str) -> fx.Node:
        """An argument of the module, called as the file calls it, or nearly so."""
        given, count = names.argument(name), 1
        used = {node.target for node in self.graph.nodes if node.op == "placeholder"}
        while given in used:
            count += 1
            given = f"{names.argument(name)}_{count}"
        return self.graph.placeholder(given)

    # --- what is known

    def of(self, name: str) -> Any:
        """What is known of a name; None for none."""
        if not name or name in self.known:
            return self.known.get(name)
        found = self.outer.of(name) if self.outer is not None else None
        if found is None:
            raise InputError(f"nothing gives {name!r}", where=str(self.file.path), next="check it: onnx.checker")
        if isinstance(found, fx.Node):
            self.taken.append(name)
            self.known[name] = self.placeholder(name)
            if self.outer is not None and found in self.outer.numbers:
                self.numbers.add(self.known[name])
        else:
            self.known[name] = found
        return self.known[name]

    def constant(self, node: Node, place: int) -> Tensor | None:
        """The tensor at an input, if it depends on nothing; None where there is none."""
        value = self.of(node.input(place))
        return None if value is None or isinstance(value, fx.Node) else tensor(value)

    def is_computed(self, node: Node, place: int) -> bool:
        """Whether an input depends on what the network is called with."""
        return isinstance(self.of(node.input(place)), fx.Node)

    @staticmethod
    def _memory(value: Tensor) -> Any:
        return value.untyped_storage().data_ptr()

    def name_of(self, node: Node, place: int) -> str:
        """The name in the file of the tensor that an input was made of."""
        value = self.of(node.input(place))
        scope: Scope | None = self
        while scope is not None and isinstance(value, Tensor):
            if self._memory(value) in scope.names:
                return scope.names[self._memory(value)]
            scope = scope.outer
        return node.input(place)

    def constant_ahead(self, name: str) -> Tensor | None:
        """The tensor of a name that a later node reads, if it is known by now."""
        value = self.known.get(name)
        return None if value is None or isinstance(value, fx.Node) else tensor(value)

    def only_reader(self, node: Node, op: str) -> Node | None:
        """The one node that reads the result of another, if it is of that kind."""
        name = node.outputs[0]
        readers = [other for other in self.nodes if name in other.inputs] if self.readers[name] == 1 else []
        return readers[0] if readers and readers[0].op == op else None

    def rank(self, name: str) -> int | None:
        """How many axes a tensor has, where the file tells."""
        shape = self.file.shapes.get(name)
        return None if shape is None else len(shape)

    def length(self, node: Node, place: int) -> Tensor | None:
        """The shape of what is a list of numbers; None for tensors, and where the file does not tell."""
        shape = self.file.shapes.get(node.input(place), (0,))
        return torch.tensor(shape) if self.of(node.input(place)) in self.numbers and all(shape) else None

    def skip(self, node: Node, made: fx.Node) -> None:
        """A node that became part of another: what gives its result."""
        self.known[node.outputs[0]] = made
        self.done.add(node.outputs[0])

    # --- what is written

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.graph.call_function(function, args, kwargs)

    def layer(self, path: str, module: nn.Module, *args: Any) -> fx.Node:
        """Hold a module, and call it."""
        return self.graph.call_module(put_module(self.root, path, module), args)

    def input(self, node: Node, place: int) -> Any:
        """A tensor at an input, as an argument."""
        return self.argument(node.input(place), "Tensor", node)

    def argument(self, name: str, kind: str, node: Node) -> Any:
        """What is known of a name as an argument of a `kind`: a call, a number, a list, or a tensor that is held."""
        value = self.of(name)
        if isinstance(value, fx.Node):
            if kind == "Numbers" and value not in self.numbers:
                raise InputError(
                    f"reads {name!r}, which is computed of values",
                    where=f"{node.where} ({node.op})",
                    why="shapes and ends must be known from shapes alone",
                    next="give an input that is always the same to from_onnx: fixed={name: value}",
                )
            return self.call(tensor, value) if kind in _TENSORS and value in self.numbers else value
        if value is None or (kind not in _TENSORS and _is_literal(value, kind)):
            return value.tolist() if isinstance(value, Tensor) else value
        return self._held(name, tensor(value), trained=kind != "Still")

    def _held(self, name: str, value: Tensor, *, trained: bool) -> fx.Node:
        held = self.held.parameter(value) if trained else value
        if id(held) not in self.placed:
            given = names.path(name)
            self.placed[id(held)] = put_tensor(self.root, given, held)
        return self.graph.get_attr(self.placed[id(held)])

    # --- node by node

    def run(self, node: Node, special: Mapping[str, Callable[[Scope, Node], Any]]) -> None:
        """Write one node, or compute it where it depends on nothing."""
        if node.outputs and node.outputs[0] in self.done:
            return
        made = special[node.op](self, node) if node.op in special else None
        self._tell(node, self._by_function(node) if made is None else made)

    def _tell(self, node: Node, made: Any) -> None:
        parts = made if isinstance(made, tuple) else (made,)
        for name in node.outputs[len(parts) :]:
            if name and self.readers[name]:
                raise InputError(
                    f"gives {name!r} beside its result", where=f"{node.where} ({node.op})", next="export it without"
                )
        self.known.update({name: part for name, part in zip(node.outputs, parts, strict=False) if name})
        for part in parts:
            if isinstance(part, Tensor):
                self.names.setdefault(self._memory(part), node.outputs[0])

    def _by_function(self, node: Node) -> Any:
        known = found(node.op, self.file.opset)
        assert known is not None, node.op
        self._check_attributes(node, known)
        given = {name: self._attribute(value) for name, value in node.attributes.items()}
        if known.takes("outputs"):
            given["outputs"] = len(node.outputs)
        places = range(len(node.inputs))
        if not any(self.is_computed(node, place) for place in places):
            return self._folded(node, known, given)
        args = [self.argument(node.inputs[i], known.kind(i), node) for i in places]
        return self._called(node, known, args, given)

    @staticmethod
    def _check_attributes(node: Node, known: Operator) -> None:
        for name, value in node.attributes.items():
            if not known.takes(name) or value not in known.only.get(name, (value,)):
                values = ", ".join(map(repr, known.only.get(name, ())))
                raise InputError(
                    f"{name}={value!r} is not known here",
                    where=f"{node.where} ({node.op})",
                    why=f"only {values}" if values else "",
                    next="export the network otherwise, or cut the file before it: onnx.utils.extract_model",
                )

    def _attribute(self, value: Any) -> Any:
        """A tensor among the attributes as its numbers and their type, for code holds no tensors."""
        if not isinstance(value, TensorProto):
            return value
        held = self.file.tensor(value)
        return held.tolist(), held.dtype

    def _folded(self, node: Node, known: Operator, given: Mapping[str, Any]) -> Any:
        try:
            with torch.no_grad():
                return known.function(*map(self.of, node.inputs), **given)
        except LilliputError:
            raise
        except Exception as error:  # whatever torch says of the file's numbers
            raise_own(error)
            raise InputError("cannot be computed", where=f"{node.where} ({node.op})", why=reason(error)) from error

    def _called(self, node: Node, known: Operator, args: list[Any], given: Mapping[str, Any]) -> Any:
        made = self.call(known.function, *args, **given)
        numbers = known.gives == "Numbers" or (known.gives == "Value" and self._all_numbers(args))
        if known.several:
            parts = tuple(self.call(operator.getitem, made, i) for i in range(len(node.outputs)))
            self.numbers.update(parts if self._all_numbers(args) else ())
            return parts
        if numbers:
            self.numbers.add(made)
        return made

    def _all_numbers(self, args: list[Any]) -> bool:
        return all(arg in self.numbers if isinstance(arg, fx.Node) else are_numbers(arg) for arg in args)

    def finished(self, answers: Any, name: str) -> fx.GraphModule:
        """The module that was written."""
        self.graph.output(answers)
        module = fx.GraphModule(self.root, self.graph, name).eval()
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.graph.lint()
        module.recompile()
        return module


def _is_literal(value: Any, kind: str) -> bool:
    if kind == "Numbers" or not isinstance(value, Tensor):
        return True
    few = value.dim() <= 1 and value.numel() <= _LITERAL
    return few and (value.numel() == 1 or not value.is_floating_point())
