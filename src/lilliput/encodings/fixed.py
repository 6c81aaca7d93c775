"""Fixed point: integers whose scale is a power of two that is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch
from torch import Tensor

from lilliput.encodings.blocks import whole
from lilliput.encodings.encoding import Part
from lilliput.encodings.integer import Uniform
from lilliput.errors import EncodingError

_ADDED = 128  # to the codes of 9 to 15 bits


@dataclass(frozen=True, repr=False)
class Fixed(Uniform):
    """Fixed point Qm.n: a sign, `m` bits before the point and `n` after it, as processors without floats compute.

    ``x ≈ codes * 2**-n``; the codes run from ``-2**(m+n)`` to ``2**(m+n) - 1``, so numbers from -2^m to 2^m - 2^-n.
    Nothing is fitted: what lies outside becomes the nearest end. Codes of 9 to 15 bits are stored with 128 added: the
    upper bytes of small ones are then all alike, and cost a file next to nothing.

    >>> Fixed(1, 2).represent(torch.tensor([0.3, -1.0, 5.0])).decode()
    tensor([ 0.2500, -1.0000,  1.7500])
    """

    m: int  # bits before the point
    n: int  # bits after it
    group: None = field(default=None, init=False)
    per: Literal["tensor"] = field(default="tensor", init=False)
    axis: int = field(default=0, init=False)
    scale: None = field(default=None, init=False)

    def mistakes(self) -> Iterator[tuple[bool, str, str]]:
        yield not whole(self.m, 0), f"{self.m!r} bits before the point", "use 0 or more"
        yield not whole(self.n, 0), f"{self.n!r} bits after the point", "use 0 or more"
        counted = whole(self.m, 0) and whole(self.n, 0)
        yield counted and not 2 <= self.bits <= 16, f"Q{self.m}.{self.n} with its sign", "use 2 to 16 bits"

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 1 + self.m + self.n

    @property
    def limits(self) -> tuple[int, int]:
        added = _ADDED if self._shifted else 0
        return added - 2 ** (self.m + self.n), added + 2 ** (self.m + self.n) - 1

    @property
    def _shifted(self) -> bool:
        return 8 < self.bits < 16

    @property
    def stored(self) -> torch.dtype:
        return torch.int8 if self.bits <= 8 else torch.int16

    def given(self) -> dict[str, Tensor]:
        return {"scale": torch.tensor(2.0**-self.n)}

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        return self.least_squares(x, tuple(x.shape))

    def least_squares(self, rows: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The scale, which is given: nearest codes are all there is to choose."""
        offset = {"offset": torch.tensor(_ADDED, dtype=torch.uint8)} if self._shifted else {}
        return {name: x.to(rows.device) for name, x in (self.given() | offset).items()}

    def for_value(self) -> Fixed:
        if self.bits > 8:
            raise EncodingError(f"values that flow in {self.bits} bits", next="use at most 8, such as Fixed(3, 4)")
        return self

    def check_parts(self, shape: tuple[int, ...], parts: Mapping[str, Part]) -> None:
        super().check_parts(shape, parts)
        wanted = self.least_squares(torch.empty(0), shape)
        held = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
        if held.keys() != {"codes", *wanted} or held["codes"].dtype != self.stored:
            raise ValueError(f"not codes of {self.stored}, {' and '.join(wanted)}")
        if not all(torch.equal(held[name].cpu(), x) for name, x in wanted.items()):
            raise ValueError(f"its scale is 2^-{self.n}" + (f", its offset {_ADDED}" if self._shifted else ""))

    def check_value(self, parts: Mapping[str, Tensor]) -> None:
        if parts.keys() != {"scale"} or not torch.equal(parts["scale"].float(), self.given()["scale"]):
            raise ValueError(f"its scale is 2^-{self.n}")

    def size_bits(self, shape: tuple[int, ...]) -> int:
        return self.bits * prod(shape) + 32 + 8 * self._shifted

    def label(self) -> str:
        return f"fixed point Q{self.m}.{self.n}"
