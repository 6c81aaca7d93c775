"""Floating-point numbers of fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from lilliput.encodings.encoding import Encoding, Part
from lilliput.errors import EncodingError


@torch.library.custom_op("lilliput::decode_exponent", mutates_args=())
def decode_exponent(codes: Tensor) -> Tensor:
    """``2 ** (codes - 127)``."""
    return torch.exp2(codes.to(torch.float32) - 127)


@decode_exponent.register_fake
def _(codes: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.custom_op("lilliput::decode_float", mutates_args=())
def decode_float(codes: Tensor) -> Tensor:
    """Half-precision codes as float32."""
    return codes.to(torch.float32)


@decode_float.register_fake
def _(codes: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@dataclass(frozen=True, repr=False)
class _HalfWidth(Encoding):
    """A float of 16 bits, stored as the codes themselves."""

    stored: ClassVar[torch.dtype]
    wider: ClassVar[str]  # what holds larger values

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        return {}

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        codes = x.detach().to(self.stored)
        tracing = torch.compiler.is_compiling()  # where values are not known yet
        if not tracing and not torch.isfinite(codes).all() and torch.isfinite(x).all():
            raise EncodingError(
                f"values up to {x.abs().max().item():.3g} do not fit {type(self).__name__}", next=f"use {self.wider}"
            )
        return {"codes": codes}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.ops.lilliput.decode_float(parts["codes"])  # type: ignore[no-any-return]

    def size_bits(self, shape: tuple[int, ...]) -> int:
        return 16 * prod(shape)


@dataclass(frozen=True, repr=False)
class Float16(_HalfWidth):
    """IEEE half precision: 5 bits of exponent, 10 of fraction, largest finite value 65,504.

    >>> Float16().represent(torch.tensor([0.1])).decode()
    tensor([0.1000])
    """

    stored: ClassVar[torch.dtype] = torch.float16
    wider: ClassVar[str] = "BFloat16"


@dataclass(frozen=True, repr=False)
class BFloat16(_HalfWidth):
    """The upper half of a float32: 8 bits of exponent, 7 of fraction.

    >>> BFloat16().represent(torch.tensor([0.1])).decode()
    tensor([0.1001])
    """

    stored: ClassVar[torch.dtype] = torch.bfloat16
    wider: ClassVar[str] = "the tensor as it is"


@dataclass(frozen=True, repr=False)
class Exponent8(Encoding):
    """Powers of two from 2⁻¹²⁷ to 2¹²⁷ and nothing else, for scales (E8M0 of the Microscaling Formats).

    >>> Exponent8().represent(torch.tensor([0.9, 3.0, 5.0])).decode()
    tensor([1., 4., 4.])
    """

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        return {}

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        if not torch.compiler.is_compiling() and not bool((x > 0).all()):
            raise EncodingError("numbers that are not above zero as powers of two", next="use Float16() or BFloat16()")
        return {"codes": (torch.log2(x.detach().double()).round() + 127).clamp(0, 254).to(torch.uint8)}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.ops.lilliput.decode_exponent(parts["codes"])  # type: ignore[no-any-return]

    def size_bits(self, shape: tuple[int, ...]) -> int:
        return 8 * prod(shape)

    @property
    def holds_zero(self) -> bool:
        return False


Scale = Float16 | BFloat16 | Exponent8  # what the scales of others may be held as
