"""Tiles of a tensor, each with its own scale and its own choice of evenly spaced numbers or powers of two."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lilliput.encodings.blocks import Blocked, bracketed, gathered, held_bits, held_scale, spread, whole
from lilliput.encodings.codebook import nearest_of, places_of
from lilliput.encodings.encoding import Encoding, Part
from lilliput.encodings.floats import Scale
from lilliput.encodings.grids import PowerOfTwo
from lilliput.encodings.scales import scale_of, scale_to_reach
from lilliput.errors import EncodingError


@torch.library.custom_op("lilliput::decode_tiles", mutates_args=())
def decode_tiles(
    codes: Tensor, scale: Tensor, choice: Tensor, tables: Sequence[float], axis: int, group: int, channels: int
) -> Tensor:
    """``tables[choice][codes] · scale`` of two tables, one after the other; scale and choice one for each tile."""
    shape, numbers = tuple(codes.shape), torch.tensor(tables, dtype=scale.dtype, device=codes.device)
    place = codes.int() + spread(choice.int() * (len(tables) // 2), shape, axis, group, channels)
    values = numbers.index_select(0, place.reshape(-1)).reshape(shape)
    return (values * spread(scale, shape, axis, group, channels)).contiguous()


@decode_tiles.register_fake
def _(
    codes: Tensor, scale: Tensor, choice: Tensor, tables: Sequence[float], axis: int, group: int, channels: int
) -> Tensor:
    return codes.new_empty(codes.shape, dtype=scale.dtype)


def _remember_codes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, scale, choice, ctx.tables, *ctx.where = inputs
    ctx.save_for_backward(codes, scale, choice)


def _to_scale(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, scale, choice = ctx.saved_tensors
    numbers = decode_tiles(codes, torch.ones_like(scale), choice, ctx.tables, *ctx.where)
    return None, gathered(grad * numbers, scale, *ctx.where), None, None, None, None, None


torch.library.register_autograd("lilliput::decode_tiles", _to_scale, setup_context=_remember_codes)


@dataclass(frozen=True, repr=False)
class Blockwise(Blocked):
    """Each tile of `channels` × `group` weights has a scale, and is linear or logarithmic, whichever errs less.

    Both have 2^bits - 1 numbers, zero among them: evenly spaced, or those of `PowerOfTwo(bits)`. For values that flow,
    each group along the channels finds its scale and its choice anew at each run.

    >>> x = torch.tensor([[-3.0, -2.0, -1.0, 1.0], [-4.0, 2.0, -1.0, 0.0]])
    >>> tiles = Blockwise(3, group=None).represent(x)
    >>> tiles.decode().equal(x), tiles.parts["choice"]
    (True, tensor([0, 1], dtype=torch.uint8))
    """

    bits: int = 4  # 2 … 8, the sign included
    channels: int = 1  # channels that share a scale and a choice, side by side
    group: int | None = 32  # inputs of each that do; None: all of them
    axis: int = 0  # the channel axis
    scale: Encoding | None = None  # how the scales are held; None: float32

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield not whole(self.bits, 2, 8), f"Blockwise of {self.bits!r} bits", "use 2 to 8 bits"
        held = isinstance(self.scale, Scale | None)
        yield not held, f"scales as {self.scale!r}", "use Float16(), BFloat16(), Exponent8() or None"

    @property
    def per(self) -> None:  # type: ignore[override]
        return None

    def tables(self) -> tuple[Tensor, Tensor]:
        """The numbers of a linear and of a logarithmic tile, ascending, float32."""
        numbers = self._numbers()
        return torch.tensor(numbers[: self.places]), torch.tensor(numbers[self.places :])

    def _numbers(self) -> tuple[float, ...]:
        """Both tables, one after the other."""
        top = 2 ** (self.bits - 1) - 1
        return (*(i / top for i in range(-top, top + 1)), *PowerOfTwo(self.bits).table())

    @property
    def places(self) -> int:
        return int(2**self.bits - 1)

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def part_bits(self) -> dict[str, int]:
        return {"codes": self.bits, "choice": 1}

    def nested(self) -> dict[str, Encoding]:
        return {} if self.scale is None else {"scale": self.scale}

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        return self.least_squares(self.rows(x), tuple(x.shape))

    def least_squares(self, rows: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Scales and choices of least squared error for blocks `rows` of a tensor of `shape`."""
        if not rows.numel():
            return self._parameters([rows.new_ones(len(rows))] * 2, rows, shape)
        found = [scale_of(rows, levels.to(rows.device), self._held) for levels in self.tables()]
        return self._parameters(found, rows, shape)

    def from_range(self, low: Tensor, high: Tensor, rows: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Scales at which the outermost numbers hold low … high, each [blocks], and the better choice for `rows`."""
        scales = [scale_to_reach(low, high, levels.to(rows.device)) for levels in self.tables()]
        return self._parameters(scales, rows, shape)

    def _held(self, scale: Tensor) -> Tensor:
        return scale if self.scale is None else self.scale.represent(scale).decode()

    def _parameters(self, scales: Sequence[Tensor], rows: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Of two scales for each block, [blocks], the one with less error."""
        held = [held_scale(scale, self.scale) for scale in scales]
        linear, log = (
            (rows - _nearest(rows, scale[:, None], levels.to(rows.device))).double().square().sum(1)
            for scale, levels in zip(held, self.tables(), strict=True)
        )
        choice, shaped = log < linear, self.parameter_shape(shape)
        scale = torch.where(choice, held[1], held[0])
        return {"scale": scale.reshape(shaped), "choice": choice.to(torch.uint8).reshape(shaped)}

    def brackets(self, rows: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        scale, log = parameters["scale"].float()[:, None], parameters["choice"].bool()[:, None]
        ends = [bracketed(rows / scale, levels.to(rows.device)[None]) for levels in self.tables()]
        return tuple(torch.where(log, b, a) * scale for a, b in zip(*ends, strict=True))  # type: ignore[return-value]

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        rows = self.rows(x)
        inside = rows / parameters["scale"].reshape(-1, 1).float()
        linear, log = (nearest_of(inside, levels.to(rows.device)[None]) for levels in self.tables())
        codes = torch.where(parameters["choice"].reshape(-1, 1).bool(), log, linear)
        parts: dict[str, Part] = {"codes": self.unblocked(codes, tuple(x.shape)), **parameters}
        if self.scale is not None:
            parts["scale"] = self.scale.represent(parameters["scale"])
        return parts

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        where = (self.axis, self.group or 0, self.channels)
        return torch.ops.lilliput.decode_tiles(parts["codes"], parts["scale"], parts["choice"], self._numbers(), *where)  # type: ignore[no-any-return]

    def check_parts(self, shape: tuple[int, ...], parts: Mapping[str, Part]) -> None:
        super().check_parts(shape, parts)
        choice = parts["choice"]
        if not isinstance(choice, Tensor) or choice.dtype != torch.uint8 or (choice.numel() and int(choice.max()) > 1):
            raise ValueError("a choice that is neither 0 nor 1")

    def for_weight(self, axis: int | None = None) -> Blockwise:
        return replace(self, axis=self.axis if axis is None else axis)

    def for_value(self) -> Blockwise:
        if self.channels > 1 or self.scale is not None:
            raise EncodingError(f"activations as {self!r}", next="use channels=1 and scale=None")
        return self

    def project_value(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.ops.lilliput.project_grid_dynamic(x, self._numbers(), 2, self.axis, self.group or 0)  # type: ignore[no-any-return]

    def size_bits(self, shape: tuple[int, ...]) -> int:
        shaped = self.parameter_shape(shape)
        return self.bits * math.prod(shape) + held_bits(self.scale, shaped) + math.prod(shaped)

    def label(self) -> str:
        return f"linear or log {self.bits} {self.where()}"


def _nearest(rows: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
    return levels[places_of(rows / scale, levels[None])] * scale
