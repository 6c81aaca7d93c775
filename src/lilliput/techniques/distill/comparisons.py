"""What distillation terms compare: tensors to tensors, nothing of models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_FLAT = 1e-3  # lengths below this share of what they are compared with count as this share: rounding is no direction
_SAME = 1e-6  # points nearer than this share of the largest distance are one point


def divergence(logs: Tensor, logt: Tensor) -> Tensor:
    """KL(t ‖ s) of log-probabilities, [rows…, classes] to [rows…]; what the teacher rules out (-inf) adds nothing."""
    share = logt.exp()
    return torch.where(share > 0, share * (logt - logs), 0.0).sum(-1)


def decouple(logp: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities, [rows, classes], as those of the target and of all others, [rows, 2], and those of the others
    among themselves, [rows, classes - 1]."""
    others = torch.arange(logp.shape[1] - 1, device=logp.device).expand(len(logp), -1)
    rest = logp.gather(1, others + (others >= target[:, None]))
    whole = rest.logsumexp(1, keepdim=True)
    return torch.cat([logp.gather(1, target[:, None]), whole], 1), rest - whole


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of each row of `a` with that of `b`, [rows, points] to [rows].

    A row that hardly varies (standard deviation below a thousandth of its root mean square) counts as varying that
    much, so that rounding is not blown up to a direction.
    """

    def direction(x: Tensor) -> Tensor:
        x = x / x.detach().abs().amax(1, keepdim=True).clamp(min=1e-30)  # squares of small shares would be 0
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1.0)
        return _scaled(x - x.mean(1, keepdim=True), _FLAT * length)

    return (direction(a) * direction(b)).sum(1)


def distances(x: Tensor) -> Tensor:
    """‖xᵢ - xⱼ‖ over their mean, [samples, features] to [pairs]."""
    apart = _between(x)[0]
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    pairs = apart[i, j]
    return (pairs / pairs.mean().clamp(min=1e-30)).float()


def angles(x: Tensor) -> Tensor:
    """Cosines of the angles at xⱼ between xᵢ and xₖ, [samples, features] to [triplets]; 0 where two are one point."""
    apart, gram = _between(x)
    i, k = torch.triu_indices(len(x), len(x), 1, device=x.device)
    j = torch.arange(len(x), device=x.device)[:, None]
    inner = gram[i, k] - gram[j, i] - gram[j, k] + gram.diagonal()[:, None]  # [samples, pairs]
    lengths = apart[j, i] * apart[j, k]
    cosine = torch.where(lengths > 0, inner / torch.where(lengths > 0, lengths, 1.0), 0.0)
    return cosine[(j != i) & (j != k)].float()


def similarities(x: Tensor) -> Tensor:
    """xxᵀ with rows of length 1, [samples, features] to [samples, samples]."""
    x = x.double()
    gram = x @ x.T
    lengths = torch.linalg.vector_norm(gram, dim=1)
    return _scaled(gram, _FLAT * lengths.max()).float()


def flow(a: Tensor, b: Tensor) -> Tensor:
    """Σ aᵢbⱼ over positions, by their number: [batch, n, *positions] and [batch, m, *positions] to [batch, n, m]."""
    a, b = a.flatten(2) if a.dim() > 2 else a[..., None], b.flatten(2) if b.dim() > 2 else b[..., None]
    return a @ b.mT / a.shape[2]


def energy(x: Tensor) -> Tensor:
    """Sum of squares over the channels, [batch, channels, *positions] to [batch, 1, *positions]."""
    return x.square().sum(1, keepdim=True)


def _between(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances between samples, and inner products of centred ones, each [samples, samples] float64.

    From the products alone, so that memory does not grow with samples² · features; float64 makes up for what
    subtracting squares loses.
    """
    x = x.double()
    x = x - x.mean(0)
    gram = x @ x.T
    squares = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
    apart = squares > _SAME**2 * squares.max()  # a root has no slope at 0
    return torch.where(apart, squares, 1.0).sqrt() * apart, gram


def _scaled(x: Tensor, least: Tensor) -> Tensor:
    """Rows of length 1, of rows at least that long; shorter ones stay as much shorter."""
    return x / torch.maximum(torch.linalg.vector_norm(x, dim=-1, keepdim=True), least.detach().clamp(min=1e-30))


def pooled(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """[batch, channels, *positions] averaged to `size` positions."""
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
    return x if tuple(x.shape[2:]) == size else pool(x, size)
