"""What can be seen of a place's weight and values that explains the noise they add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lilliput.blame.places import Place, encoded_weights
from lilliput.encodings import Encoding, Int, LowRank, Sparse
from lilliput.encodings.blocks import Blocked
from lilliput.feeding import ask
from lilliput.measure import Noise
from lilliput.model.carrier.carrier import tensors
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.values import Interception, Value, ValueEncoder, value_encodings
from lilliput.model.views.view import CONVOLUTIONS


@dataclass(frozen=True)
class WeightFacts:
    """A weight before and after encoding."""

    label: str
    bits: int  # of a code; 16 of half precision, 32 of float
    shared: bool  # one scale for the whole tensor
    db: float | None  # signal to noise of the weight itself
    spread: float  # the largest range of a channel over the median one
    widest: int  # the channel with the largest range
    peak: float  # the largest weight over the root mean square of those it shares a scale with
    emptied: int  # channels that became nothing but zeros, and were not before
    channels: int
    zeros: float  # share of weights that became zero
    products: int  # summed for one output
    rank: int | None = None  # of a product of two factors
    cut: float = 0.0  # share of the weight's sum of squares that its rank leaves out, at least


@dataclass(frozen=True)
class ValueFacts:
    """A value that flows, over the samples looked at, and the grid that it is rounded to."""

    name: str
    label: str
    bits: int
    dynamic: bool
    db: float | None  # signal to noise of the value itself
    low: float  # of what flowed
    high: float
    grid_low: float
    grid_high: float
    outside: float  # share of values beyond the grid
    clipping: float  # share of the noise that those make
    spread: float  # the largest range of a channel over the median one
    widest: int
    peak: float  # the largest value over the root mean square
    codes: int  # different codes that occurred

    @property
    def read(self) -> bool:
        """Whether a layer reads it so; else it gives it."""
        return Value.parse(self.name).operand is not None


def weight_facts(exact: nn.Module, small: nn.Module, place: Place) -> WeightFacts | None:
    """Of the weight of `place`; None where it is not encoded."""
    held = encoded_weights(small).get(place.weight or "")
    if held is None:
        return None
    before = next((x for paths, x in tensors(exact).items() if place.weight in paths), None)
    if before is None or not isinstance(before, Tensor) or before.shape != held.shape:
        return None
    with torch.no_grad():
        was, now = before.detach().float(), held().detach().float()
    noise = Noise()
    noise.add(was, now)
    encoding = held.encoding.values if isinstance(held.encoding, Sparse) else held.encoding
    rows = _rows(was, encoding)
    ranges = rows.abs().amax(1) if rows.numel() else torch.ones(1)
    blocks = encoding.blocks(was) if isinstance(encoding, Blocked) else rows
    peaks = blocks.abs().amax(1) / blocks.square().mean(1).sqrt().clamp(min=1e-30)
    emptied = (_rows(now, encoding) == 0).all(1) & (rows != 0).any(1)
    return WeightFacts(
        label=held.encoding.label(),
        bits=_bits(encoding),
        shared=isinstance(encoding, Blocked) and encoding.one_block,
        db=noise.db,
        spread=_spread(ranges),
        widest=int(ranges.argmax()),
        peak=float(peaks.max()),
        emptied=int(emptied.sum()),
        channels=len(rows),
        zeros=float((now == 0).float().mean()),
        products=rows.shape[1],
        rank=encoding.rank if isinstance(encoding, LowRank) else None,
        cut=_cut(was, encoding.rank) if isinstance(encoding, LowRank) else 0.0,
    )


def value_facts(
    exact: nn.Module, small: nn.Module, chosen: Sequence[Place], pieces: Sequence[Inputs], where: str
) -> dict[str, ValueFacts]:
    """Of the encoded values of the `chosen` places, by name, as they flow before anything is encoded."""
    encoders = value_encodings(small)
    gathering = {
        name: _Gathering(encoders[name], name)
        for place in chosen
        for name in place.values
        if isinstance(encoders[name].encoding, Int)
    }

    def visit(name: str, x: Tensor) -> Tensor:
        gathering[name].update(x.detach())
        return x

    for inputs in pieces if gathering else ():
        with torch.no_grad(), Interception(exact, visit, only=gathering):
            ask(exact, inputs, where)
    return {name: one.facts() for name, one in gathering.items() if one.count}


class _Gathering:
    """Facts about one value, batch by batch."""

    def __init__(self, encoder: ValueEncoder, name: str) -> None:
        self.encoder, self.name = encoder, name
        assert isinstance(encoder.encoding, Int)
        self.encoding: Int = encoder.encoding
        self.axis = 1 if Value.parse(name).op in CONVOLUTIONS else None
        self.noise, self.clipped, self.count, self.outside = Noise(), 0.0, 0, 0
        self.low, self.high = float("inf"), float("-inf")
        self.ends = (0.0, 0.0)
        self.ranges: Tensor | None = None  # [channels]
        self.codes: set[float] = set()

    def update(self, x: Tensor) -> None:
        rounded = self.encoder(x)
        low, high = _ends(self.encoding, self.encoder.parameters_of_value(), x)
        self.noise.add(x, rounded)
        beyond = (x < low) | (x > high)
        self.clipped += float((x - rounded)[beyond].double().square().sum())
        self.outside += int(beyond.sum())
        self.count += x.numel()
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        self.ends = (min(self.ends[0], low), max(self.ends[1], high))
        self.codes.update(rounded.unique().tolist())
        channels = x.movedim(self._channel_axis(x), 0).flatten(1).abs().amax(1)
        same = self.ranges is not None and self.ranges.shape == channels.shape
        self.ranges = torch.maximum(self.ranges, channels) if same else channels  # type: ignore[arg-type]

    def _channel_axis(self, x: Tensor) -> int:
        """Images have their channels second, tokens last; what a convolution touches is an image."""
        image = self.axis == 1 or x.dim() >= 4
        return 1 if image and x.dim() > 2 else -1

    def facts(self) -> ValueFacts:
        assert self.ranges is not None
        rms = (self.noise.signal / self.count) ** 0.5
        dynamic = self.encoding.dynamic
        return ValueFacts(
            name=self.name,
            label=self.encoding.label(),
            bits=self.encoding.bits,
            dynamic=dynamic,
            db=self.noise.db,
            low=self.low,
            high=self.high,
            grid_low=self.ends[0],
            grid_high=self.ends[1],
            outside=self.outside / self.count,
            clipping=self.clipped / self.noise.noise if self.noise.noise else 0.0,
            spread=_spread(self.ranges),
            widest=int(self.ranges.argmax()),
            peak=max(-self.low, self.high) / max(rms, 1e-30),
            codes=2**self.encoding.bits if dynamic else len(self.codes),
        )


def _ends(encoding: Int, parameters: Mapping[str, Tensor], x: Tensor) -> tuple[float, float]:
    """The ends of the grid."""
    if encoding.dynamic:
        return min(0.0, float(x.min())), max(0.0, float(x.max()))
    first, last = encoding.limits
    scale, offset = float(parameters["scale"]), float(parameters.get("offset", torch.zeros(())))
    return (first - offset) * scale, (last - offset) * scale


def _rows(x: Tensor, encoding: Encoding | None) -> Tensor:
    """A weight as [channels, the rest]."""
    axis = getattr(encoding, "axis", 0)
    return x.movedim(axis, 0).flatten(1) if x.dim() > 1 else x.reshape(1, -1)


def _spread(ranges: Tensor) -> float:
    """Of the channels that hold something, the largest range over the median one."""
    held = ranges[ranges > 0]
    return float(held.max() / held.median()) if held.numel() else 1.0


def _cut(x: Tensor, rank: int) -> float:
    """Of the sum of squares, what no product of this rank holds."""
    squares = torch.linalg.svdvals(x.flatten(1)).double().square()
    return float(squares[rank:].sum() / squares.sum().clamp(min=1e-30))


def _bits(encoding: Encoding | None) -> int:
    if isinstance(encoding, LowRank):
        return _bits(encoding.factors)
    return 32 if encoding is None else encoding.code_bits or 16
