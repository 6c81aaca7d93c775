"""Tensors that can be divided and multiplied by the same numbers, channel by channel, so that nothing changes.

What a layer or a normalisation returns may be divided by s > 0, one number a channel, if all that read it multiply it
by weights, which then take up s; between the two may lie what passes a factor on (a ReLU, a pooling, a product).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from lilliput.model.rescaling.channels import NORMS, Apart, Channels, made, multiplies, named, passed_on, sources, taken
from lilliput.model.views.view import Call, View

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PairTensor:
    """A tensor of a pair, and where in it the channels lie."""

    path: str
    call: Call  # that uses it
    axis: int = 0
    groups: int = 1  # of a convolution: the channels of the other axis are cut into so many, this one counts within one
    each: int = 1  # weights after one another that are of one channel

    def spread(self, s: Tensor, shape: tuple[int, ...]) -> Tensor:
        """One number a channel, [channels], laid out against the tensor.

        >>> import torch
        >>> call = Call("a", "linear", "a:linear#0", (), ())
        >>> PairTensor("a.weight", call, axis=1).spread(torch.tensor([1.0, 2.0]), (3, 2))
        tensor([[1., 2.]])
        """
        s = s.repeat_interleave(self.each)
        if self.groups > 1 and self.axis == 1:
            rows = s.reshape(self.groups, -1).repeat_interleave(shape[0] // self.groups, 0)
            return rows.reshape(*rows.shape, *[1] * (len(shape) - 2))
        return s.reshape([-1 if i == self.axis else 1 for i in range(len(shape))])

    def largest(self, weight: Tensor) -> Tensor:
        """The largest magnitude among each channel's weights, [channels]."""
        sizes = weight.detach().abs()
        if self.groups > 1 and self.axis == 1:
            cut = sizes.reshape(self.groups, -1, *sizes.shape[1:]).flatten(3)
            return (cut.amax(3) if cut.dim() > 3 else cut).amax(1).flatten()
        return sizes.movedim(self.axis, 0).reshape(sizes.shape[self.axis] // self.each, -1).amax(1)


@dataclass(frozen=True)
class Pair:
    """What is divided by s, one number a channel, and what is multiplied by it."""

    source: Call
    channels: int
    divided: tuple[PairTensor, ...]  # the weight first, then the bias
    multiplied: tuple[PairTensor, ...]  # in the order of their calls

    @property
    def paths(self) -> list[str]:
        """Of all that changes."""
        return [part.path for part in (*self.divided, *self.multiplied)]

    @property
    def normalises(self) -> bool:
        """Whether what is divided are the gains of a normalisation."""
        return not multiplies(self.source)


def find_pairs(view: View, shapes: Shapes) -> tuple[list[Pair], dict[str, str]]:
    """All pairs of a model, each layer multiplied in one of them; and why the other weights are in none, by path.

    `shapes` are those of the model's parameters.
    """
    pairs: list[Pair] = []
    apart: dict[str, str] = {}  # by the id of what would be divided
    multiplied: set[str] = set()
    for call in view.calls:
        try:
            pair = _pair(view, call, shapes)
        except Apart as error:
            apart[call.id] = str(error)
            continue
        paths = {part.path for part in pair.multiplied} if pair else set()
        if pair and not paths & multiplied:  # or a product of two layers would be scaled by both
            pairs.append(pair)
            multiplied |= paths
    layers = {path: calls[0] for path, calls in view.weights.items() if multiplies(calls[0]) and path not in multiplied}
    return pairs, {path: _why(view, call, apart) for path, call in layers.items()}


def _pair(view: View, source: Call, shapes: Shapes) -> Pair | None:
    """All that is divided and multiplied with what `source` returns; None where it has no weights to divide."""
    divided = _divided(source, shapes)
    if not divided:
        return None
    at = made(source)
    channels = source.shape[at.axes[0]]
    if not isinstance(channels, int) or channels < 2:
        raise Apart(f"{named(source)} returns one channel, or a varying number")
    order = {call.id: i for i, call in enumerate(view.calls)}
    multiplied = sorted(_reached(view, source, at), key=lambda part: order[part.call.id])
    if not multiplied:
        raise Apart(f"no layer reads what {named(source)} returns")
    for part in (*divided, *multiplied):
        if part.path not in shapes:
            raise Apart(f"{part.path} is no parameter")
        if any(part.path in paths for paths in view.ties) or len(view.readers[f"tensor {part.path}"]) > 1:
            raise Apart(f"{part.path} is used more than once")
    return Pair(source, channels, divided, tuple(multiplied))


def _divided(call: Call, shapes: Shapes) -> tuple[PairTensor, ...]:
    """The tensors that what `call` returns is proportional to, where it is a call that has such."""
    if multiplies(call) and call.weights:
        (weight,) = call.weights
        if "transpose" not in call.op:
            return (PairTensor(weight, call), *_bias(call, 2))
        outputs = call.shape[made(call).axes[0]]
        groups = outputs // call.weight_shape[1] if isinstance(outputs, int) else 1
        return (PairTensor(weight, call, axis=1, groups=groups), *_bias(call, 2))
    gains = [place for place in _gains(call) if len(shapes.get(_tensor(call, place), ())) == 1]
    if len(gains) != 1 or call.shape[made(call).axes[0]] != shapes[_tensor(call, gains[0])][0]:
        return ()
    biased = call.op in NORMS and call.op != "rms_norm"
    return (PairTensor(_tensor(call, gains[0]), call), *(_bias(call, gains[0] + 1) if biased else ()))


def _gains(call: Call) -> tuple[int, ...]:
    """Where a normalisation may read its gains, also one that is written out and ends in a product with them."""
    if call.op in NORMS:
        return (NORMS[call.op],)
    return (0, 1) if call.op == "mul" and len(call.reads) == 2 and call.shape else ()


def _bias(call: Call, place: int) -> tuple[PairTensor, ...]:
    if len(call.reads) <= place or call.reads[place] is None:
        return ()
    if not _tensor(call, place):
        raise Apart(f"the bias of {named(call)} is computed")
    return (PairTensor(_tensor(call, place), call),)


def _tensor(call: Call, place: int) -> str:
    """The path of the tensor that is read at a place; empty where it is none."""
    source = (call.reads[place] or "") if len(call.reads) > place else ""
    return source.removeprefix("tensor ") if source.startswith("tensor ") else ""


def _reached(view: View, source: Call, at: Channels) -> Iterator[PairTensor]:
    """The weights that multiply what `source` returns, wherever it flows."""
    found, frontier = {source.id}, [(source, at)]
    while frontier:
        call, at = frontier.pop()
        for reader in view.readers.get(call.id, []):
            if reader.op == "sym_size":
                continue
            if reader.op == "output":
                raise Apart(f"what {named(source)} returns is an output of the model")
            if reader.id in found or reader.reads.count(call.id) > 1:
                raise Apart(f"{named(reader)} reads it on two ways")
            found.add(reader.id)
            if multiplies(reader):
                yield _multiplied(reader, call, at)
            else:
                frontier.append((reader, passed_on(reader, call, at)))


def _multiplied(reader: Call, source: Call, at: Channels) -> PairTensor:
    if not reader.weights or reader.reads.index(source.id) != 0:
        raise Apart(f"{named(reader)} multiplies by weights that are computed")
    each = taken(reader, source.shape, at)
    axis = 0 if "transpose" in reader.op else 1
    return PairTensor(reader.weights[0], reader, axis, reader.window.groups if reader.window else 1, each)


def _why(view: View, call: Call, apart: Mapping[str, str]) -> str:
    """Why nothing before a layer can be divided for it: the nearest reason on the way back."""
    if any(len(view.weights[path]) > 1 for path in call.weights):
        return "its weight is used more than once"
    reasons, back = ["it reads an input"], [call.reads[0]]
    while back:
        source = view.by_id.get(back.pop() or "")
        if source is None:
            continue
        if source.id in apart:
            return apart[source.id]
        further = sources(source)
        reasons += [] if further else [f"it reads what comes out of {named(source)}"]
        back += further
    return reasons[-1]
