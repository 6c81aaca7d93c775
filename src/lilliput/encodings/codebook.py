"""Codebooks that are fitted: a tensor as places in a short list of numbers, which its weights share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lilliput.encodings.blocks import Blocked, as_if, bracketed, held_bits, spread, whole
from lilliput.encodings.encoding import Encoding, Part

_ROUNDS = 40  # of Lloyd's algorithm at most
_CLIPS = (0.7, 0.5, 0.35, 0.25)  # shares of the range, of which the best is one of its starts


@torch.library.custom_op("lilliput::decode_levels", mutates_args=())
def decode_levels(codes: Tensor, levels: Tensor, axis: int, group: int) -> Tensor:
    """``levels[codes]``; levels are [n] | [channels, n] | [channels, groups, n]."""
    place = _places(codes, levels, axis, group)
    return levels.reshape(-1).index_select(0, place.reshape(-1)).reshape(codes.shape)


def _places(codes: Tensor, levels: Tensor, axis: int, group: int) -> Tensor:
    """Where among all levels, one list after the other, each code points."""
    place = codes.int()
    if levels.dim() > 1:
        starts = torch.arange(0, levels.numel(), levels.shape[-1], dtype=torch.int32, device=codes.device)
        place = place + spread(starts.reshape(levels.shape[:-1]), tuple(codes.shape), axis, group)
    return place


@decode_levels.register_fake
def _(codes: Tensor, levels: Tensor, axis: int, group: int) -> Tensor:
    return codes.new_empty(codes.shape, dtype=levels.dtype)


def _remember_codes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, levels, axis, group = inputs
    ctx.save_for_backward(codes, levels)
    ctx.where = axis, group


def _to_levels(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
    codes, levels = ctx.saved_tensors
    place = _places(codes, levels, *ctx.where).reshape(-1)
    sums = torch.zeros_like(levels).reshape(-1).index_add(0, place, grad.reshape(-1))
    return None, sums.reshape(levels.shape), None, None


torch.library.register_autograd("lilliput::decode_levels", _to_levels, setup_context=_remember_codes)


@dataclass(frozen=True, repr=False)
class Codebook(Blocked):
    """Each element is one of `n` numbers that are fitted to the tensor: weights share them.

    Fitted by Lloyd's algorithm for the least squared error, from levels spread evenly over the whole range and over a
    part of it, and from quantiles, whichever ends best (Lloyd, "Least squares quantization in PCM", 1982; for weights
    Han et al., "Deep Compression", 2015, arXiv 1510.00149). One list for the tensor unless `per` or `group`
    ask for more.

    >>> Codebook(3).represent(torch.tensor([[-2.0, -2.2, 0.0, 0.1, 5.0, 5.0]])).decode()
    tensor([[-2.1000, -2.1000,  0.0000,  0.0000,  5.0000,  5.0000]])
    """

    learnable: ClassVar[tuple[str, ...]] = ("levels",)

    n: int = 16  # 2 … 256
    group: int | None = None  # inputs that have a list of their own; None: a whole channel or tensor
    per: Literal["channel", "tensor"] | None = None  # None: one list for the tensor, or one for each group
    axis: int = 0  # the channel axis
    zero: bool = True  # whether 0 is one of the numbers, so that pruned weights stay pruned
    held: Encoding | None = None  # how the numbers are held; None: float32

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield not whole(self.n, 2, 256), f"{self.n!r} levels", "use 2 to 256"
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
        return bits_for(self.n)

    def nested(self) -> dict[str, Encoding]:
        return {} if self.held is None else {"levels": self.held}

    def for_weight(self, axis: int | None = None) -> Codebook:
        return replace(self, axis=self.axis if axis is None else axis)

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        return self.least_squares(self.rows(x), tuple(x.shape))

    def least_squares(self, rows: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Levels of least squared error for blocks `rows` of a tensor of `shape`."""
        levels = lloyd(rows, self.n, self.zero) if rows.numel() else rows.new_zeros(len(rows), self.n)
        return self.from_levels(levels, shape)

    def from_levels(self, levels: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Levels, [blocks, n], as they will be held for a tensor of `shape`."""
        if self.held is not None:
            levels = self.held.represent(levels).decode().sort(1).values
        return {"levels": levels.reshape(*self.parameter_shape(shape), self.n)}

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

    def settled(self, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if "levels" not in learnt:
            return dict(learnt)
        levels = learnt["levels"]
        if self.zero:  # which is one of them, and stays
            levels = torch.where(levels.detach().abs() == levels.detach().abs().amin(-1, keepdim=True), 0.0, levels)
        levels = levels.sort(-1).values
        return {
            **learnt,
            "levels": levels if self.held is None else as_if(self.held.represent(levels).decode(), levels),
        }

    def brackets(self, rows: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return bracketed(rows, parameters["levels"].float())

    def size_bits(self, shape: tuple[int, ...]) -> int:
        return self.code_bits * math.prod(shape) + held_bits(self.held, (*self.parameter_shape(shape), self.n))

    def label(self) -> str:
        return f"{self.n} levels {self.where()}"


# tensors to tensors


def lloyd(rows: Tensor, n: int, zero: bool) -> Tensor:
    """Levels of least squared error for each row, ascending, [rows, n]; with `zero`, 0 is one of them.

    A row of no more than `n` values, such as one that was decoded, keeps them all.
    """
    ordered = rows.sort(1).values
    sums = _sums(ordered)
    ends = ordered[:, :1], ordered[:, -1:]
    spread_evenly = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, n, device=rows.device)
    places = torch.linspace(0, rows.shape[1] - 1, n, device=rows.device).round().long()
    best, least = spread_evenly, rows.new_full((len(rows),), torch.inf, dtype=torch.float64)
    clipped = interval_levels(rows, n, False, _CLIPS)
    for start in (_distinct(ordered, n), spread_evenly, ordered[:, places], clipped):
        levels = _moved(ordered, sums, start, zero)
        error = _error(ordered, levels)
        best = torch.where((error < least)[:, None], levels, best)
        least = torch.minimum(error, least)
    return best


def _distinct(ordered: Tensor, n: int) -> Tensor:
    """The first `n` - 1 values of each row and the largest; zeros where there are fewer."""
    rank = torch.nn.functional.pad((ordered.diff(dim=1) > 0).long().cumsum(1).clamp(max=n - 1), (1, 0))
    lowest = ordered.new_full((len(ordered), n), -torch.inf).scatter_reduce(1, rank, ordered, "amax")
    return torch.where(torch.isfinite(lowest), lowest, 0.0).sort(1).values


def _moved(ordered: Tensor, sums: Tensor, levels: Tensor, zero: bool) -> Tensor:
    """Levels moved to the means of what is nearest to them until nothing moves; they stay in order throughout."""
    levels, fixed = _with_zero(levels, zero)
    for _ in range(_ROUNDS):
        between = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
        moved = _with_zero(_means(ordered, sums, torch.searchsorted(ordered, between), levels), zero, fixed)[0]
        if torch.equal(moved, levels):
            break
        levels = moved
    return levels


def _with_zero(levels: Tensor, zero: bool, fixed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ascending levels with 0 for the one at `fixed`, by default the nearest, if `zero`; and where that is."""
    fixed = levels.abs().argmin(1, keepdim=True) if fixed is None else fixed
    return (levels.scatter(1, fixed, 0.0) if zero else levels), fixed


def _means(ordered: Tensor, sums: Tensor, between: Tensor, otherwise: Tensor) -> Tensor:
    """Means of the parts that rows are cut into at places `between`, [rows, n]; `otherwise` where a part is empty."""
    cuts = torch.nn.functional.pad(between, (1, 1), value=0)
    cuts[:, -1] = ordered.shape[1]
    counts = cuts.diff(dim=1)
    means = sums.gather(1, cuts).diff(dim=1) / counts.clamp(min=1)
    return torch.where(counts > 0, means.to(otherwise.dtype), otherwise)


def _sums(ordered: Tensor) -> Tensor:
    """Σ of the first 0, 1, … elements of each row, [rows, elements + 1], float64."""
    return torch.nn.functional.pad(ordered.double().cumsum(1), (1, 0))


def quantile_levels(rows: Tensor, n: int, zero: bool) -> Tensor:
    """The means of `n` equally large parts of each row, ascending, [rows, n]; with `zero`, 0 takes the place of one."""
    ordered = rows.sort(1).values
    borders = torch.linspace(0, rows.shape[1], n + 1, device=rows.device).round().long()
    lowest = ordered[:, borders[:-1].clamp(max=rows.shape[1] - 1)]
    return _with_zero(_means(ordered, _sums(ordered), borders[1:-1].expand(len(rows), -1), lowest), zero)[0]


def interval_levels(rows: Tensor, n: int, zero: bool, clips: Sequence[float]) -> Tensor:
    """The means of `n` intervals of equal width, ascending, [rows, n]; of the shares `clips` of each row's range, that
    with the least squared error. What lies outside belongs to the outermost intervals; with `zero`, 0 takes the place
    of one mean.
    """
    ordered = rows.sort(1).values
    sums, low, high = _sums(ordered), ordered[:, :1], ordered[:, -1:]
    best, least = ordered[:, :1].expand(-1, n), rows.new_full((len(rows),), torch.inf, dtype=torch.float64)
    for clip in clips:
        centre, half = (low + high) / 2, (high - low) / 2 * clip
        borders = centre + half * torch.linspace(-1, 1, n + 1, device=rows.device)
        middles = (borders[:, 1:] + borders[:, :-1]) / 2
        between = torch.searchsorted(ordered, borders[:, 1:-1].contiguous())
        levels = _with_zero(_means(ordered, sums, between, middles), zero)[0]
        error = _error(ordered, levels)
        best = torch.where((error < least)[:, None], levels, best)
        least = torch.minimum(error, least)
    return best


def _error(ordered: Tensor, levels: Tensor) -> Tensor:
    """Σ squared distance to the nearest level, [rows], float64."""
    return (ordered - levels.gather(1, places_of(ordered, levels))).double().square().sum(1)


def nearest_of(rows: Tensor, levels: Tensor) -> Tensor:
    """Which of the ascending `levels`, [rows or 1, n], is nearest to each element of `rows`, as uint8.

    Of equal ones the first, so that what was decoded is encoded by the same codes again.
    """
    places, first = places_of(rows, levels), torch.searchsorted(levels.contiguous(), levels.contiguous())
    return (first[0][places] if len(first) == 1 else first.gather(1, places)).to(torch.uint8)


def places_of(rows: Tensor, levels: Tensor) -> Tensor:
    """Which of the ascending `levels`, [rows or 1, n], is nearest to each element of `rows`."""
    between = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    return torch.searchsorted(between[0] if len(between) == 1 else between, rows)


def bits_for(n: int) -> int:
    """Bits of a code that chooses from `n`."""
    return max(1, math.ceil(math.log2(n)))
