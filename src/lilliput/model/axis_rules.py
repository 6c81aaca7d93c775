"""What each operator says of the axes of what it reads and returns; one rule an operator, or one for many."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from lilliput.model.atoms import Atoms, Axis
from lilliput.model.view import CONVOLUTIONS, RECURRENT

Axes = list[Axis]
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
        target: Any = node.target
        schema = getattr(target, "_schema", None)
        if schema is None:
            return cls(node, flow, dict(node.kwargs))
        given = {argument.name: argument.default_value for argument in schema.arguments}
        given |= dict(zip(given, node.args, strict=False)) | dict(node.kwargs)
        return cls(node, flow, given)

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
        return [list(one) for axes in found if axes is not None for one in (axes if _several(axes) else [axes])]

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


def op_name(node: Node) -> str:
    name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
    return str(name).rstrip("_")


def _several(axes: Any) -> bool:
    return bool(axes) and isinstance(axes[0], list)


def follow(flow: Flow, graph: Graph, module: GraphModule) -> None:
    """Follow the axes through a graph whose placeholders are known; what comes out of it is kept."""
    alive = _alive(graph)
    for node in graph.nodes:
        if node not in alive:
            continue
        if node.op == "call_function":
            flow.axes[node] = _returned(flow, node)
        elif node.op == "get_attr":
            value = getattr(module, str(node.target), None)
            flow.axes[node] = flow.fixed(value.shape, "a constant of the source") if isinstance(value, Tensor) else None
        elif node.op == "output":
            for axes in Reading(node, flow, {}).all_read:
                for axis in axes:
                    flow.atoms.keep(axis, "an axis of what the model returns")


def _alive(graph: Graph) -> set[Node]:
    """What the outputs depend on: a tensor whose length alone was asked for says nothing of the axes."""
    found: set[Node] = set()
    changed = {node.args[0]: node for node in graph.nodes if node.op == "call_function" and _in_place(node)}
    work = [node for node in graph.nodes if node.op == "output"]
    while work:
        node = work.pop()
        if node not in found:
            found.add(node)
            work += node.all_input_nodes
            work += [changed[node]] if node in changed else []
    return found


def _in_place(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _returned(flow: Flow, node: Node) -> Any:
    call = Reading.of(node, flow)
    if node.target is operator.getitem:
        held: Any = flow.axes.get(node.args[0])  # type: ignore[arg-type]
        return list(held[node.args[1]]) if _several(held) else None
    rule = RULES.get(call.op)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = _pointwise
    try:
        found = None if rule is None else rule(flow, call)
    except (ValueError, IndexError, KeyError, TypeError):  # a form of the operator that its rule was not made for
        found = None
    if found is not None and _fits(found, node.meta.get("val")):
        return found
    return _unknown(flow, call)


def _fits(axes: Any, value: Any) -> bool:
    if isinstance(value, Tensor):
        return not _several(axes) and [len(axis) for axis in axes] == list(value.shape)
    if not isinstance(value, list | tuple) or not _several(axes) or len(axes) != len(value):
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


# one shape, element by element


def _pointwise(flow: Flow, call: Reading) -> Axes:
    return flow.together(call.all_read, len(call.shape))


def _same(flow: Flow, call: Reading) -> Axes:
    return list(call.all_read[0])


def _made(flow: Flow, call: Reading) -> Axes:
    """A new tensor, by lengths that the source gives: whether they follow is seen when the network runs again."""
    if call.op.endswith("_like"):
        return _same(flow, call)
    sizes = call.given.get("size") or ()
    axes = [flow.atoms.new(n) for n in call.shape]
    for size, axis in zip(sizes, axes, strict=False):
        call.number(size, axis)
    return axes


def _prelu(flow: Flow, call: Reading) -> Axes:
    x, (weight,) = call.axes("self"), call.axes("weight")
    if len(weight) > 1:
        flow.atoms.join(x[1], weight)
    return x


def _glu(flow: Flow, call: Reading) -> Axes:
    x, at = call.axes("self"), call.given["dim"]
    half = len(x[at]) // 2
    flow.atoms.join(x[at][:half], x[at][half:])
    x[at] = x[at][:half]
    return x


# products


def _linear(flow: Flow, call: Reading) -> Axes:
    x, (outputs, inputs) = call.axes("input"), call.axes("weight")
    flow.atoms.join(x[-1], inputs)
    if call.has("bias"):
        flow.with_bias(outputs, call.axes("bias")[0])
    return [*x[:-1], outputs]


def _bilinear(flow: Flow, call: Reading) -> Axes:
    one, two, (outputs, a, b) = call.axes("input1"), call.axes("input2"), call.axes("weight")
    flow.atoms.join(one[-1], a)
    flow.atoms.join(two[-1], b)
    if call.has("bias"):
        flow.atoms.join(outputs, call.axes("bias")[0])
    return [*flow.together([one[:-1], two[:-1]], len(one) - 1), outputs]


def _convolution(flow: Flow, call: Reading) -> Axes:
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


def _matmul(flow: Flow, call: Reading) -> Axes:
    a, b = call.all_read[0], call.all_read[-1]
    flow.contracted[call.node] = a[-1]
    if len(a) == 1 or len(b) == 1:
        flow.atoms.join(a[-1], b[-2] if len(b) > 1 else b[0])
        return [*a[:-1], *b[:-2], *(b[-1:] if len(b) > 1 else [])]
    flow.atoms.join(a[-1], b[-2])
    apart = flow.together([a[:-2], b[:-2]], max(len(a), len(b)) - 2)
    flow.heads += [axis for axis in apart if len(axis) > 1 and not flow.atoms.fixed_whole(axis)]
    return [*apart, a[-2], b[-1]]


def _addmm(flow: Flow, call: Reading) -> Axes:
    a, b = (call.axes(n) for n in (("mat1", "mat2") if call.op == "addmm" else ("batch1", "batch2")))
    flow.atoms.join(a[-1], b[-2])
    flow.contracted[call.node] = a[-1]
    found = [*flow.together([a[:-2], b[:-2]], len(a) - 2), a[-2], b[-1]]
    bias = call.axes("self")
    flow.together([found, bias], len(found))
    if bias and len(bias[-1]) == len(b[-1]):
        flow.with_bias(b[-1], bias[-1])
    return found


def _grouped(flow: Flow, call: Reading) -> Axes:
    """Rows multiplied each by the matrix of its group."""
    x, (groups, inputs, outputs) = call.axes("input"), call.axes("weight")
    flow.atoms.keep(groups, "matrices that are looked up")
    flow.atoms.join(x[-1], inputs)
    return [*x[:-1], outputs]


def _einsum(flow: Flow, call: Reading) -> Axes | None:
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


def _attention(flow: Flow, call: Reading) -> Axes:
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


def _embedding(flow: Flow, call: Reading) -> Axes:
    rows, columns = call.axes("weight")
    flow.atoms.keep(rows, "rows that are looked up")
    return [*call.axes("indices"), columns]


# normalisations


def _batch_norm(flow: Flow, call: Reading) -> Axes:
    x = call.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.has(name):
            flow.atoms.join(x[1], call.axes(name)[0])
    call.number(len(x[1]), x[1], "num_features")
    if call.given.get("training") or call.given.get("use_input_stats"):
        flow.normalised += [axis for i, axis in enumerate(x) if i != 1]
    return x


def _layer_norm(flow: Flow, call: Reading) -> Axes:
    x, over = call.axes("input"), len(call.given["normalized_shape"])
    for name in ("weight", "bias"):
        if call.has(name):
            for one, other in zip(x[-over:], call.axes(name), strict=True):
                flow.atoms.join(one, other)
    flow.normalised += x[-over:]
    if over == 1 and call.has("weight"):
        x[-1] = call.axes("weight")[0]
        if call.has("bias"):
            flow.with_bias(x[-1], call.axes("bias")[0])
    return x


def _group_norm(flow: Flow, call: Reading) -> Axes:
    x, groups = call.axes("input"), int(call.given["num_groups"])
    for name in ("weight", "bias"):
        if call.has(name):
            flow.atoms.join(x[1], call.axes(name)[0])
    if groups == 1:
        flow.normalised.append(x[1])
        return x
    of, each = flow.atoms.split(x[1], groups, len(x[1]) // groups)
    call.number(groups, of, "num_groups")
    flow.normalised.append(each)
    return x


def _softmax(flow: Flow, call: Reading) -> Axes:
    x = call.axes("self")
    flow.atoms.keep(x[call.given["dim"]], f"{call.words} is over all of it")
    return x


def _reduced(flow: Flow, call: Reading) -> Axes:
    """A sum or mean over some axes; over what is left of them once slices are gone."""
    x = call.axes("self")
    given = call.given.get("dim")
    over = range(len(x)) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {i % len(x) for i in over} if x else set()
    for i in gone:
        if call.op in ("mean", "sum", "var", "std", "norm", "linalg_vector_norm"):
            flow.normalised.append(x[i])
        else:
            flow.atoms.keep(x[i], f"{call.words} is over all of it")
    if call.given.get("keepdim"):
        found = [axis if i not in gone else flow.atoms.fixed(1, "an axis of length 1") for i, axis in enumerate(x)]
    else:
        found = [axis for i, axis in enumerate(x) if i not in gone]
    value = call.node.meta.get("val")
    return found if isinstance(value, Tensor) else [list(found) for _ in value]  # type: ignore[return-value, union-attr]


def _along(flow: Flow, call: Reading) -> Axes:
    """Something that mixes the positions of one axis: nothing of it can go."""
    x = call.axes("self")
    for name in ("dim", "dims"):
        along = call.given.get(name)
        for i in [along] if isinstance(along, int) else along or ():
            flow.atoms.keep(x[i], f"{call.words} goes along it")
    return x


# positions in space


def _space(axes: int | None = None) -> Rule:
    """Pooling, upsampling, padding: the last axes are no longer what they were."""

    def rule(flow: Flow, call: Reading) -> Any:
        x = call.all_read[0]
        count = axes if axes is not None else int(re.search(r"(\d)d", call.op)[1])  # type: ignore[index]
        for axis in x[-count:]:
            flow.atoms.keep(axis, "positions in space or time")
        found = [*x[:-count], *flow.fixed(call.shape[-count:], "positions in space or time")]
        value = call.node.meta.get("val")
        return found if isinstance(value, Tensor) else [list(found) for _ in value]  # type: ignore[union-attr]

    return rule


def _pad(flow: Flow, call: Reading) -> Axes:
    x, pad = call.all_read[0], list(call.given["pad"])
    for i in range(len(pad) // 2):
        before, after = pad[2 * i : 2 * i + 2]
        axis = x[-1 - i]
        if before < 0 or after < 0:
            flow.atoms.keep(axis, f"{call.words} cuts it")
        axis = axis[max(0, -before) : len(axis) - max(0, -after)]
        ends = [flow.atoms.fixed(max(0, n), f"zeros of {call.words}") for n in (before, after)]
        x[-1 - i] = np.concatenate([ends[0], axis, ends[1]]) if before or after else axis
    return x


def _pixel_shuffle(flow: Flow, call: Reading) -> Axes:
    x, factor = call.axes("self"), int(call.given.get("upscale_factor") or call.given["downscale_factor"])
    if "un" in call.op:
        channels = flow.atoms.compound(x[-3], flow.atoms.fixed(factor**2, "positions in space"))
    else:
        channels, within = flow.atoms.split(x[-3], len(x[-3]) // factor**2, factor**2)
        flow.atoms.keep(within, "positions in space")
    return [*x[:-3], channels, *flow.fixed(call.shape[-2:], "positions in space")]


def _channel_shuffle(flow: Flow, call: Reading) -> Axes:
    x, groups = call.axes("self"), int(call.given["groups"])
    of, each = flow.atoms.split(x[1], groups, len(x[1]) // groups)
    return [x[0], flow.atoms.compound(each, of), *x[2:]]


# other shapes of the same


def _laid_out(flow: Flow, call: Reading) -> Axes:
    """The same elements in the same order, under other axes."""
    x, shape = call.all_read[0], call.shape
    asked = next((call.given[name] for name in ("size", "shape", "sizes") if name in call.given), ())
    found: Axes = []
    i = j = 0
    while i < len(x) or j < len(shape):
        here, length, wanted, lengths = list[Axis](), 1, 1, list[int]()
        while not (here and lengths and length == wanted):
            if i < len(x) and (length <= wanted or j == len(shape)) and (not here or length != wanted):
                here.append(x[i])
                length *= len(x[i])
                i += 1
            elif j < len(shape):
                lengths.append(shape[j])
                wanted *= shape[j]
                j += 1
            else:
                break
        found += _block(flow, here, lengths)
    if len(asked) == len(found):
        for size, axis in zip(asked, found, strict=True):
            call.number(size, axis)
    return found


def _block(flow: Flow, axes: Axes, lengths: list[int]) -> Axes:
    """Axes merged, and split again into these lengths."""
    if [len(axis) for axis in axes] == lengths:
        return axes
    whole = np.zeros(1, np.int64)
    for n, axis in enumerate(axes):
        whole = axis if n == 0 else flow.atoms.compound(whole, axis)
    if not axes:
        return flow.fixed(lengths, "an axis of length 1")
    found: Axes = []
    for n, length in enumerate(lengths):
        rest = math.prod(lengths[n + 1 :])
        if n == len(lengths) - 1:
            found.append(whole)
        else:
            outer, whole = flow.atoms.split(whole, length, rest)
            found.append(outer)
    return found


def _permuted(flow: Flow, call: Reading) -> Axes:
    x = call.all_read[0]
    if call.op in ("permute",):
        return [x[i] for i in call.given["dims"]]
    if call.op in ("t", "numpy_T", "mT", "matrix_H", "adjoint"):
        return x[:-2] + x[-2:][::-1]
    a, b = (int(call.given[n]) for n in (("dim0", "dim1") if "dim0" in call.given else ("axis0", "axis1")))
    x = list(x)
    x[a], x[b] = x[b], x[a]
    return x


def _expanded(flow: Flow, call: Reading) -> Axes:
    x, shape = call.axes("self"), call.shape
    sizes = call.given.get("size") or [-1] * len(shape)
    found: Axes = []
    for i, n in enumerate(shape):
        k = i - (len(shape) - len(x))
        axis = x[k] if k >= 0 and len(x[k]) == n else flow.atoms.new(n)
        if k < 0 or len(x[k]) != n:
            call.number(sizes[i], axis)
        found.append(axis)
    return found


def _repeated(flow: Flow, call: Reading) -> Axes | None:
    x = call.all_read[0]
    if call.op == "repeat_interleave":
        times, at = call.given.get("repeats"), call.given.get("dim")
        if not isinstance(times, int) or at is None:
            return None
        x = list(x)
        x[at] = flow.atoms.compound(x[at], flow.atoms.new(times))
        return x
    times = call.given.get("repeats") or call.given["dims"]
    x = [flow.atoms.fixed(1, "an axis of length 1") for _ in range(len(times) - len(x))] + list(x)
    times = [1] * (len(x) - len(times)) + list(times)
    return [flow.atoms.compound(flow.atoms.new(n), axis) for n, axis in zip(times, x, strict=True)]


# parts of an axis


def _pieces(flow: Flow, call: Reading) -> list[Axes] | None:
    """An axis cut into pieces; equal ones lose the same positions, so that the cuts come where they were meant."""
    x = call.axes("self") if "self" in call.given else call.all_read[0]
    at = call.given.get("dim") or 0
    value = call.node.meta["val"]
    if call.op == "unbind":
        flow.atoms.keep(x[at], f"{call.words} takes it apart")
        return [_taken(flow, x, at % len(x), k) for k in range(len(value))]
    lengths = [one.shape[at] for one in value]
    bounds = np.cumsum([0, *lengths])
    pieces = [x[at][a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    if len(set(lengths)) == 1:
        for piece in pieces[1:]:
            flow.atoms.join(pieces[0], piece)
    for length, piece in zip(call.given.get("split_sizes") or [call.given.get("split_size")], pieces, strict=False):
        call.number(length, piece)
    found = []
    for piece in pieces:
        axes = list(x)
        axes[at] = piece
        found.append(axes)
    return found


def _slice(flow: Flow, call: Reading) -> Axes:
    x, at = call.axes("self"), int(call.given["dim"])
    axis = x[at]
    start, step = call.given.get("start"), call.given.get("step") or 1
    if call.op == "narrow":
        end = int(call.given["start"]) + int(call.given["length"])
    else:
        end = call.given.get("end")
    cut = slice(start, None if end is None else min(int(end), len(axis)), step)
    piece = axis[cut]
    if len(piece) < len(axis) and not flow.atoms.fixed_whole(axis):
        first, last, _ = cut.indices(len(axis))
        n = len(piece)
        if step == 1 and n and len(axis) % n == 0 and first % n == 0 and last % n == 0:
            for k in range(n, len(axis), n):  # equal pieces lose the same positions
                flow.atoms.join(axis[:n], axis[k : k + n])
        elif step > 1 and len(axis) % step == 0:
            _, each = flow.atoms.split(axis, len(axis) // step, step)
            flow.atoms.keep(each, f"{call.words} takes some of them")
        else:
            flow.atoms.keep(axis, f"{call.words} takes a part of it")
        piece = axis[cut]
    x[at] = piece
    return x


def _select(flow: Flow, call: Reading) -> Axes:
    x, at = call.axes("self"), int(call.given["dim"])
    flow.atoms.keep(x[at], f"{call.words} takes one of them")
    return _taken(flow, x, at % len(x), int(call.given["index"]))


def _taken(flow: Flow, x: Axes, at: int, index: int) -> Axes:
    """What is left of the axes at one position of one of them."""
    rest = [axis for i, axis in enumerate(x) if i != at]
    here = x[at][index : index + 1] if index >= 0 else x[at][len(x[at]) + index :][:1]
    return [axis if flow.atoms.fixed_whole(axis) else flow.atoms.narrowed(axis, here) for axis in rest]


def _cat(flow: Flow, call: Reading) -> Axes:
    read = [flow.axes[node] for node in call.given["tensors"]]
    read = [axes for axes in read if len(axes) == len(call.shape)]  # torch passes over empty ones
    at = int(call.given.get("dim") or 0) % len(call.shape)
    found = list(read[0])
    for i in range(len(found)):
        if i == at:
            found[i] = np.concatenate([axes[i] for axes in read])
        else:
            for axes in read[1:]:
                flow.atoms.join(found[i], axes[i])
    return found


def _stack(flow: Flow, call: Reading) -> Axes:
    read = [flow.axes[node] for node in call.given["tensors"]]
    found = flow.together(read, len(read[0]))
    at = int(call.given.get("dim") or 0) % len(call.shape)
    found.insert(at, flow.atoms.fixed(len(read), "tensors that are stacked"))
    return found


# rows by number


def _indexed(flow: Flow, call: Reading) -> Axes | None:
    x, indices = call.axes("self"), call.given["indices"]
    places = [i for i, index in enumerate(indices) if index is not None]
    if not places or places != list(range(places[0], places[-1] + 1)):
        return None
    for i in places:
        flow.atoms.keep(x[i], f"{call.words} looks positions up")
    read = [flow.axes[indices[i]] for i in places]
    looked = flow.together(read, max(map(len, read)))
    return [*x[: places[0]], *looked, *x[places[-1] + 1 :]]


def _gathered(flow: Flow, call: Reading) -> Axes:
    x, index = call.axes("self"), call.axes("index")
    at = int(call.given["dim"]) % len(x)
    flow.atoms.keep(x[at], f"{call.words} looks positions up")
    if call.op == "index_select":
        return [*x[:at], index[0], *x[at + 1 :]]
    for i, (one, other) in enumerate(zip(x, index, strict=True)):
        if i != at:
            if len(one) == len(other):
                flow.atoms.join(one, other)
            else:
                flow.atoms.keep(one, f"{call.words} takes a part of it")
    return index


def _added_to(flow: Flow, call: Reading) -> Axes | None:
    x, at = call.axes("self"), int(call.given["dim"])
    at %= len(x)
    flow.atoms.keep(x[at], f"{call.words} looks positions up")
    rest = [call.axes(name) for name in ("source", "src") if call.has(name)]
    rest += [call.axes("index")] if len(call.axes("index")) == len(x) else []
    for other in rest:
        for i in range(len(x)):
            if i != at:
                if len(x[i]) != len(other[i]):
                    return None
                flow.atoms.join(x[i], other[i])
    return x


def _recurrent(flow: Flow, call: Reading) -> list[Axes]:
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


def _cell(flow: Flow, call: Reading) -> Any:
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


def _rules() -> dict[str, Rule]:
    by_rule: dict[Rule, str] = {
        _same: "dropout feature_dropout alpha_dropout contiguous clone detach alias to _to_copy mark identity type_as"
        " _to_copy lift_fresh_copy detach_copy",
        _pointwise: "where masked_fill copy maximum minimum lerp addcmul addcdiv bitwise_and bitwise_or __and__ __or__ __xor__"
        " bitwise_not logical_not logical_and logical_or fill ge gt le lt eq ne clamp hardtanh rrelu",
        _made: "zeros ones full empty arange zeros_like ones_like full_like empty_like new_zeros new_ones new_full"
        " new_empty scalar_tensor rand randn rand_like randn_like tril_indices linspace eye",
        _prelu: "prelu _prelu_kernel",
        _glu: "glu",
        _linear: "linear",
        _bilinear: "bilinear",
        _convolution: " ".join(CONVOLUTIONS),
        _matmul: "matmul mm bmm mv dot",
        _addmm: "addmm baddbmm",
        _grouped: "grouped_mm grouped_mm_fallback _grouped_mm",
        _einsum: "einsum",
        _attention: "scaled_dot_product_attention",
        _embedding: "embedding",
        _batch_norm: "batch_norm instance_norm",
        _layer_norm: "layer_norm rms_norm",
        _group_norm: "group_norm",
        _softmax: "softmax log_softmax _softmax _log_softmax softmin",
        _reduced: "mean sum var std norm linalg_vector_norm amax amin prod logsumexp all any argmax argmin var_mean",
        _along: "cumsum cumprod flip roll triu tril diff",
        _pad: "pad constant_pad_nd",
        _pixel_shuffle: "pixel_shuffle pixel_unshuffle",
        _channel_shuffle: "channel_shuffle",
        _laid_out: "view reshape flatten unflatten squeeze unsqueeze _unsafe_view view_as reshape_as",
        _permuted: "permute transpose t swapaxes swapdims numpy_T mT",
        _expanded: "expand expand_as broadcast_to",
        _repeated: "repeat tile repeat_interleave",
        _pieces: "split split_with_sizes chunk tensor_split unbind unsafe_split unsafe_chunk",
        _slice: "slice narrow",
        _select: "select",
        _cat: "cat concat concatenate",
        _stack: "stack",
        _indexed: "index",
        _gathered: "gather index_select take_along_dim",
        _added_to: "index_add scatter scatter_add scatter_reduce index_copy index_reduce",
        _recurrent: " ".join(RECURRENT),
        _cell: "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    }
    found = {name: rule for rule, names in by_rule.items() for name in names.split()}
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest"):
        found |= {f"{kind}{n}d": _space(n) for n in (1, 2, 3)}
    found |= {f"max_pool{n}d_with_indices": _space(n) for n in (1, 2, 3)}
    found |= {f"{pad}_pad{n}d": _space(n) for pad in ("reflection", "replication") for n in (1, 2, 3)}
    found |= {"upsample_linear1d": _space(1), "upsample_bilinear2d": _space(2), "upsample_bicubic2d": _space(2)}
    found |= {"upsample_trilinear3d": _space(3), "grid_sampler": _space(2)}
    return found


RULES = _rules()
