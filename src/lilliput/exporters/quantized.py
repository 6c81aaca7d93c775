"""A module as a program of torch's own operators: integers as `quantized_decomposed`, all other formats as floats.

Converters for mobile runtimes know these operators: a `quantize` behind what gives a value, a `dequantize` before each
call that reads it. Codes lie around zero there, so those of 0 to 255 are written 128 lower.
"""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from lilliput.errors import ExportError, raise_own, reason
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.program import program, quiet
from lilliput.model.views.view import BAG, RECURRENT

_CODES = (-128, 127, torch.int8)
_EPSILON = torch.finfo(torch.float32).eps
_aten, _coded = torch.ops.aten, torch.ops.quantized_decomposed
_LINEAR = _aten.linear.default
_LAYERS = frozenset(
    {
        _LINEAR,
        *(_aten.conv1d.default, _aten.conv1d.padding, _aten.conv2d.default, _aten.conv2d.padding),
    }
)
_ACTIVATIONS = frozenset({_aten.relu.default, _aten.hardtanh.default, _aten.relu6.default})
_DROPOUT = frozenset({_aten.dropout.default, _aten.feature_dropout.default})
_PADDING = frozenset({_aten.pad.default, _aten.constant_pad_nd.default})
_WHOLE = 254  # steps of a range that codes of eight bits hold; of fewer the ends are cut before


def quantized(model: nn.Module, example: Inputs) -> ExportedProgram:
    """`model` (in eval mode) for the lengths of `example`, with none of our operators left.

    Weights that a layer multiplies by integers stay codes where kernels take them, and so do tables. All others are
    written as the floats that they decode to. Raises ExportError for what cannot be captured, and for values in formats
    that these operators do not have.
    """
    try:
        with quiet():
            captured = program(model, example, {})
    except ExportError:
        raise
    except Exception as error:  # capturing raises whatever the model's code raises
        raise_own(error)
        raise ExportError(
            "the model cannot be captured as one graph",
            why=reason(error),
            next="see which part with lilliput.model.views.capture, or keep the .lil file",
        ) from error
    _Rewriting(captured).done()
    return captured


