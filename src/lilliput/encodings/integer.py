"""Uniform integers: codes, a scale and, where zero is not the middle, an offset."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lilliput.encodings.blocks import (
    Blocked,
    as_if,
    at_run_time,
    gathered,
    held_bits,
    held_scale,
    settled_scale,
    spread,
    whole,
)
from lilliput.encodings.encoding import Encoding, Part
from lilliput.encodings.floats import Scale
from lilliput.errors import EncodingError


@torch.library.custom_op("lilliput::decode_int", mutates_args=())
def decode_int(codes: Tensor, scale: Tensor, offset: Tensor | None, axis: int, group: int) -> Tensor:
    """``(codes - offset) * scale``; scale and offset are [] | [channels] | [channels, groups]."""
    shape = tuple(codes.shape)
    centred = codes.to(scale.dtype)
    if offset is not None:
        centred = centred - spread(offset.to(scale.dtype), shape, axis, group)
    return (centred * spread(scale, shape, axis, group)).contiguous()


@decode_int.register_fake
def _(codes: Tensor, scale: Tensor, offset: Tensor | None, axis: int, group: int) -> Tensor:
    return codes.new_empty(codes.shape, dtype=scale.dtype)


def _remember_codes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, scale, offset, axis, group = inputs
    ctx.save_for_backward(codes, scale, offset)
    ctx.where = axis, group


def _to_parameters(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, scale, offset = ctx.saved_tensors
    shape, centred = tuple(codes.shape), codes.to(scale.dtype)
    of_scale = of_offset = None
    if offset is not None:
        centred = centred - spread(offset.to(scale.dtype), shape, *ctx.where)
    if ctx.needs_input_grad[1]:
        of_scale = gathered(grad * centred, scale, *ctx.where)
    if ctx.needs_input_grad[2]:
        of_offset = -gathered(grad * spread(scale, shape, *ctx.where), offset, *ctx.where).to(offset.dtype)
    return None, of_scale, of_offset, None, None


torch.library.register_autograd("lilliput::decode_int", _to_parameters, setup_context=_remember_codes)


@torch.library.custom_op("lilliput::project_int", mutates_args=())
def project_int(x: Tensor, scale: Tensor, offset: Tensor, low: int, high: int) -> Tensor:
    """A value that flows, rounded to ``low … high`` steps of `scale` around `offset` and back."""
    codes = torch.clamp(torch.round(x.float() / scale) + offset, low, high)
    return ((codes - offset) * scale).to(x.dtype)


@project_int.register_fake
def _(x: Tensor, scale: Tensor, offset: Tensor, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


def _remember_inside(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, scale, offset, low, high = inputs
    codes = torch.round(x / scale) + offset
    ctx.save_for_backward((codes >= low) & (codes <= high))


def _straight_through(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    (inside,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return grad * inside, None, None, None, None


torch.library.register_autograd("lilliput::project_int", _straight_through, setup_context=_remember_inside)


@torch.library.custom_op("lilliput::project_int_dynamic", mutates_args=())
def project_int_dynamic(x: Tensor, bits: int) -> Tensor:
    """A value that flows, rounded to 2**bits steps over its own range (zero included), found at run time."""
    low, high = x.amin().clamp(max=0).float(), x.amax().clamp(min=0).float()
    top = 2**bits - 1
    scale = torch.where(high > low, (high - low) / top, torch.ones_like(high))
    offset = torch.round(-low / scale).clamp(0, top)
    codes = torch.clamp(torch.round(x.float() / scale) + offset, 0, top)
    return ((codes - offset) * scale).to(x.dtype)


@project_int_dynamic.register_fake
def _(x: Tensor, bits: int) -> Tensor:
    return torch.empty_like(x)


def _nothing(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, int], output: Tensor) -> None:
    pass


def _pass_on(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    return grad, None


torch.library.register_autograd("lilliput::project_int_dynamic", _pass_on, setup_context=_nothing)


class Uniform(Blocked):
    """Steps of one size: ``x ≈ (codes - offset) * scale``."""

    bits: int
    scale: Encoding | None  # how the scales are held; None: float32

    @property
    @abstractmethod
    def limits(self) -> tuple[int, int]:
        """Smallest and largest code."""

    @property
    @abstractmethod
    def stored(self) -> torch.dtype:
        """The type of the codes."""

    @property
    def code_bits(self) -> int:
        return self.bits

    def brackets(self, rows: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        scale, offset = _columns(parameters)
        place = rows / scale + offset
        return tuple((end.clamp(*self.limits) - offset) * scale for end in (place.floor(), place.ceil()))  # type: ignore[return-value]

    def nearest(self, rows: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        scale, offset = _columns(parameters)
        return ((torch.round(rows / scale) + offset).clamp(*self.limits) - offset) * scale

    def codes(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Integer codes of `x`, in its shape."""
        shape, group = tuple(x.shape), self.group or 0
        codes = torch.round(x.float() / spread(parameters["scale"].float(), shape, self.axis, group))
        if "offset" in parameters:
            codes = codes + spread(parameters["offset"].float(), shape, self.axis, group)
        return codes.clamp(*self.limits).to(self.stored)

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        self.blocks(x)  # refuses groups that do not divide
        parts: dict[str, Part] = {"codes": self.codes(x.detach(), parameters), **parameters}
        if self.scale is not None:
            parts["scale"] = self.scale.represent(parameters["scale"])
        return parts

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        scale, offset = parts["scale"], parts.get("offset")
        return torch.ops.lilliput.decode_int(parts["codes"], scale, offset, self.axis, self.group or 0)  # type: ignore[no-any-return]

    @property
    def reach(self) -> float:
        return float(max(map(abs, self.limits)))

    def settled(self, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = dict(learnt)
        if "scale" in given:
            given["scale"] = settled_scale(given["scale"], self.scale)
        if "offset" in given:
            given["offset"] = as_if(given["offset"].round().clamp(*self.limits), given["offset"])
        return given

    def way(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        shape, where = tuple(x.shape), (self.axis, self.group or 0)
        scale = spread(parts["scale"], shape, *where)
        offset = spread(parts["offset"].to(scale.dtype), shape, *where) if "offset" in parts else 0.0
        return (x / scale + offset).clamp(*self.limits) * scale.detach()

    def project_value(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        offset = parts["offset"] if "offset" in parts else torch.zeros((), dtype=torch.int8)
        return torch.ops.lilliput.project_int(x, parts["scale"], offset, *self.limits)  # type: ignore[no-any-return]

    def cut_value(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor | None:
        offset = parts["offset"].float() if "offset" in parts else 0.0
        return ((x / parts["scale"] + offset).clamp(*self.limits) - offset) * parts["scale"]


def _columns(parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float]:
    """Scale and offset of blocks, each [blocks, 1]."""
    offset = parameters.get("offset")
    return parameters["scale"].float()[:, None], 0.0 if offset is None else offset.float()[:, None]


@dataclass(frozen=True, repr=False)
class Int(Uniform):
    """Uniform integers: ``x ≈ (codes - offset) * scale``.

    Symmetric codes run from ``-(2**(bits-1) - 1)`` to ``2**(bits-1) - 1`` without an offset; asymmetric ones from 0 to
    ``2**bits - 1``. Zero is always representable exactly. `symmetric` and `per` left at None are chosen by use: weights
    symmetric with one scale a channel, values that flow asymmetric with one scale. One bit is asymmetric: zero and one
    step above it or below it, for what has one sign; `Signs(2)` are the two numbers around zero.

    >>> Int(4).represent(torch.tensor([[-7.0, 3.2, 7.0]])).decode()
    tensor([[-7.,  3.,  7.]])
    """

    learnable: ClassVar[tuple[str, ...]] = ("scale", "offset")

    bits: int = 8  # 1 … 8
    group: int | None = None  # inputs that share a scale; None: a whole channel
    symmetric: bool | None = None  # None: for weights yes, for values no
    per: Literal["channel", "tensor"] | None = None  # None: "channel" for weights, "tensor" for values
    axis: int = 0  # the channel axis
    scale: Encoding | None = None  # how the scales are held; None: float32
    dynamic: bool = False  # values only: the range is found anew at each run

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield not whole(self.bits, 1, 8), f"Int of {self.bits!r} bits", "use 2 to 8 bits, or Signs(2) for one"
        held = isinstance(self.scale, Scale | None) or (isinstance(self.scale, Int) and not self.scale.dynamic)
        yield not held, f"scales as {self.scale!r}", "use Float16(), BFloat16(), Exponent8(), Int(6, group=8) or None"
        yield (
            isinstance(self.scale, Int) and self.group is None,
            f"one scale a channel as {self.scale!r}",
            "give group= as well: a channel's scales then share one of theirs",
        )
        yield not isinstance(self.symmetric, bool | None), f"symmetric={self.symmetric!r}", "use True, False or None"
        yield not isinstance(self.dynamic, bool), f"dynamic={self.dynamic!r}", "use True or False"
        yield (
            self.bits == 1 and self.symmetric is not False,
            "one bit around zero",
            "use Signs(2), or symmetric=False for zero and one step beside it",
        )

    @property
    def limits(self) -> tuple[int, int]:
        top = 2 ** (self.bits - 1) - 1
        return (0, 2**self.bits - 1) if self.symmetric is False else (-top, top)

    @property
    def stored(self) -> torch.dtype:
        return torch.uint8 if self.symmetric is False else torch.int8

    def nested(self) -> dict[str, Encoding]:
        return {} if self.scale is None else {"scale": self.scale}

    def dividing(self, shape: tuple[int, ...]) -> Int | None:
        found = super().dividing(shape)
        if not isinstance(found, Int) or not isinstance(found.scale, Int):
            return found if isinstance(found, Int) else None
        scales = found.scale.dividing(found.parameter_shape(shape))
        return None if scales is None else replace(found, scale=scales)

    def above_zero(self, x: Tensor) -> Tensor:
        step = spread(self.fit(x)["scale"].float(), tuple(x.shape), self.axis, self.group or 0)
        return torch.maximum(x, step)

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        blocks = self.blocks(x.detach())
        if not blocks.numel():  # nothing has no range
            blocks = blocks.new_zeros(len(blocks), 1)
        return self.from_range(blocks.amin(1), blocks.amax(1), tuple(x.shape))

    def from_range(self, low: Tensor, high: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Scale (and offset) for a tensor of `shape` whose blocks range over low … high, each [blocks]."""
        first, last = self.limits
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        width, steps = (high - low, last - first) if self.symmetric is False else (torch.maximum(-low, high), last)
        scale = width / steps
        shaped = self.parameter_shape(shape)
        scale = held_scale(torch.where(scale > 0, scale, torch.ones_like(scale)).reshape(shaped), self.scale)
        if self.symmetric is not False:
            return {"scale": scale}
        offset = torch.round(first - low / scale.reshape(low.shape)).clamp(first, last).to(torch.uint8)
        return {"scale": scale, "offset": offset.reshape(shaped)}

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        if self.dynamic:
            raise at_run_time()
        return super().encode(x, parameters)

    def for_weight(self, axis: int | None = None) -> Int:
        if self.dynamic:
            raise at_run_time()
        per = None if self.group else self.per or "channel"
        return replace(self, symmetric=self.symmetric is not False, per=per, axis=self.axis if axis is None else axis)

    def for_value(self) -> Int:
        if self.group or self.per == "channel":
            raise EncodingError(
                "activations with one scale a channel or group", next='use per="tensor", or Blockwise for groups'
            )
        return replace(self, symmetric=self.symmetric is True, per="tensor")

    @property
    def calibrated(self) -> bool:
        return not self.dynamic

    def check_value(self, parts: Mapping[str, Tensor]) -> None:
        wanted = set() if self.dynamic else {"scale"} | ({"offset"} & parts.keys())
        if parts.keys() != wanted:
            raise ValueError(f"it has {', '.join(sorted(wanted)) or 'none'}")

    def project_value(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """One scale, or a range found at run time."""
        if self.dynamic:
            return torch.ops.lilliput.project_int_dynamic(x, self.bits)  # type: ignore[no-any-return]
        return super().project_value(x, parts)

    def cut_value(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor | None:
        if self.dynamic:
            return x if self.bits == 8 else None  # built files round fewer bits by operators of floats
        return super().cut_value(x, parts)

    def size_bits(self, shape: tuple[int, ...]) -> int:
        shaped = self.parameter_shape(shape)
        offsets = self.bits * prod(shaped) if self.symmetric is False else 0
        return self.bits * prod(shape) + held_bits(self.scale, shaped) + offsets

    def label(self) -> str:
        kind = "uint" if self.symmetric is False else "int"
        return f"{kind}{self.bits} {'at run time' if self.dynamic else self.where()}"
