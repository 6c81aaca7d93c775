"""Uniform integers: codes, a scale and, where zero is not the middle, an offset or a minimum."""

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
from lilliput.encodings.encoding import Encoded, Encoding, Part
from lilliput.encodings.floats import BFloat16, Float16, Scale
from lilliput.errors import EncodingError

_EXACT = 1 << 16  # the significand of a scale whose products with codes of 8 bits are exact in single precision


@torch.library.custom_op("lilliput::decode_int", mutates_args=())
def decode_int(
    codes: Tensor, scale: Tensor, offset: Tensor | None, minimum: Tensor | None, axis: int, group: int
) -> Tensor:
    """``(codes - offset) * scale + minimum``; scale, offset and minimum are [] | [channels] | [channels, groups]."""
    shape = tuple(codes.shape)
    centred = codes.to(scale.dtype)
    if offset is not None:
        centred = centred - spread(offset.to(scale.dtype), shape, axis, group)
    steps = centred * spread(scale, shape, axis, group)
    if minimum is not None:
        steps = steps + spread(minimum.to(scale.dtype), shape, axis, group)
    return steps.contiguous()


@decode_int.register_fake
def _(codes: Tensor, scale: Tensor, offset: Tensor | None, minimum: Tensor | None, axis: int, group: int) -> Tensor:
    return codes.new_empty(codes.shape, dtype=scale.dtype)


def _remember_codes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, scale, offset, minimum, axis, group = inputs
    ctx.save_for_backward(codes, scale, offset, minimum)
    ctx.where = axis, group


