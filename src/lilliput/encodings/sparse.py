"""Zeros that stay zero, around any other representation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor

from lilliput.encodings.encoding import Encoded, Encoding, Part
from lilliput.errors import EncodingError


@dataclass(frozen=True, repr=False)
class Sparse(Encoding):
    """A tensor whose zeros are kept by every later step; `values` says how the rest is represented.

    The zeros lie in the values themselves, so the target needs to know nothing of them; a file spends few bytes on
    them, and a runtime without a sparse kernel gains no time.

    >>> import torch
    >>> Sparse(values=None).represent(torch.tensor([0.0, 2.5])).decode()
    tensor([0.0000, 2.5000])
    """

    values: Encoding | None = None  # None: as they are

    def __post_init__(self) -> None:
        if not isinstance(self.values, Encoding | None) or isinstance(self.values, Sparse):
            raise EncodingError(f"zeros around {self.values!r}", next="use Int(8), Float16(), BFloat16() or None")
        if self.values is not None and not self.values.holds_zero:
            raise EncodingError(f"zeros around {self.values!r}, which has none", next="use Signs(3) or Int(8)")

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        return {} if self.values is None else self.values.fit(x)

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        if self.values is None:
            return {"values": x.detach().clone()}
        return {"values": Encoded(self.values, tuple(x.shape), x.dtype, self.values.encode(x, parameters))}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["values"]

    def size_bits(self, shape: tuple[int, ...]) -> int:
        return 32 * prod(shape) if self.values is None else self.values.size_bits(shape)

    def nested(self) -> dict[str, Encoding]:
        return {} if self.values is None else {"values": self.values}

    def parameters(self, frozen: Encoded) -> dict[str, Tensor]:
        inner = frozen.parts["values"]
        return inner.encoding.parameters(inner) if isinstance(inner, Encoded) else {}

    def enforce(self, x: Tensor, frozen: Encoded) -> Tensor:
        return x * (frozen.decode() != 0).to(x.dtype)

    @property
    def learnable(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.values is None else self.values.learnable

    @property
    def reach(self) -> float:
        return 1.0 if self.values is None else self.values.reach

    def settled(self, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(learnt) if self.values is None else self.values.settled(learnt)

    def learn(self, x: Tensor, parts: Mapping[str, Tensor], count: int) -> Tensor:
        return x if self.values is None else self.values.learn(x, parts, count)

    def label(self) -> str:
        return "sparse" if self.values is None else f"sparse {self.values.label()}"

    def kept_parameters(self, frozen: Encoded) -> dict[str, Tensor] | None:
        inner = frozen.parts["values"] if isinstance(frozen.encoding, Sparse) else frozen
        same = isinstance(inner, Encoded) and inner.encoding == self.values
        return inner.encoding.parameters(inner) if same and isinstance(inner, Encoded) else None

    def for_weight(self, axis: int | None = None) -> Sparse:
        return self if self.values is None else Sparse(self.values.for_weight(axis))

    def dividing(self, shape: tuple[int, ...]) -> Sparse | None:
        inner = None if self.values is None else self.values.dividing(shape)
        return self if inner is self.values else None if inner is None else Sparse(inner)

    def keeping(self, earlier: Encoding) -> Encoding:
        held = earlier.values if isinstance(earlier, Sparse) else earlier
        return Sparse(held if self.values is None else self.values)

    def carry(self, later: Encoding) -> Encoding:
        return Sparse(later)
