"""Elements that share parameters: all of a tensor, those of a channel, or a group of a channel's inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf, prod

import torch
from torch import Tensor

from lilliput.encodings.encoding import Encoding, Part
from lilliput.errors import EncodingError, nearest

PER = ("channel", "tensor")


class Blocked(Encoding):
    """An encoding with parameters for each block of elements; the fields are those of the encodings themselves."""

    group: int | None  # inputs that share parameters; None: a whole channel
    per: str | None  # "channel" or "tensor"; None: chosen by use
    axis: int  # the channel axis
    channels: int = 1  # channels that share parameters, side by side

    def __post_init__(self) -> None:
        for wrong, what, remedy in (*self.mistakes(), *self._block_mistakes()):
            if wrong:
                raise EncodingError(what, next=remedy)

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        """What the other fields must not be: whether it is so, what to say, and the remedy."""
        return iter(())

    @abstractmethod
    def brackets(self, rows: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The numbers next below and next above each element of `rows`, [blocks, elements], that can be represented.

        Parameters come one for each block, [blocks, …]. Beyond the ends both are the end.
        """

    def nearest(self, rows: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The number nearest to each element of `rows`; arguments as of `brackets`."""
        below, above = self.brackets(rows, parameters)
        return torch.where(rows - below <= above - rows, below, above)

    @property
    def one_block(self) -> bool:
        """Whether all elements share their parameters."""
        return self.per == "tensor"

    @property
    def fixed(self) -> bool:
        """Whether the format itself says how long its groups are."""
        return False

    def dividing(self, shape: tuple[int, ...]) -> Blocked | None:
        if self.one_block or self.axis >= len(shape):
            return self
        rows, inputs = shape[self.axis], prod(shape) // max(1, shape[self.axis])
        asked = {"group": (self.group or 1, inputs), "channels": (self.channels, rows)}
        found = {name: divisor(n, near) for name, (near, n) in asked.items() if n and n % near}
        if not found:
            return self
        return None if self.fixed else replace(self, **found)

    def blocks(self, x: Tensor) -> Tensor:
        """`x` as [blocks, elements]: the elements of a row share their parameters."""
        if self.one_block or x.dim() == 0:
            return x.reshape(1, x.numel())
        if self.axis >= x.dim():
            raise EncodingError(
                f"axis {self.axis} of a tensor with {x.dim()} axes", next=f"use axis={x.dim() - 1} or less"
            )
        rows = x.movedim(self.axis, 0).flatten(1) if x.dim() > 1 else x[:, None]
        high, wide = self.channels, rows.shape[1] if self.group is None else self.group
        if wide and rows.shape[1] % wide:
            raise EncodingError(
                f"groups of {wide} do not divide {rows.shape[1]} inputs",
                next=f"use group={divisor(rows.shape[1], wide)}",
            )
        if len(rows) % high:
            raise EncodingError(
                f"tiles of {high} channels do not divide {len(rows)}", next=f"use channels={divisor(len(rows), high)}"
            )
        if high > 1 and wide:
            tiles = rows.reshape(len(rows) // high, high, -1, wide).transpose(1, 2)
            return tiles.reshape(-1, high * wide)
        return rows if self.group is None else rows.reshape(-1, self.group)

    def rows(self, x: Tensor) -> Tensor:
        """`blocks` of a tensor as float32 laid out in order, so that sums over a block do not depend on strides."""
        return self.blocks(x.detach().float()).contiguous()

    def unblocked(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """What `blocks` made of a tensor of `shape`, laid out as that tensor again."""
        if self.one_block or len(shape) < 2:
            return rows.reshape(shape)
        moved, high = (shape[self.axis], *shape[: self.axis], *shape[self.axis + 1 :]), self.channels
        if high > 1 and rows.numel():
            wide = rows.shape[1] // high
            rows = rows.reshape(moved[0] // high, -1, high, wide).transpose(1, 2)
        return rows.reshape(moved).movedim(0, self.axis).contiguous()

    def parameter_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """[] | [channels] | [channels, groups]: the shape of one parameter of a tensor of `shape`.

        Of channels that share parameters there is one.
        """
        if self.one_block or not shape:
            return ()
        channels = shape[self.axis]
        tiles = channels // self.channels
        return (tiles,) if self.group is None else (tiles, prod(shape) // max(1, channels) // self.group)

    def of_column(self, parameters: Mapping[str, Tensor], shape: tuple[int, ...], column: int) -> dict[str, Tensor]:
        """The parameters of input number `column` of each channel, [channels, …], of a tensor of `shape`."""
        channels, axes = shape[self.axis], len(self.parameter_shape(shape))

        def of(x: Tensor) -> Tensor:
            if axes == 0:
                return x.expand(channels, *x.shape)
            mine = x if axes == 1 else x[:, column // (self.group or 1)]
            return mine if self.channels == 1 else mine.repeat_interleave(self.channels, 0)

        return {name: of(x) for name, x in parameters.items()}

    def check_parts(self, shape: tuple[int, ...], parts: Mapping[str, Part]) -> None:
        super().check_parts(shape, parts)
        blocks = len(self.blocks(torch.empty(shape, device="meta")))
        for name in ("scale", "offset", "minimum", "levels", "choice"):
            if name in parts and tuple(parts[name].shape) != self.part_shape(name, shape):
                raise ValueError(f"{name} of shape {tuple(parts[name].shape)} for {blocks} blocks")
        codes = parts.get("codes")
        if self.places and isinstance(codes, Tensor) and codes.numel():
            if codes.dtype != torch.uint8:
                raise ValueError(f"codes of {codes.dtype}")
            if int(codes.max()) >= self.places:
                raise ValueError(f"the code {int(codes.max())} of {self.places}")

    @property
    def places(self) -> int:
        """How many numbers the codes choose from; 0 where they are numbers themselves."""
        return 0

    def part_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a part with an entry for each block."""
        return self.parameter_shape(shape)

    def where(self) -> str:
        """Which elements share parameters, in a few words."""
        if self.channels > 1:
            return f"tiles of {self.channels} channels" + (f" × {self.group}" if self.group else "")
        return f"groups of {self.group}" if self.group else "per tensor" if self.one_block else "per channel"

    def _block_mistakes(self) -> Iterator[tuple[bool, str, str]]:
        """What the fields of blocks must not be, in the order in which it is told."""
        grouped = self.group is not None
        yield grouped and not whole(self.group, 1), f"groups of {self.group!r}", "use a positive group, or None"
        yield self.per not in (None, *PER), f"one scale per {self.per!r}", nearest(str(self.per), PER)
        yield (
            grouped and self.per == "tensor",
            "groups within one scale for the whole tensor",
            'drop group=, or per="tensor"',
        )
        yield not whole(self.axis, 0), f"channels along axis {self.axis!r}", "count the axis from 0, the first"
        yield not whole(self.channels, 1), f"tiles of {self.channels!r} channels", "use a positive number of channels"


def at_run_time() -> EncodingError:
    """Why a tensor that is stored cannot be encoded so."""
    return EncodingError("a stored tensor has no run-time range", next="use dynamic=True for activations only")


def held_bits(encoding: Encoding | None, shape: tuple[int, ...]) -> int:
    """Size of a parameter of `shape` that is held by `encoding`, or as float32."""
    return 32 * prod(shape) if encoding is None else encoding.size_bits(shape)


def held_scale(scale: Tensor, encoding: Encoding | None) -> Tensor:
    """Scales as they will be held; blocks whose steps vanish there are next to nothing, unless all do."""
    held = scale if encoding is None else encoding.hold(encoding.above_zero(scale)).decode()
    if held.numel() and not bool((held > 0).any()):
        raise EncodingError(
            f"steps of {scale.max().item():.3g} vanish in {encoding}", next="use scale=BFloat16() or scale=None"
        )
    return torch.where(held > 0, held, torch.ones_like(held))


def settled_scale(scale: Tensor, encoding: Encoding | None) -> Tensor:
    """Scales that are learnt, as they will be held: above zero; gradients pass through."""
    above = torch.where(scale > 0, scale, torch.finfo(scale.dtype).tiny)
    return above if encoding is None else as_if(held_scale(above.detach(), encoding), above)


def bracketed(rows: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The levels next below and next above each element of `rows`; `levels` ascend, [rows or 1, n]."""
    ordered = levels.contiguous()
    after = torch.searchsorted(ordered[0] if len(ordered) == 1 else ordered, rows.contiguous())
    last = ordered.shape[1] - 1
    spread = ordered.expand(len(rows), -1)
    above = spread.gather(1, after.clamp(max=last))
    below = torch.where(above == rows, above, spread.gather(1, (after - 1).clamp(min=0)))
    return below, torch.where(after > last, below, above)


def whole(number: object, least: int, most: float = inf) -> bool:
    """Whether this is an integer within limits; a float or a truth value is none, even where it compares equal."""
    return type(number) is int and least <= number <= most


def divisor(n: int, near: int) -> int:
    """The divisor of `n` that lies nearest to `near`, of those that are at least half of it; `n` where it is shorter.

    Smaller ones would cost more than twice as many parameters: of 131 inputs in groups of 64 all share theirs.

    >>> divisor(27, 8), divisor(72, 64), divisor(131, 64), divisor(9, 32)
    (9, 72, 131, 9)
    """
    least = min(n, -(-near // 2))
    return min((d for d in range(1, n + 1) if n % d == 0 and d >= least), key=lambda d: abs(d - near), default=1)


def spread(parameter: Tensor, shape: tuple[int, ...], axis: int, group: int, channels: int = 1) -> Tensor:
    """A parameter laid out so that it broadcasts against a tensor of `shape`; `group` 0: none."""
    if parameter.dim() == 0:
        return parameter
    if channels > 1:
        parameter = parameter.repeat_interleave(channels, 0)
    if group == 0:
        return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return parameter.repeat_interleave(group, dim=1).reshape(moved).movedim(0, axis)


def gathered(x: Tensor, like: Tensor, axis: int, group: int, channels: int = 1) -> Tensor:
    """The sums of `x` over the elements that each entry of a parameter is laid out for by `spread`: its gradient.

    >>> gathered(torch.ones(4, 6), torch.zeros(4, 2), 0, 3)[0]
    tensor([3., 3.])
    """
    if like.dim() == 0:
        return x.sum()
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
    sums = rows.reshape(len(rows), -1, group).sum(2) if group else rows.sum(1)
    return sums if channels == 1 else sums.reshape(-1, channels, *sums.shape[1:]).sum(1)


def as_if(value: Tensor, way: Tensor) -> Tensor:
    """`value`, to the bit, with the gradients of `way`."""
    return value.detach() + (way - way.detach())
