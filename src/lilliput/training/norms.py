"""Batch normalisations that gather their statistics anew: "BN recalibration" of other tools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lilliput.modes import eval_mode


@contextmanager
def averaging(model: nn.Module) -> Iterator[bool]:
    """Inside, what runs gives batch normalisations their means and variances, as plain averages; whether there are any.

    >>> norm = nn.BatchNorm1d(1)
    >>> with averaging(norm) as any_norms:
    ...     _ = norm(torch.tensor([[1.0], [3.0]])), norm(torch.tensor([[5.0], [7.0]]))
    >>> any_norms, norm.running_mean, norm.momentum
    (True, tensor([4.]), 0.1)
    """
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad(), eval_mode(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True
        yield bool(norms)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
