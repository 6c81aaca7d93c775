"""Codebooks that are fixed: a tensor as places in a table that the format defines, times a scale.

Which numbers stand in the table is all that sets logarithms, signs, NF4 and small floats apart.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lilliput.encodings.blocks import (
    Blocked,
    at_run_time,
    bracketed,
    gathered,
    held_bits,
    held_scale,
    settled_scale,
    spread,
    whole,
)
from lilliput.encodings.codebook import bits_for, nearest_of
from lilliput.encodings.encoding import Encoding, Part
from lilliput.encodings.floats import Exponent8, Scale
from lilliput.encodings.flowing import ascending
from lilliput.encodings.scales import scale_of, scale_to_reach
from lilliput.errors import EncodingError, nearest


@torch.library.custom_op("lilliput::decode_grid", mutates_args=())
def decode_grid(codes: Tensor, scale: Tensor, table: Sequence[float], axis: int, group: int) -> Tensor:
    """``table[codes] · scale``; scales are as of `decode_int`."""
    levels = torch.tensor(table, dtype=scale.dtype, device=codes.device)
    values = levels.index_select(0, codes.reshape(-1).int()).reshape(codes.shape)
    return (values * spread(scale, tuple(codes.shape), axis, group)).contiguous()


@decode_grid.register_fake
def _(codes: Tensor, scale: Tensor, table: Sequence[float], axis: int, group: int) -> Tensor:
    return codes.new_empty(codes.shape, dtype=scale.dtype)


def _remember_codes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, scale, ctx.table, *ctx.where = inputs
    ctx.save_for_backward(codes, scale)


def _to_scale(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None, None]:
    codes, scale = ctx.saved_tensors
    numbers = decode_grid(codes, torch.ones_like(scale), ctx.table, *ctx.where)
    return None, gathered(grad * numbers, scale, *ctx.where), None, None, None


torch.library.register_autograd("lilliput::decode_grid", _to_scale, setup_context=_remember_codes)


@dataclass(frozen=True, repr=False, kw_only=True)
class Grid(Blocked):
    """Each element is one of a few fixed numbers, times the scale of its block.

    The scale is found for the least squared error: from several starts, codes and scale by turns.
    """

    learnable: ClassVar[tuple[str, ...]] = ("scale",)

    group: int | None = None  # inputs that share a scale; None: a whole channel
    per: Literal["channel", "tensor"] | None = None  # None: "channel"
    axis: int = 0  # the channel axis
    scale: Encoding | None = None  # how the scales are held; None: float32
    dynamic: bool = False  # values only: the scale, of each group or of all, is found anew at each run

    @abstractmethod
    def table(self) -> tuple[float, ...]:
        """The numbers, in the order of their codes; NaN where a code means none."""

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        held = isinstance(self.scale, Scale | None)
        yield not held, f"scales as {self.scale!r}", "use Float16(), BFloat16(), Exponent8() or None"
        yield not isinstance(self.dynamic, bool), f"dynamic={self.dynamic!r}", "use True or False"

    @property
    def places(self) -> int:
        return len(self.table())

    @property
    def code_bits(self) -> int:
        return bits_for(self.places)

    def nested(self) -> dict[str, Encoding]:
        return {} if self.scale is None else {"scale": self.scale}

    @property
    def levels(self) -> Tensor:
        """The numbers in ascending order, float32."""
        return torch.tensor(ascending(self.table()))

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        return self.least_squares(self.rows(x), tuple(x.shape))

    def least_squares(self, rows: Tensor, shape: tuple[int, ...], counts: Tensor | None = None) -> dict[str, Tensor]:
        """The scale of least squared error for blocks `rows` of a tensor of `shape`, each element `counts` times."""
        levels = self.levels.to(rows.device)
        scale = scale_of(rows, levels, self._held, counts) if rows.numel() else rows.new_ones(len(rows))
        return self._parameters(scale, shape)

    def from_range(self, low: Tensor, high: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The scale at which the outermost numbers hold blocks that range over low … high, each [blocks]."""
        return self._parameters(scale_to_reach(low.float(), high.float(), self.levels.to(low.device)), shape)

    def _parameters(self, scale: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {"scale": held_scale(scale, self.scale).reshape(self.parameter_shape(shape))}

    def _held(self, scale: Tensor) -> Tensor:
        return scale if self.scale is None else self.scale.represent(scale).decode()

    def brackets(self, rows: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        scale, levels = parameters["scale"].float()[:, None], self.levels.to(rows.device)
        below, above = bracketed(rows / scale, levels[None])
        return below * scale, above * scale

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        if self.dynamic:
            raise at_run_time()
        rows = self.rows(x)
        levels, codes = self.levels.to(rows.device), _codes(self.table()).to(rows.device)
        at = nearest_of(rows / parameters["scale"].reshape(-1, 1).float(), levels[None])
        parts: dict[str, Part] = {"codes": self.unblocked(codes[at.long()], tuple(x.shape)), **parameters}
        if self.scale is not None:
            parts["scale"] = self.scale.represent(parameters["scale"])
        return parts

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        codes, scale = parts["codes"], parts["scale"]
        return torch.ops.lilliput.decode_grid(codes, scale, self.table(), self.axis, self.group or 0)  # type: ignore[no-any-return]

    def for_weight(self, axis: int | None = None) -> Grid:
        if self.dynamic:
            raise at_run_time()
        return replace(self, axis=self.axis if axis is None else axis)

    def for_value(self) -> Grid:
        if self.per == "channel":
            raise EncodingError(
                "activations with one scale a channel", next='use per="tensor", or group= and dynamic=True'
            )
        if self.group and not self.dynamic:
            raise EncodingError(
                "groups of activations whose scales are calibrated", next="add dynamic=True, or drop group="
            )
        if self.dynamic and self.scale is not None:
            raise EncodingError(f"scales of each run held as {self.scale}", next="drop scale=")
        return replace(self, per=None if self.group else "tensor")

    @property
    def calibrated(self) -> bool:
        return not self.dynamic

    def check_value(self, parts: Mapping[str, Tensor]) -> None:
        if parts.keys() != (set() if self.dynamic else {"scale"}):
            raise ValueError("its scale is " + ("found at run time" if self.dynamic else "needed"))

    @property
    def reach(self) -> float:
        return float(self.levels.abs().max())

    def settled(self, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {"scale": settled_scale(learnt["scale"], self.scale)} if "scale" in learnt else {}
        return {**learnt, **given}

    def way(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        levels, scale = self.levels, spread(parts["scale"], tuple(x.shape), self.axis, self.group or 0)
        return (x / scale).clamp(float(levels[0]), float(levels[-1])) * scale.detach()

    def project_value(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        levels = ascending(self.table())
        if self.dynamic:
            return torch.ops.lilliput.project_grid_dynamic(x, levels, 1, self.axis, self.group or 0)  # type: ignore[no-any-return]
        return torch.ops.lilliput.project_grid(x, parts["scale"], levels)  # type: ignore[no-any-return]

    def size_bits(self, shape: tuple[int, ...]) -> int:
        return self.code_bits * math.prod(shape) + held_bits(self.scale, self.parameter_shape(shape))

    def label(self) -> str:
        if self.dynamic:
            return f"{self.name()} {self.where() + ' ' if self.group else ''}at run time"
        return f"{self.name()} {self.where()}"

    def name(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True, repr=False)
class PowerOfTwo(Grid):
    """Zero and powers of two of either sign: products become shifts.

    Source: Miyashita et al., "Convolutional Neural Networks using Logarithmic Data Representation", 2016, arXiv
    1603.01025. With `terms` = 2, sums of two powers, which lie closer to one another where they are large (APoT: Li et
    al., "Additive Powers-of-Two Quantization", 2019, arXiv 1909.13144). Without a sign there are twice as many, for
    values behind a ReLU.

    >>> PowerOfTwo(3).table()
    (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
    """

    bits: int = 4  # 2 … 8, the sign included
    terms: int = 1  # powers of two that are added up: 1 or 2
    signed: bool | None = None  # whether there are numbers below zero; None: yes, but for values that never lie there

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield from super().mistakes()
        yield not whole(self.bits, 2, 8), f"PowerOfTwo of {self.bits!r} bits", "use 2 to 8 bits"
        yield not whole(self.terms, 1, 2), f"{self.terms!r} terms", "use 1 or 2"
        yield not isinstance(self.signed, bool | None), f"signed={self.signed!r}", "use True, False or None"
        yield self.terms == 2 and self.bits < 3, f"two powers in {self.bits} bits", "use at least 3 bits"

    def table(self) -> tuple[float, ...]:
        free = self.bits - (self.signed is not False)
        share = [free] if self.terms == 1 else [free - free // 2, free // 2]
        powers = [[0.0, *(2.0 ** -(i + self.terms * j) for j in range(2**held - 1))] for i, held in enumerate(share)]
        sizes = sorted({sum(added) for added in product(*powers)})
        largest = sizes[-1]
        below = () if self.signed is False else sizes[:0:-1]
        return (*(-size / largest for size in below), *(size / largest for size in sizes))

    def name(self) -> str:
        return ("u" if self.signed is False else "") + (f"log{self.bits}" if self.terms == 1 else f"apot{self.bits}")

    def for_range(self, low: float) -> PowerOfTwo:
        return replace(self, signed=self.signed is not False and (self.signed is True or low < 0))


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
        yield from super().mistakes()
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
        yield from super().mistakes()
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

    @property
    def fixed(self) -> bool:
        return self == mxfp4(self.axis)

    def name(self) -> str:
        return "MXFP4" if self.fixed else f"float {self.format}"


def mxfp4(axis: int = 0) -> MiniFloat:
    """MXFP4: e2m1 in groups of 32 inputs, whose scales are powers of two of 8 bits."""
    return MiniFloat("e2m1", group=32, axis=axis, scale=Exponent8())


def _codes(table: tuple[float, ...]) -> Tensor:
    """The code of each number of a table in ascending order, uint8; of equal ones (0 and -0) the first."""
    codes = {value: code for code, value in reversed(list(enumerate(table))) if not math.isnan(value)}
    return torch.tensor([codes[value] for value in sorted(codes)], dtype=torch.uint8)
