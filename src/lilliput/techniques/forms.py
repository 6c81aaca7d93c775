"""The forms in which a weight becomes several: which matrices are cut to a rank, and the parts that come of it.

All from tensors to tensors. A form cuts one or two matrices that a weight is laid out as; each has a rank of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

Form = Literal["product", "spatial", "tucker", "separable"]
Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Parts:
    """Convolutions one behind the other; the fields are those of `Divide`, and their weights."""

    outputs: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...]
    weights: tuple[Tensor, ...]
    kept: float  # of the sum of squares of what they stand for


def spatial(x: Tensor, ranks: Ranks) -> Parts:
    """Of [outputs, inputs, H, W]: filters of H x 1, `rank` of them, then of 1 x W.

    Source: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014, arXiv
    1405.3866, scheme 2, by singular values.

    >>> [tuple(part.shape) for part in spatial(torch.randn(8, 4, 3, 5), (2,)).weights]
    [(2, 4, 3, 1), (8, 2, 1, 5)]
    """
    outputs, inputs, high, wide = x.shape
    left, right, kept = _halves(matrices("spatial", x)[0], ranks[0])
    upright = right.reshape(ranks[0], inputs, high, 1)
    flat = left.reshape(outputs, wide, ranks[0]).transpose(1, 2)[:, :, None]
    return Parts((ranks[0], outputs), ((0,), (1,)), (1, 1), _as(x, upright, flat), kept)


def tucker(x: Tensor, ranks: Ranks) -> Parts:
    """Of [outputs, inputs, …]: points to fewer channels, the kernel between these, points to all outputs.

    Source: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
    2015, arXiv 1511.06530: Tucker-2, by the singular vectors of both unfoldings (HOSVD). `ranks` are those of outputs
    and of inputs.

    >>> [tuple(part.shape) for part in tucker(torch.randn(8, 6, 3, 3), (4, 2)).weights]
    [(2, 6, 1, 1), (4, 2, 3, 3), (8, 4, 1, 1)]
    """
    bases = [torch.linalg.svd(matrix, full_matrices=False)[0] for matrix in matrices("tucker", x)]
    last, first = (basis[:, :rank] for basis, rank in zip(bases, ranks, strict=True))
    core = torch.einsum("oi...,or,is->rs...", x.double(), last, first)
    points = [1] * (x.dim() - 2)
    weights = first.mT.reshape(ranks[1], -1, *points), core, last.reshape(-1, ranks[0], *points)
    over = tuple(range(x.dim() - 2))
    kept = _share(core.square().sum(), x.double().square().sum())
    return Parts((ranks[1], ranks[0], x.shape[0]), ((), over, ()), (1, 1, 1), _as(x, *weights), kept)


def separable(x: Tensor, ranks: Ranks) -> Parts:
    """Of [outputs, inputs, …]: `rank` filters for each input by itself, then points: depthwise and pointwise.

    The nearest by squared error: of the kernels that read one input, the first singular vectors. Source: Guo et al.,
    "Network Decoupling", 2018, arXiv 1808.05517.

    >>> [tuple(part.shape) for part in separable(torch.randn(8, 6, 3, 3), (2,)).weights]
    [(12, 1, 3, 3), (8, 12, 1, 1)]
    """
    outputs, inputs, *kernel = x.shape
    left, right, kept = _halves(matrices("separable", x)[0], ranks[0])  # [inputs, outputs | places, rank], turned
    each = right.reshape(inputs * ranks[0], 1, *kernel)
    points = left.transpose(0, 1).reshape(outputs, inputs * ranks[0], *(1 for _ in kernel))
    over = tuple(range(len(kernel)))
    return Parts((inputs * ranks[0], outputs), (over, ()), (inputs, 1), _as(x, each, points), kept)


DIVISIONS: Mapping[str, Callable[[Tensor, Ranks], Parts]] = {
    "spatial": spatial,
    "tucker": tucker,
    "separable": separable,
}


def matrices(form: Form, x: Tensor) -> list[Tensor]:
    """What a form cuts to a rank each: matrices, or several side by side; of parts as float64."""
    if form == "product":
        return [x.detach().float().flatten(1)]
    x = x.detach().double()
    if form == "spatial":
        return [x.permute(0, 3, 1, 2).reshape(x.shape[0] * x.shape[3], -1)]
    if form == "tucker":
        return [x.flatten(1), x.transpose(0, 1).flatten(1)]
    return [x.flatten(2).transpose(0, 1)]


def most(form: Form, shape: Sequence[int]) -> Ranks:
    """The largest rank of each matrix."""
    return tuple(min(matrix.shape[-2:]) for matrix in matrices(form, torch.empty(tuple(shape), device="meta")))


def numbers(form: Form, shape: Sequence[int], ranks: Ranks) -> int:
    """How many numbers a weight of this shape becomes."""
    outputs, inputs, *kernel = shape
    if form == "tucker":
        last, first = ranks
        return first * inputs + last * first * prod(kernel) + outputs * last
    if form == "spatial":
        return ranks[0] * (inputs * kernel[0] + outputs * kernel[1])
    if form == "separable":
        return ranks[0] * inputs * (prod(kernel) + outputs)
    return ranks[0] * (outputs + inputs * prod(kernel))


def keeping(form: Form, x: Tensor, energy: float) -> Ranks:
    """The least ranks of which each alone loses no more of the sum of squares than its share of what may go.

    >>> keeping("product", torch.diag(torch.tensor([2.0, 1.0, 0.0])), 0.7), keeping("product", torch.eye(4), 0.7)
    ((1,), (3,))
    """
    found = matrices(form, x)
    return tuple(_keeping(matrix, 1 - (1 - energy) / len(found)) for matrix in found)


def _keeping(matrix: Tensor, energy: float) -> int:
    squares = torch.linalg.svdvals(matrix).double().square()
    kept = squares.reshape(-1, squares.shape[-1]).sum(0).cumsum(0)
    return int((kept < energy * kept[-1]).sum()) + 1


def leaving(form: Form, shape: Sequence[int], amount: float) -> Ranks:
    """The largest ranks at which this fraction of the numbers is gone; those of two matrices in proportion.

    >>> leaving("separable", (64, 32, 3, 3), 0.5), leaving("tucker", (64, 32, 3, 3), 0.5)
    ((3,), (37, 18))
    """
    left, top = (1 - amount) * prod(shape), most(form, shape)
    if form != "tucker":
        return (max(1, min(int(left / numbers(form, shape, (1,))), *top)),)
    outputs, inputs, *kernel = shape
    square, line = outputs * inputs * prod(kernel), outputs**2 + inputs**2
    share = (-line + (line**2 + 4 * square * left) ** 0.5) / (2 * square)
    return tuple(max(1, min(int(share * n), limit)) for n, limit in zip((outputs, inputs), top, strict=True))


def rounded(rank: int, multiple: int, up: bool) -> int:
    """A rank to the multiples that a target likes, unless it is less than two of these."""
    if rank < 2 * multiple:
        return rank
    return (-(-rank // multiple) if up else rank // multiple) * multiple


def _halves(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest product of this rank, as two factors of one size, and the share of the sum of squares that it has."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[..., :rank].sqrt()
    kept = _share(values[..., :rank].square().sum(), values.square().sum())
    return left[..., :rank] * root[..., None, :], root[..., None] * right[..., :rank, :], kept


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole else 1.0


def _as(x: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.to(x.dtype).contiguous() for part in parts)
