"""Codebooks: a tensor as places in a short list of numbers, which is fitted to it (weight sharing) or fixed.

The list is as long as the codes allow; which numbers stand in it is all that sets k-means, logarithms, signs, NF4 and
small floats apart.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from lilliput.encodings.blocks import Blocked, spread, whole
from lilliput.encodings.encoding import Encoding, Part
from lilliput.encodings.floats import Exponent8
from lilliput.errors import EncodingError, nearest

_ROUNDS = 40  # of Lloyd's algorithm at most
_STARTS, _CUTS, _TURNS = 4, (0.8, 0.6, 0.4, 0.2), 4  # of the search for a scale


@torch.library.custom_op("lilliput::decode_levels", mutates_args=())
def decode_levels(codes: Tensor, levels: Tensor, axis: int, group: int) -> Tensor:
    """``levels[codes]``; levels are [n] | [channels, n] | [channels, groups, n]."""
    shape, n = tuple(codes.shape), levels.shape[-1]
    place = codes.int()
    if levels.dim() > 1:
        starts = torch.arange(0, levels.numel(), n, dtype=torch.int32, device=codes.device)
        place = place + spread(starts.reshape(levels.shape[:-1]), shape, axis, group)
    return levels.reshape(-1).index_select(0, place.reshape(-1)).reshape(shape)


@decode_levels.register_fake
def _(codes: Tensor, levels: Tensor, axis: int, group: int) -> Tensor:
    return codes.new_empty(codes.shape, dtype=levels.dtype)


@torch.library.custom_op("lilliput::decode_grid", mutates_args=())
def decode_grid(codes: Tensor, scale: Tensor, table: Sequence[float], axis: int, group: int) -> Tensor:
    """``table[codes] · scale``; scales are as of `decode_int`."""
    levels = torch.tensor(table, dtype=scale.dtype, device=codes.device)
    values = levels.index_select(0, codes.reshape(-1).int()).reshape(codes.shape)
    return (values * spread(scale, tuple(codes.shape), axis, group)).contiguous()


@decode_grid.register_fake
def _(codes: Tensor, scale: Tensor, table: Sequence[float], axis: int, group: int) -> Tensor:
    return codes.new_empty(codes.shape, dtype=scale.dtype)


@dataclass(frozen=True, repr=False)
class Levels(Blocked):
    """Each element is one of `n` numbers that are fitted to the tensor: weights share them.

    Fitted by Lloyd's algorithm for the least squared error, from levels spread evenly and from quantiles, whichever
    ends better (Lloyd, "Least squares quantization in PCM", 1982; for weights Han et al., "Deep Compression", 2015,
    arXiv 1510.00149). One list for the tensor unless `per` or `group` ask for more.

    >>> Levels(3).represent(torch.tensor([[-2.0, -2.2, 0.0, 0.1, 5.0, 5.0]])).decode()
    tensor([[-2.1000, -2.1000,  0.0000,  0.0000,  5.0000,  5.0000]])
    """

    n: int = 16  # 2 … 256
    group: int | None = None  # inputs that have a list of their own; None: a whole channel or tensor
    per: Literal["channel", "tensor"] | None = None  # None: one list for the tensor, or one for each group
    axis: int = 0  # the channel axis
    zero: bool = True  # whether 0 is one of the numbers, so that pruned weights stay pruned
    held: Encoding | None = None  # how the numbers are held; None: float32

    def __post_init__(self) -> None:
        for wrong, what, remedy in self._mistakes():
            if wrong:
                raise EncodingError(what, next=remedy)

    def _mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield not whole(self.n, 2, 256), f"{self.n!r} levels", "use 2 to 256"
        yield from self.block_mistakes()
        yield not isinstance(self.zero, bool), f"zero={self.zero!r}", "use True or False"
        held = isinstance(self.held, Encoding | None)
        yield not held, f"levels held as {self.held!r}", "use Float16(), BFloat16() or None"

    @property
    def holds_zero(self) -> bool:
        return self.zero

    @property
    def one_block(self) -> bool:
        return self.per == "tensor" or (self.per is None and self.group is None)

    @property
    def places(self) -> int:
        return self.n

    def part_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*self.parameter_shape(shape), self.n)

    @property
    def code_bits(self) -> int:
        return _bits_for(self.n)

    def nested(self) -> dict[str, Encoding]:
        return {} if self.held is None else {"levels": self.held}

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        blocks = self.rows(x)
        levels = lloyd(blocks, self.n, self.zero) if blocks.numel() else blocks.new_zeros(len(blocks), self.n)
        if self.held is not None:
            levels = self.held.represent(levels).decode().sort(1).values
        return {"levels": levels.reshape(*self.parameter_shape(tuple(x.shape)), self.n)}

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        rows = self.rows(x)
        levels = parameters["levels"].reshape(-1, self.n).float()
        parts: dict[str, Part] = {
            "codes": self.unblocked(nearest_of(rows, levels), tuple(x.shape)),
            "levels": parameters["levels"] if self.held is None else self.held.represent(parameters["levels"]),
        }
        return parts

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.ops.lilliput.decode_levels(parts["codes"], parts["levels"], self.axis, self.group or 0)  # type: ignore[no-any-return]

    def size_bits(self, shape: tuple[int, ...]) -> int:
        lists = (*self.parameter_shape(shape), self.n)
        held = 32 * math.prod(lists) if self.held is None else self.held.size_bits(lists)
        return self.code_bits * math.prod(shape) + held

    def label(self) -> str:
        where = f"groups of {self.group}" if self.group else "per tensor" if self.one_block else "per channel"
        return f"{self.n} levels {where}"


@dataclass(frozen=True, repr=False, kw_only=True)
class Grid(Blocked):
    """Each element is one of a few fixed numbers, times the scale of its block.

    The scale is found for the least squared error: from several starts, codes and scale by turns.
    """

    group: int | None = None  # inputs that share a scale; None: a whole channel
    per: Literal["channel", "tensor"] | None = None  # None: "channel"
    axis: int = 0  # the channel axis
    scale: Encoding | None = None  # how the scales are held; None: float32

    def __post_init__(self) -> None:
        for wrong, what, remedy in (*self.mistakes(), *self.block_mistakes()):
            if wrong:
                raise EncodingError(what, next=remedy)
        if not isinstance(self.scale, Encoding | None):
            raise EncodingError(f"scales as {self.scale!r}", next="use Float16(), BFloat16(), Exponent8() or None")

    @abstractmethod
    def table(self) -> tuple[float, ...]:
        """The numbers, in the order of their codes; NaN where a code means none."""

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        """What the fields of this grid must not be."""
        return iter(())

    @property
    def places(self) -> int:
        return len(self.table())

    @property
    def code_bits(self) -> int:
        return _bits_for(self.places)

    def nested(self) -> dict[str, Encoding]:
        return {} if self.scale is None else {"scale": self.scale}

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        rows = self.rows(x)
        levels = _sorted(self.table())[0].to(rows.device)
        scale = scale_of(rows, levels, self._held) if rows.numel() else rows.new_ones(len(rows))
        held = self._held(scale)
        if held.numel() and not bool((held > 0).any()):
            raise EncodingError(f"steps of {scale.max().item():.3g} vanish in {self.scale}", next="use scale=None")
        scale = torch.where(held > 0, held, 1.0)
        return {"scale": scale.reshape(self.parameter_shape(tuple(x.shape)))}

    def _held(self, scale: Tensor) -> Tensor:
        return scale if self.scale is None else self.scale.represent(scale).decode()

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        rows = self.rows(x)
        levels, codes = (held.to(rows.device) for held in _sorted(self.table()))
        at = nearest_of(rows / parameters["scale"].reshape(-1, 1).float(), levels[None])
        parts: dict[str, Part] = {"codes": self.unblocked(codes[at.long()], tuple(x.shape)), **parameters}
        if self.scale is not None:
            parts["scale"] = self.scale.represent(parameters["scale"])
        return parts

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        codes, scale = parts["codes"], parts["scale"]
        return torch.ops.lilliput.decode_grid(codes, scale, self.table(), self.axis, self.group or 0)  # type: ignore[no-any-return]

    def size_bits(self, shape: tuple[int, ...]) -> int:
        scales = self.parameter_shape(shape)
        held = self.scale.size_bits(scales) if self.scale else 32 * math.prod(scales)
        return self.code_bits * math.prod(shape) + held

    def label(self) -> str:
        where = f"groups of {self.group}" if self.group else f"per {self.per or 'channel'}"
        return f"{self.name()} {where}"

    def name(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True, repr=False)
class Log(Grid):
    """Zero and powers of two of either sign: products become shifts.

    Source: Miyashita et al., "Convolutional Neural Networks using Logarithmic Data Representation", 2016, arXiv
    1603.01025. With `terms` = 2, sums of two powers, which lie closer to one another where they are large (APoT: Li et
    al., "Additive Powers-of-Two Quantization", 2019, arXiv 1909.13144).

    >>> Log(3).table()
    (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
    """

    bits: int = 4  # 2 … 8, the sign included
    terms: int = 1  # powers of two that are added up: 1 or 2

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield not whole(self.bits, 2, 8), f"Log of {self.bits!r} bits", "use 2 to 8 bits"
        yield not whole(self.terms, 1, 2), f"{self.terms!r} terms", "use 1 or 2"
        yield self.terms == 2 and self.bits < 3, f"two powers in {self.bits} bits", "use at least 3 bits"

    def table(self) -> tuple[float, ...]:
        free = self.bits - 1
        share = [free] if self.terms == 1 else [free - free // 2, free // 2]
        powers = [[0.0, *(2.0 ** -(i + self.terms * j) for j in range(2**held - 1))] for i, held in enumerate(share)]
        sizes = sorted({sum(added) for added in product(*powers)})
        largest = sizes[-1]
        return (*(-size / largest for size in sizes[:0:-1]), *(size / largest for size in sizes))

    def name(self) -> str:
        return f"log{self.bits}" if self.terms == 1 else f"apot{self.bits}"


_SIGNS = {2: (-1.0, 1.0), 3: (-1.0, 0.0, 1.0), 4: (-1.0, -1 / 3, 1 / 3, 1.0)}


@dataclass(frozen=True, repr=False)
class Signs(Grid):
    """Two, three or four numbers and a scale: binary, ternary, two bits around zero.

    With two, the scale of least error is the mean magnitude (Rastegari et al., "XNOR-Net", 2016, arXiv 1603.05279);
    three are Li and Liu's ternary weights, 2016, arXiv 1605.04711. Two and four cannot hold a zero.

    >>> Signs(2).represent(torch.tensor([[-1.0, 3.0]])).decode()
    tensor([[-2.,  2.]])
    """

    n: int = 2

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield self.n not in _SIGNS or type(self.n) is not int, f"Signs of {self.n!r} values", "use 2, 3 or 4"

    @property
    def holds_zero(self) -> bool:
        return self.n == 3

    def table(self) -> tuple[float, ...]:
        return _SIGNS[self.n]

    def name(self) -> str:
        return {2: "binary", 3: "ternary", 4: "four-valued"}[self.n]


_NF4 = (  # Dettmers et al., 2023, appendix E
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True, repr=False)
class NF4(Grid):
    """Sixteen quantiles of the normal distribution, zero among them: 4 bits for weights that are normally distributed.

    Source: Dettmers et al., "QLoRA", 2023, arXiv 2305.14314.

    >>> len(NF4().table()), NF4(group=64).code_bits
    (16, 4)
    """

    def table(self) -> tuple[float, ...]:
        return _NF4


_FLOATS = {"e4m3": (4, 3, False), "e5m2": (5, 2, True), "e2m1": (2, 1, False)}  # infinities among them


@dataclass(frozen=True, repr=False)
class MiniFloat(Grid):
    """Floats of 8 or 4 bits, times a scale; the codes are their bits.

    ``e4m3`` and ``e5m2``: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, arXiv 2209.05433. ``e2m1`` in
    groups of 32 with scales that are powers of two is MXFP4 (Open Compute Project, "Microscaling Formats", 2023): see
    `mxfp4`.

    >>> MiniFloat("e2m1").table()[:8]
    (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """

    format: Literal["e4m3", "e5m2", "e2m1"] = "e4m3"

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield self.format not in _FLOATS, f"a float called {self.format!r}", nearest(str(self.format), _FLOATS)

    def table(self) -> tuple[float, ...]:
        exponent_bits, fraction_bits, infinite = _FLOATS[self.format]
        bias = 2 ** (exponent_bits - 1) - 1
        sizes = []
        for code in range(2 ** (exponent_bits + fraction_bits)):
            exponent, fraction = divmod(code, 2**fraction_bits)
            share = fraction / 2**fraction_bits
            sizes.append(2.0 ** (exponent - bias) * (1 + share) if exponent else 2.0 ** (1 - bias) * share)
        if infinite:
            sizes[-(2**fraction_bits) :] = [math.nan] * 2**fraction_bits
        elif self.format == "e4m3":
            sizes[-1] = math.nan
        return (*sizes, *(-size for size in sizes))

    def name(self) -> str:
        return f"float {self.format}"


def mxfp4(axis: int = 0) -> MiniFloat:
    """MXFP4: e2m1 in groups of 32 inputs, whose scales are powers of two of 8 bits."""
    return MiniFloat("e2m1", group=32, axis=axis, scale=Exponent8())


# tensors to tensors


def lloyd(rows: Tensor, n: int, zero: bool) -> Tensor:
    """Levels of least squared error for each row, ascending, [rows, n]; with `zero`, 0 is one of them.

    A row of no more than `n` values, such as one that was decoded, keeps them all.
    """
    ordered = rows.sort(1).values
    sums = torch.nn.functional.pad(ordered.double().cumsum(1), (1, 0))
    ends = ordered[:, :1], ordered[:, -1:]
    spread_evenly = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, n, device=rows.device)
    places = torch.linspace(0, rows.shape[1] - 1, n, device=rows.device).round().long()
    best, least = spread_evenly, rows.new_full((len(rows),), torch.inf, dtype=torch.float64)
    for start in (_distinct(ordered, n), spread_evenly, ordered[:, places]):
        levels = _moved(ordered, sums, start.clone(), zero)
        error = (ordered - levels.gather(1, _places(ordered, levels))).double().square().sum(1)
        best = torch.where((error < least)[:, None], levels, best)
        least = torch.minimum(error, least)
    return best


def _distinct(ordered: Tensor, n: int) -> Tensor:
    """The first `n` - 1 values of each row and the largest; zeros where there are fewer."""
    rank = torch.nn.functional.pad((ordered.diff(dim=1) > 0).long().cumsum(1).clamp(max=n - 1), (1, 0))
    lowest = ordered.new_full((len(ordered), n), -torch.inf).scatter_reduce(1, rank, ordered, "amax")
    return torch.where(torch.isfinite(lowest), lowest, 0.0).sort(1).values


def _moved(ordered: Tensor, sums: Tensor, levels: Tensor, zero: bool) -> Tensor:
    """Levels moved to the means of what is nearest to them until nothing moves."""
    fixed = levels.abs().argmin(1, keepdim=True)
    for _ in range(_ROUNDS):
        if zero:
            levels = levels.scatter(1, fixed, 0.0).sort(1).values
            fixed = levels.abs().argmin(1, keepdim=True)
        between = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
        cuts = torch.searchsorted(ordered, between)
        cuts = torch.nn.functional.pad(cuts, (1, 1), value=0)
        cuts[:, -1] = ordered.shape[1]
        counts = cuts.diff(dim=1)
        means = sums.gather(1, cuts).diff(dim=1) / counts.clamp(min=1)
        moved = torch.where(counts > 0, means.to(levels.dtype), levels)
        if zero:
            moved = moved.scatter(1, fixed, 0.0)
        if torch.equal(moved, levels):
            break
        levels = moved
    return levels.sort(1).values


def scale_of(rows: Tensor, levels: Tensor, held: Callable[[Tensor], Tensor] = lambda scale: scale) -> Tensor:
    """Scales of least squared error for each row of a grid, [rows]: from several starts, codes and scale by turns.

    The largest element starts at each of the largest levels, and outside of all; `held` says what becomes of a scale
    when it is stored.
    """
    largest, top = rows.abs().amax(1, keepdim=True), levels.abs().max()
    starts = [*(largest / level for level in levels[levels > 0][-_STARTS:]), *(largest / top * cut for cut in _CUTS)]
    best = torch.where(largest > 0, starts[-1], 1.0)
    least = torch.full_like(best, torch.inf, dtype=torch.float64)
    for start in starts:
        scale = torch.where(largest > 0, start, 1.0)
        for _ in range(_TURNS):
            tried = held(scale)
            numbers = levels[_places(rows / tried, levels[None])]
            error = (rows - numbers * tried).double().square().sum(1, keepdim=True)
            better = (error < least) & (tried > 0)
            best, least = torch.where(better, tried, best), torch.where(better, error, least)
            squares = numbers.square().sum(1, keepdim=True)
            fitted = (rows * numbers).sum(1, keepdim=True) / squares.clamp(min=1e-30)
            scale = torch.where((squares > 0) & (fitted > 0), fitted, scale)
    return best[:, 0]


def nearest_of(rows: Tensor, levels: Tensor) -> Tensor:
    """Which of the ascending `levels`, [rows or 1, n], is nearest to each element of `rows`, as uint8.

    Of equal ones the first, so that what was decoded is encoded by the same codes again.
    """
    places, first = _places(rows, levels), torch.searchsorted(levels.contiguous(), levels.contiguous())
    return (first[0][places] if len(first) == 1 else first.gather(1, places)).to(torch.uint8)


def _places(rows: Tensor, levels: Tensor) -> Tensor:
    between = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    return torch.searchsorted(between[0] if len(between) == 1 else between, rows)


@cache
def _sorted(table: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The numbers of a table in ascending order, and the code of each; of equal ones (0 and -0) the first."""
    codes = {value: code for code, value in reversed(list(enumerate(table))) if not math.isnan(value)}
    ordered = sorted(codes)
    return torch.tensor(ordered), torch.tensor([codes[value] for value in ordered], dtype=torch.uint8)


def _bits_for(n: int) -> int:
    return max(1, math.ceil(math.log2(n)))
