"""What every representation answers, and an encoded tensor as data."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Union

import torch
from torch import Tensor

from lilliput.errors import EncodingError
from lilliput.plain import short_repr

Part = Union[Tensor, "Encoded"]


@dataclass(frozen=True, repr=False)
class Encoding(ABC):
    """How a tensor is represented: parts (codes, scales, …) and the one registered op that decodes them.

    A part is a tensor, or again an encoded tensor (a scale held in half precision, say).
    """

    learnable: ClassVar[tuple[str, ...]] = ()  # the parts that training may learn beside the numbers (`learn`)

    @abstractmethod
    def fit(self, x: Tensor) -> dict[str, Tensor]:
        """The plainest parameters (scale, offset, …) with which `x` can be encoded; fits find better ones."""

    @abstractmethod
    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        """All parts of `x`, given its parameters."""

    @abstractmethod
    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The tensor again, as float32 or as its values were; nested parts arrive decoded."""

    @abstractmethod
    def size_bits(self, shape: tuple[int, ...]) -> int:
        """Exact size in bits of a tensor of this shape, before entropy coding, parameters included."""

    def products(self, shape: tuple[int, ...]) -> int:
        """How many multiply-accumulates a layer does with a weight of this shape, for each place that it is used at."""
        return prod(shape)

    @property
    def code_bits(self) -> int | None:
        """Bits of each code that count, where they are fewer than its type has; None: all."""
        return None

    @property
    def part_bits(self) -> dict[str, int]:
        """For the parts whose numbers take fewer bits than their type has, how many."""
        return {} if self.code_bits is None else {"codes": self.code_bits}

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is represented exactly, as what was pruned needs it."""
        return True

    def above_zero(self, x: Tensor) -> Tensor:
        """`x`, none negative, so that nothing becomes zero that would move what it shares parameters with."""
        return x

    def nested(self) -> dict[str, Encoding]:
        """The parts that are encoded tensors themselves, with their encodings."""
        return {}

    def parameters(self, frozen: Encoded) -> dict[str, Tensor]:
        """Of an encoded tensor, the parts that are not its codes."""
        return {name: part for name, part in frozen.decoded_parts().items() if name != "codes"}

    def kept_parameters(self, frozen: Encoded) -> dict[str, Tensor] | None:
        """The parameters that a tensor encoded as `frozen` keeps under this encoding; None where it is fitted anew."""
        return None

    def enforce(self, x: Tensor, frozen: Encoded) -> Tensor:
        """`x` with the invariants of the encoded tensor it is to replace; most encodings have none."""
        return x

    def project(self, x: Tensor, frozen: Encoded) -> Tensor:
        """`x` at the nearest point that `frozen`'s parameters can represent; gradients pass straight through."""
        kept = self.enforce(x, frozen)
        with torch.no_grad():
            nearest = self.represent(kept.detach(), self.parameters(frozen)).decode()
        return kept + (nearest - kept).detach()

    @property
    def reach(self) -> float:
        """The largest magnitude that a code means, in steps of the scale: gradients of scales grow with it."""
        return 1.0

    def settled(self, learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Learnt parts as they will be stored (scales above zero, levels in order), with gradients of what is given."""
        return dict(learnt)

    def way(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """What gradients go by in place of rounding `x`; only how it changes counts."""
        return x

    def learn(self, x: Tensor, parts: Mapping[str, Tensor], count: int) -> Tensor:
        """`x`, weights or a value that flows, as `parts` represent it, with gradients in it and in learnable parts.

        Those of a part are divided by √(`count` · `reach`) where so many elements share it, so that parts learn about
        as fast as weights. Source: Esser et al., "Learned Step Size Quantization", 2020, arXiv 1902.08153; with offsets
        Bhalgat et al., "LSQ+", 2020, arXiv 2004.09576.
        """
        pace = 1 / math.sqrt(max(1, count) * self.reach)
        learnt = {name: part for name, part in parts.items() if part.requires_grad}
        slowed = {name: part.detach() + pace * (part - part.detach()) for name, part in learnt.items()}
        given = {**parts, **self.settled(slowed)}
        with torch.no_grad():
            fixed = self.represent(x.detach(), {name: part.detach() for name, part in given.items()}).decoded_parts()
        decoded = self.decode({**fixed, **{name: given[name] for name in learnt}})
        way = self.way(x, given)
        return (decoded + (way - way.detach())).to(x.dtype)

    def for_weight(self, axis: int | None = None) -> Encoding:
        """This encoding with what it leaves open chosen for a weight; `axis` is that of its channels where known."""
        return self

    def dividing(self, shape: tuple[int, ...]) -> Encoding | None:
        """This encoding with groups that divide a tensor of `shape`, the nearest to its own; None where its format
        knows no others.
        """
        return self

    def cut_value(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor | None:
        """A value that flows cut to what can be represented, but not rounded; None where that has no meaning."""
        return None

    def for_value(self) -> Encoding:
        """This encoding with what it leaves open chosen for a value that flows; EncodingError where it is for none."""
        raise EncodingError(f"values that flow as {self!r}", next="use Int(8), Fixed, a grid or Blockwise")

    def for_range(self, low: float) -> Encoding:
        """This encoding with what it leaves open chosen for values of which `low` is the least."""
        return self

    @property
    def calibrated(self) -> bool:
        """Whether a value so encoded has parameters that only calibration can tell."""
        return False

    def given(self) -> dict[str, Tensor]:
        """The parameters of a value so encoded that need no calibration."""
        return {}

    def check_value(self, parts: Mapping[str, Tensor]) -> None:
        """Refuse, by a ValueError, parameters that a file may claim and with which no value can be encoded."""
        if parts:
            raise ValueError(f"the parts {', '.join(sorted(parts))}")

    def project_value(self, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """A value that flows, as the target will see it; gradients pass straight through."""
        return self.project(x, self.represent(x.detach()))

    def keeping(self, earlier: Encoding) -> Encoding:
        """This encoding for a tensor that had `earlier`: what that one established (zeros, levels) lasts."""
        return earlier.carry(self)

    def carry(self, later: Encoding) -> Encoding:
        """`later`, wrapped so that it keeps what this encoding establishes; most establish nothing that must last."""
        return later

    def represent(self, x: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Encoded:
        """`x` encoded with `parameters` (fitted plainly when not given)."""
        parameters = self.fit(x) if parameters is None else parameters
        return Encoded(self, tuple(x.shape), x.dtype, self.encode(x, parameters))

    def hold(self, x: Tensor) -> Encoded:
        """Parameters of another encoding, encoded so that what is decoded and held again is the same."""
        return self.represent(x)

    def check_parts(self, shape: tuple[int, ...], parts: Mapping[str, Part]) -> None:
        """Refuse, by a ValueError, parts that a file may claim and that cannot be decoded, or to another size."""
        shapes = {name: tuple(part.shape) for name, part in parts.items()}
        if any(shapes.get(name, shape) != shape for name in ("codes", "values")):
            raise ValueError(f"parts of {shapes} for a tensor of {shape}")

    def label(self) -> str:
        """A few words for a table."""
        return type(self).__name__.lower()

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True)
class Encoded:
    """A tensor in its representation."""

    encoding: Encoding
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: dict[str, Part]

    def decode(self) -> Tensor:
        decoded = self.encoding.decode(self.decoded_parts())
        return decoded if decoded.dtype == self.dtype else decoded.to(self.dtype)

    def decoded_parts(self) -> dict[str, Tensor]:
        return {name: part.decode() if isinstance(part, Encoded) else part for name, part in self.parts.items()}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All stored tensors under dotted names: ``codes``, ``scale``, ``values.codes`` …"""
        found: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            found |= part.tensors(f"{prefix}{name}.") if isinstance(part, Encoded) else {f"{prefix}{name}": part}
        return found


def tensor_digest(x: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    whole = hashlib.sha256(f"{x.dtype}{tuple(x.shape)}".encode())
    whole.update(tensor_bytes(x))
    return whole.hexdigest()


def tensor_bytes(x: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy where it lies so already."""
    flat = x.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()).cast("B") if flat.numel() else memoryview(b"")  # type: ignore[arg-type]