class _Rewriting:
    """A captured program whose operators of ours give way to torch's."""

    def __init__(self, captured: ExportedProgram) -> None:
        self.captured, self.graph = captured, captured.graph
        told, tensors = captured.graph_signature, {**captured.constants, **captured.state_dict}
        targets = {**told.inputs_to_parameters, **told.inputs_to_buffers, **told.inputs_to_lifted_tensor_constants}
        self.held: dict[str, Tensor] = {name: tensors[target].detach() for name, target in targets.items()}
        self.fake = next(x.fake_mode for node in self.graph.nodes if (x := node.meta.get("val")) is not None)

    def done(self) -> None:
        for node in [node for node in self.graph.nodes if node.target in _DROPOUT and not node.args[2]]:
            self._give_way(node, node.args[0])  # or a layer behind it would not be seen to read codes
        for node in self._ours(BAG):  # or the rows that are looked up would not be seen
            self._bag(node)
        for node in self._ours("decode_"):  # before the values, by which it is known what computes on integers
            for user in list(node.users):
                self._weight(node, user)
        for node in self._ours("project_int"):
            self._value(node)
        for name in sorted(RECURRENT):
            for node in self._ours(name):
                self._recurrent(node, name)
        self._clean()
        for node in self._ours(""):
            raise ExportError(
                f"values rounded as {_name(node)} does it",
                where=node.name,
                why="no runtime has an operator for it",
                next="let values flow as Int(8), or leave them float",
            )
        self.graph.lint()
        self.captured.graph_module.recompile()
        self.captured.validate()

    def _ours(self, prefix: str) -> list[Node]:
        return [node for node in self.graph.nodes if _name(node) and _name(node).startswith(prefix)]

    # weights

    def _weight(self, node: Node, user: Node) -> None:
        """What one call reads of an encoded tensor."""
        if _name(user).startswith("decode_"):
            return  # a part that is encoded itself
        scale = self._scales(node)
        with self.graph.inserting_before(user):
            if scale is not None and user.target is _aten.embedding.default:
                self._look_up(node, scale, user)
            elif scale is not None and user.target in _LAYERS and user.args[1] is node and _on_integers(user):
                zero = self._constant(torch.zeros_like(scale, dtype=torch.int64), f"{node.name}_zero")
                given = (node.args[0], self._constant(scale, f"{node.name}_scale"), zero, 0, *_CODES)
                user.replace_input_with(node, self._call(_coded.dequantize_per_channel.default, *given))
            else:
                user.replace_input_with(node, self._constant(self._known(node), node.name))

    def _scales(self, node: Node) -> Tensor | None:
        """A scale for each row of codes that lie around zero; None where a weight is encoded otherwise."""
        if _name(node) != "decode_int":
            return None
        codes, scale, offset, minimum, axis, _group = map(self._known, node.args)
        if offset is not None or minimum is not None or codes.dtype != torch.int8 or scale.dim() > 1:
            return None
        if scale.dim() and axis != 0:
            return None
        scale = scale.float()
        return scale.expand(len(codes)).contiguous()  # type: ignore[no-any-return]

    def _look_up(self, node: Node, scale: Tensor, user: Node) -> None:
        """Rows of codes, and then their scales."""
        table = self._constant(scale[:, None], f"{node.name}_scale")
        rows, scales = (self._call(_aten.index.Tensor, held, [user.args[1]]) for held in (node.args[0], table))
        floats = self._call(_aten.to.dtype, rows, torch.float32)
        self._give_way(user, self._call(_aten.mul.Tensor, floats, scales))

    def _bag(self, node: Node) -> None:
        """Rows of bags of one length, reduced."""
        weight, indices, offsets, weights, mode, padding, _last = node.args
        if offsets is not None or padding is not None:
            raise ExportError(
                "bags of several lengths",
                where=node.name,
                why="no operator that is written here leaves rows out",
                next="give a matrix of numbers without padding_idx, or take another target",
            )
        with self.graph.inserting_before(node):
            rows = self._call(_aten.embedding.default, weight, indices)
            if weights is not None:
                rows = self._call(_aten.mul.Tensor, rows, self._call(_aten.unsqueeze.default, weights, -1))
            reduce: Any = {"sum": _aten.sum.dim_IntList, "mean": _aten.mean.dim, "max": _aten.amax.default}[str(mode)]
            reduced = self._call(reduce, rows, [1])
        self._give_way(node, reduced)

    def _known(self, x: Any) -> Any:
        """What a node that depends on tensors of the module alone computes."""
        if not isinstance(x, Node):
            return x
        if x.op == "placeholder":
            return self.held[x.name]
        target: Any = x.target
        return target(*map(self._known, x.args))

    # values

    def _value(self, node: Node) -> None:
        """A value that flows: quantized where it arises, dequantized by each that reads it."""
        grid: tuple[Any, ...]
        x, *told = node.args
        with self.graph.inserting_before(node):
            if _name(node) == "project_int":
                scale, offset, low, high = (float(self._known(part)) for part in told)
                if high - low < _WHOLE:
                    x = self._call(_aten.hardtanh.default, x, (low - offset) * scale, (high - offset) * scale)
                grid, kind = (scale, int(offset) - (128 if high > _CODES[1] else 0), *_CODES), "default"
            elif told == [8]:
                found = self._call(_coded.choose_qparams.tensor, x, *_CODES[:2], _EPSILON, _CODES[2])
                grid, kind = (*(self._call(getitem, found, i) for i in (0, 1)), *_CODES), "tensor"
            else:
                return
            codes = self._call(getattr(_coded.quantize_per_tensor, kind), x, *grid)
        for user in list(node.users):
            with self.graph.inserting_before(user):
                read = self._call(getattr(_coded.dequantize_per_tensor, kind), codes, *grid)
            user.replace_input_with(node, read)
            if user.op == "output":
                self.captured.graph_signature.replace_all_uses(node.name, read.name)

    def _recurrent(self, node: Node, name: str) -> None:
        """A whole layer, as torch has it."""
        states: Any
        x, states, weights, biases, levels, both, first = node.args
        given = states if name == "lstm" else states[0]
        with self.graph.inserting_before(node):
            layer = self._call(getattr(_aten, name).input, x, given, weights, biases, levels, 0.0, False, both, first)
        self._give_way(node, layer)

    # graph

    def _call(self, target: Any, *args: Any) -> Node:
        node: Node = self.graph.call_function(target, args)
        with self.fake:
            given = torch.fx.node.map_arg(args, lambda one: one.meta["val"])
            node.meta["val"] = target(*given)
        return node

    def _constant(self, tensor: Tensor, name: str) -> Node:
        """A tensor that the program holds beside the module's."""
        specs = self.captured.graph_signature.input_specs
        place = next((i for i, spec in enumerate(specs) if spec.kind == InputKind.USER_INPUT), len(specs))
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        before = placeholders[place] if place < len(placeholders) else next(iter(self.graph.nodes))
        with self.graph.inserting_before(before):
            node: Node = self.graph.placeholder(f"b_{name}_{len(specs)}")
        target = f"{node.name}_held"
        specs.insert(place, InputSpec(InputKind.BUFFER, TensorArgument(node.name), target, persistent=True))
        node.meta["val"] = self.fake.from_tensor(tensor, static_shapes=True)
        self.captured.state_dict[target] = self.held[node.name] = tensor
        return node

    def _give_way(self, old: Node, new: Node) -> None:
        old.replace_all_uses_with(new)
        self.captured.graph_signature.replace_all_uses(old.name, new.name)

    def _clean(self) -> None:
        """Without what nothing reads any more: calls of ours, and tensors that only they read."""
        self.graph.eliminate_dead_code()
        told = self.captured.graph_signature
        for node in [node for node in self.graph.nodes if node.op == "placeholder" and not node.users]:
            spec = next(spec for spec in told.input_specs if getattr(spec.arg, "name", "") == node.name)
            if spec.kind != InputKind.USER_INPUT:
                told.input_specs.remove(spec)
                self.graph.erase_node(node)
        read = {spec.target for spec in told.input_specs}
        for held in (self.captured.state_dict, self.captured.constants):
            for target in [target for target in held if target not in read]:
                del held[target]


def _name(node: Node) -> str:
    """The name of an operator of ours; empty for any other call."""
    target: Any = node.target
    ours = isinstance(target, torch._ops.OpOverload) and target.namespace == "lilliput"
    return str(target._opname) if ours else ""


def _on_integers(layer: Node) -> bool:
    """Whether kernels multiply a layer's codes: what it reads has codes, and what it gives, if those are calibrated."""
    source = layer.args[0]
    while isinstance(source, Node) and source.target in _PADDING:
        source = source.args[0]
    assert isinstance(source, Node)
    if _name(source) == "project_int_dynamic":
        return layer.target is _LINEAR and source.args[1:] == (8,)
    after = layer
    while len(after.users) == 1 and (user := next(iter(after.users))).target in _ACTIVATIONS:
        after = user
    return _name(source) == "project_int" and all(_name(user) == "project_int" for user in after.users)
