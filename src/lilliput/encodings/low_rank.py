"""A matrix as the product of two that are smaller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd, prod

import torch
from torch import Tensor

from lilliput.encodings.blocks import held_bits, whole
from lilliput.encodings.encoding import Encoded, Encoding, Part
from lilliput.encodings.floats import Exponent8
from lilliput.encodings.sparse import Sparse
from lilliput.errors import EncodingError

_FACTORS = ("left", "right")
_NOTHING = 1e-10  # of the largest square of a factor's singular values, what is taken for zero


@torch.library.custom_op("lilliput::decode_low_rank", mutates_args=())
def decode_low_rank(left: Tensor, right: Tensor) -> Tensor:
    """``left · right``, of [outputs, rank, 1 …] and [rank, inputs, …]."""
    product = left.float().flatten(1) @ right.float().flatten(1)
    return product.reshape(left.shape[0], *right.shape[1:])


@decode_low_rank.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty((left.shape[0], *right.shape[1:]), dtype=torch.float32)


def _remember(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _to_factors(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
    left, right = ctx.saved_tensors  # type: ignore[attr-defined]
    rows = grad.flatten(1)
    of_left = rows @ right.float().flatten(1).mT
    of_right = left.float().flatten(1).mT @ rows
    return of_left.reshape(left.shape).to(left.dtype), of_right.reshape(right.shape).to(right.dtype)


torch.library.register_autograd("lilliput::decode_low_rank", _to_factors, setup_context=_remember)


@dataclass(frozen=True, repr=False)
class LowRank(Encoding):
    """A tensor [outputs, inputs, …] as ``left · right``: [outputs, rank] by [rank, inputs, …], of least squared error.

    That is its singular value decomposition cut off after `rank` values (Eckart and Young 1936). The two parts are the
    weights of two layers one behind the other, and where that takes fewer products a runtime gets those in place of
    one. Of a convolution, `right` has `rank` filters of the full size and `left` filters of one point.

    A later number format becomes that of the factors.

    >>> LowRank(1).represent(torch.tensor([[1.0, 2.0], [2.0, 4.0]])).decode()
    tensor([[1., 2.],
            [2., 4.]])
    """

    rank: int  # 1 or more
    factors: Encoding | None = None  # how the two are held; None: float32

    def __post_init__(self) -> None:
        if not whole(self.rank, 1):
            raise EncodingError(f"a rank of {self.rank!r}", next="use a whole number of 1 or more")
        if not isinstance(self.factors, Encoding | None) or isinstance(self.factors, Sparse | LowRank | Exponent8):
            raise EncodingError(f"factors held as {self.factors!r}", next="use Int(8), Float16(), BFloat16() or None")
        if self.factors is not None:
            self.factors.for_weight()  # refuses what is for activations only

    @property
    def holds_zero(self) -> bool:
        return False

    def nested(self) -> dict[str, Encoding]:
        return {} if self.factors is None else dict.fromkeys(_FACTORS, self.factors)

    def for_weight(self, axis: int | None = None) -> LowRank:
        return self if self.factors is None else replace(self, factors=self.factors.for_weight())

    def dividing(self, shape: tuple[int, ...]) -> LowRank | None:
        if self.factors is None or not shape:
            return self
        both = gcd(shape[0], self.rank), gcd(self.rank, prod(shape[1:]))  # what divides left and right
        inner = self.factors.dividing(both)
        return None if inner is None else replace(self, factors=inner)

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        self._check(tuple(x.shape))
        rows = x.detach().float().flatten(1).contiguous()
        columns, values, _ = torch.linalg.svd(rows, full_matrices=False)
        left = columns[:, : self.rank] * values[: self.rank].sqrt()  # so that neither factor is much the larger
        return {"left": left.reshape(self.shapes(tuple(x.shape))[0])}

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        """The factors that are found from `left` in one step: the best right one for it, and the best left for that.

        Their product is the nearest of all where `left` was fitted to `x`, and near that where `x` has moved a little
        since. Factors that give `x` as it is stay.
        """
        self._check(tuple(x.shape))
        rows = x.detach().double().flatten(1).contiguous()
        right = _solved(parameters["left"].double().flatten(1), rows)
        left = _solved(right.mT, rows.mT).mT
        shapes = dict(zip(_FACTORS, self.shapes(tuple(x.shape)), strict=True))
        found = {"left": left, "right": right}
        found = {name: part.float().reshape(shapes[name]).contiguous() for name, part in found.items()}
        if "right" in parameters:
            given = {name: parameters[name].float() for name in _FACTORS}
            same = (self.decode(given) == x).all()
            found = {name: torch.where(same, given[name], part) for name, part in found.items()}
        if self.factors is None:
            return dict(found)
        return {name: self.factors.represent(part, _under(name, parameters)) for name, part in found.items()}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.ops.lilliput.decode_low_rank(parts["left"], parts["right"])  # type: ignore[no-any-return]

    def parameters(self, frozen: Encoded) -> dict[str, Tensor]:
        """The factors, from which others are found, and the parameters that both are held by."""
        held = {name: part for name, part in frozen.parts.items() if isinstance(part, Encoded)}
        inner = {f"{name}.{of}": x for name, part in held.items() for of, x in part.encoding.parameters(part).items()}
        return {**frozen.decoded_parts(), **inner}

    def kept_parameters(self, frozen: Encoded) -> dict[str, Tensor] | None:
        if not isinstance(frozen.encoding, LowRank) or frozen.encoding.rank != self.rank:
            return None
        kept = frozen.encoding.parameters(frozen)
        return kept if frozen.encoding == self else {name: kept[name] for name in _FACTORS}

    def carry(self, later: Encoding) -> Encoding:
        return later if isinstance(later, LowRank | Sparse) else replace(self, factors=later)

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the two factors of a tensor of `shape`."""
        return (shape[0], self.rank, *(1 for _ in shape[2:])), (self.rank, *shape[1:])

    def size_bits(self, shape: tuple[int, ...]) -> int:
        return sum(held_bits(self.factors, part) for part in self.shapes(shape))

    def products(self, shape: tuple[int, ...]) -> int:
        return min(prod(shape), sum(map(prod, self.shapes(shape))))

    def check_parts(self, shape: tuple[int, ...], parts: Mapping[str, Part]) -> None:
        self._check(shape)
        found = tuple(tuple(parts[name].shape) for name in _FACTORS)
        if found != self.shapes(shape) or len(parts) != 2:
            raise ValueError(f"factors of shapes {found} for a tensor of {shape}")
        for name, part in parts.items():
            if isinstance(part, Tensor) and not part.dtype.is_floating_point:
                raise ValueError(f"{name} of {part.dtype}")

    def label(self) -> str:
        return f"rank {self.rank}" if self.factors is None else f"rank {self.rank} of {self.factors.label()}"

    def _check(self, shape: tuple[int, ...]) -> None:
        most = min(shape[0], prod(shape[1:])) if len(shape) > 1 else 0
        if self.rank > most:
            remedy = f"use rank={most} or less" if most else "encode matrices and larger tensors so"
            raise EncodingError(f"rank {self.rank} of a tensor of shape {shape}", next=remedy)


def _under(name: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Of the parameters of a product, those of one of its factors; None where there are none."""
    return {of.removeprefix(f"{name}."): x for of, x in parameters.items() if of.startswith(f"{name}.")} or None


def _solved(left: Tensor, x: Tensor) -> Tensor:
    """The `right` for which ``left · right`` is nearest to `x`; the least where several are."""
    inverse: Tensor = torch.linalg.pinv(left.mT @ left, rtol=_NOTHING, hermitian=True)
    return inverse @ (left.mT @ x)