def _to_parameters(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, scale, offset, minimum = ctx.saved_tensors
    shape, centred = tuple(codes.shape), codes.to(scale.dtype)
    of_scale = of_offset = of_minimum = None
    if offset is not None:
        centred = centred - spread(offset.to(scale.dtype), shape, *ctx.where)
    if ctx.needs_input_grad[1]:
        of_scale = gathered(grad * centred, scale, *ctx.where)
    if ctx.needs_input_grad[2]:
        of_offset = -gathered(grad * spread(scale, shape, *ctx.where), offset, *ctx.where).to(offset.dtype)
    if ctx.needs_input_grad[3]:
        of_minimum = gathered(grad, minimum, *ctx.where).to(minimum.dtype)
    return None, of_scale, of_offset, of_minimum, None, None


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
    """Steps of one size: ``x ≈ (codes - offset) * scale``, or ``codes * scale + minimum``."""

    bits: int
    scale: Encoding | None  # how the scales are held; None: float32
    minimum: Encoding | None = None  # how the minima are held; None: there are none, but offsets

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
        scale, offset, minimum = _columns(parameters)
        place = (rows - minimum) / scale + offset
        ends = (end.clamp(*self.limits) for end in (place.floor(), place.ceil()))
        return tuple((end - offset) * scale + minimum for end in ends)  # type: ignore[return-value]

    def nearest(self, rows: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        scale, offset, minimum = _columns(parameters)
        codes = (torch.round((rows - minimum) / scale) + offset).clamp(*self.limits)
        return (codes - offset) * scale + minimum

    def codes(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Integer codes of `x`, in its shape."""
        shape, group = tuple(x.shape), self.group or 0
        above = x.float()
        if "minimum" in parameters:
            above = above - spread(parameters["minimum"].float(), shape, self.axis, group)
        codes = torch.round(above / spread(parameters["scale"].float(), shape, self.axis, group))
        if "offset" in parameters:
            codes = codes + spread(parameters["offset"].float(), shape, self.axis, group)
        return codes.clamp(*self.limits).to(self.stored)

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        self.blocks(x)  # refuses groups that do not divide
        parts: dict[str, Part] = {"codes": self.codes(x.detach(), parameters), **parameters}
        for name, held in self.nested().items():
            parts[name] = held.hold(parameters[name])
        return parts

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        scale, offset, minimum = parts["scale"], parts.get("offset"), parts.get("minimum")
        return torch.ops.lilliput.decode_int(  # type: ignore[no-any-return]
            parts["codes"], scale, offset, minimum, self.axis, self.group or 0
        )

    @property
    def reach(self) -> float:
        return float(max(map(abs, self.limits)))

    def settled(self, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = dict(learnt)
        if "scale" in given:
            given["scale"] = settled_scale(given["scale"], self.scale)
        if "offset" in given:
            given["offset"] = as_if(given["offset"].round().clamp(*self.limits), given["offset"])
        if "minimum" in given and self.minimum is not None:
            given["minimum"] = as_if(self.minimum.hold(given["minimum"].detach()).decode(), given["minimum"])
        return given

    def way(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        shape, where = tuple(x.shape), (self.axis, self.group or 0)
        scale = spread(parts["scale"], shape, *where)
        offset = spread(parts["offset"].to(scale.dtype), shape, *where) if "offset" in parts else 0.0
        above = x - spread(parts["minimum"].to(scale.dtype), shape, *where) if "minimum" in parts else x
        return (above / scale + offset).clamp(*self.limits) * scale.detach()

    def project_value(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        offset = parts["offset"] if "offset" in parts else torch.zeros((), dtype=torch.int8)
        return torch.ops.lilliput.project_int(x, parts["scale"], offset, *self.limits)  # type: ignore[no-any-return]

    def cut_value(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor | None:
        offset = parts["offset"].float() if "offset" in parts else 0.0
        return ((x / parts["scale"] + offset).clamp(*self.limits) - offset) * parts["scale"]


def _columns(parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """Scale, offset and minimum of blocks, each [blocks, 1], or 0 where there is none."""
    offset, minimum = (
        parameters[name].float()[:, None] if name in parameters else 0.0 for name in ("offset", "minimum")
    )
    return parameters["scale"].float()[:, None], offset, minimum


@dataclass(frozen=True, repr=False)
class Int(Uniform):
    """Uniform integers: ``x ≈ (codes - offset) * scale``, or ``codes * scale + minimum``.

    Symmetric codes run from ``-(2**(bits-1) - 1)`` to ``2**(bits-1) - 1`` without an offset; asymmetric ones from 0 to
    ``2**bits - 1``. Zero is always representable exactly. `symmetric` and `per` left at None are chosen by use: weights
    symmetric with one scale a channel, values that flow asymmetric with one scale. One bit is asymmetric: zero and one
    step above it or below it, for what has one sign; `Signs(2)` are the two numbers around zero.

    With `minimum`, asymmetric weights have in place of whole offsets the number that the code 0 means, of any value:
    their range need not hold zero, and zero need not be one of their numbers. With ``k = Int(6, group=8,
    symmetric=False)``, ``Int(4, group=32, symmetric=False, scale=k, minimum=k)`` is Q4_K of GGUF, with single
    precision in place of half for the scales of scales.

    >>> Int(4).represent(torch.tensor([[-7.0, 3.2, 7.0]])).decode()
    tensor([[-7.,  3.,  7.]])
    >>> Int(2, symmetric=False, minimum=Float16()).represent(torch.tensor([[5.0, 5.5, 6.5]])).decode()
    tensor([[5.0000, 5.5000, 6.5000]])
    """

    learnable: ClassVar[tuple[str, ...]] = ("scale", "offset", "minimum")

    bits: int = 8  # 1 … 8
    group: int | None = None  # inputs that share a scale; None: a whole channel
    symmetric: bool | None = None  # None: for weights yes, for values no
    per: Literal["channel", "tensor"] | None = None  # None: "channel" for weights, "tensor" for values
    axis: int = 0  # the channel axis
    scale: Encoding | None = None  # how the scales are held; None: float32
    minimum: Encoding | None = None  # asymmetric weights: what holds their minima; None: whole offsets instead
    dynamic: bool = False  # values only: the range is found anew at each run

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield not whole(self.bits, 1, 8), f"Int of {self.bits!r} bits", "use 2 to 8 bits, or Signs(2) for one"
        held = isinstance(self.scale, Scale | None) or _holds(self.scale)
        yield not held, f"scales as {self.scale!r}", "use Float16(), BFloat16(), Exponent8(), Int(6, group=8) or None"
        held = isinstance(self.minimum, Float16 | BFloat16 | None) or _holds(self.minimum)
        yield not held, f"minima as {self.minimum!r}", "use Float16(), BFloat16(), Int(6, group=8) or None"
        yield (
            self.minimum is not None and (self.symmetric is not False or self.dynamic is not False),
            "a minimum where the codes lie around zero, or of a range found at run time",
            "give symmetric=False, for weights, or minimum=None",
        )
        for name in ("scale", "minimum"):
            yield (
                isinstance(getattr(self, name), Int) and self.group is None,
                f"one {name} a channel as {getattr(self, name)!r}",
                f"give group= as well: those of a channel then share one {name} of theirs",
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

    @property
    def holds_zero(self) -> bool:
        return self.minimum is None

    def nested(self) -> dict[str, Encoding]:
        held = {"scale": self.scale, "minimum": self.minimum}
        return {name: encoding for name, encoding in held.items() if encoding is not None}

    def dividing(self, shape: tuple[int, ...]) -> Int | None:
        found = super().dividing(shape)
        if not isinstance(found, Int):
            return None
        if not found.nested():
            return found
        shaped = found.parameter_shape(shape)
        held = {name: encoding.dividing(shaped) for name, encoding in found.nested().items()}
        return None if None in held.values() else replace(found, **held)  # type: ignore[arg-type]

    def hold(self, x: Tensor) -> Encoded:
        """With scales of so few bits that products with codes are exact: what is held again is then the same."""
        own = self.fit(x)
        fraction, exponent = torch.frexp(own["scale"])
        scale = torch.ldexp(torch.round(fraction * _EXACT) / _EXACT, exponent)
        return self.represent(x, {**own, "scale": scale})

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
        shaped = self.parameter_shape(shape)
        if self.minimum is not None:
            minimum = self.minimum.hold(low.float().reshape(shaped)).decode()
            scale = ((high.float().reshape(shaped) - minimum) / (last - first)).clamp(min=0)
            return {"scale": held_scale(_filled(scale, self.scale), self.scale), "minimum": minimum}
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        width, steps = (high - low, last - first) if self.symmetric is False else (torch.maximum(-low, high), last)
        scale = held_scale(_filled((width / steps).reshape(shaped), self.scale), self.scale)
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
        if self.minimum is not None:
            raise EncodingError("activations with a minimum", next="leave minimum= out: whole offsets serve them")
        if self.group or self.per == "channel":
            raise EncodingError(
                "activations with one scale a channel or group", next='use per="tensor", or Blockwise for groups'
            )
        return replace(self, symmetric=self.symmetric is True, per="tensor")

    @property
    def calibrated(self) -> bool:
        return not self.dynamic

    def check_parts(self, shape: tuple[int, ...], parts: Mapping[str, Part]) -> None:
        super().check_parts(shape, parts)
        if ("minimum" in parts) is not (self.minimum is not None) or parts.keys() >= {"minimum", "offset"}:
            raise ValueError(f"the parts {', '.join(sorted(parts))}")

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
        below = 0 if self.symmetric is not False else self.bits * prod(shaped)
        if self.minimum is not None:
            below = self.minimum.size_bits(shaped)
        return self.bits * prod(shape) + held_bits(self.scale, shaped) + below

    def label(self) -> str:
        kind = "uint" if self.symmetric is False else "int"
        where = "at run time" if self.dynamic else self.where()
        return f"{kind}{self.bits} {where}{'' if self.minimum is None else ' over a minimum'}"


def _holds(encoding: Encoding | None) -> bool:
    """Whether these are integers that may hold parameters of others."""
    return isinstance(encoding, Int) and not encoding.dynamic and encoding.minimum is None


def _filled(scale: Tensor, encoding: Encoding | None) -> Tensor:
    """Scales of blocks without a width are anything above zero; among integers they would spoil others if they were
    large, and take the least step (`above_zero`).
    """
    return scale if isinstance(encoding, Int) else torch.where(scale > 0, scale, torch.ones_like(scale))
