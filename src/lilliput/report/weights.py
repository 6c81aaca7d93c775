"""What became of a network's numbers: how many are left, how many values they share, how far they were moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.encoded_tensor import EncodedTensor

Data = Mapping[str, Any]


def counts(model: nn.Module) -> dict[str, int]:
    """Parameters, those that are not zero, and the values that those have, counted tensor by tensor.

    >>> linear = nn.Linear(2, 2)
    >>> _ = linear.weight.data.copy_(torch.tensor([[0.0, 1.0], [1.0, 2.0]])), linear.bias.data.fill_(3.0)
    >>> counts(linear)
    {'parameters': 6, 'nonzero': 5, 'distinct': 3}
    """
    found = {"parameters": 0, "nonzero": 0, "distinct": 0}
    for held in tensors(model).values():
        found["parameters"] += math.prod(held.shape)
        with torch.no_grad():
            values = (held() if isinstance(held, EncodedTensor) else held).detach().cpu()
        left = values[values != 0]
        found["nonzero"] += left.numel()
        found["distinct"] += _distinct(left)
    return found


def _distinct(x: Tensor) -> int:
    return len(np.unique(x.float().numpy())) if x.numel() else 0


def ratios(before: Data, after: Data, rows: Iterable[Data]) -> dict[str, float | None]:
    """Three shares that papers of compression tell.

    r_p: of the parameters before, those that are left and not zero. r_w: of these, those that need no value of their
    own, since others of their tensor have it. ε_q: the length of what weights were moved by, over their own.

    >>> side = {"parameters": 8, "nonzero": 8, "distinct": 8}
    >>> rows = [{"norm": 3.0, "sqnr_db": None}, {"norm": 4.0, "sqnr_db": 20.0}, {"norm": None, "sqnr_db": None}]
    >>> ratios(side, {"parameters": 8, "nonzero": 4, "distinct": 1}, rows)
    {'nonzero': 0.5, 'shared': 0.75, 'weight_error': 0.08}
    """
    left, known = after["nonzero"], [row for row in rows if row["norm"]]
    noise = sum(row["norm"] ** 2 * 10 ** (-row["sqnr_db"] / 10) for row in known if row["sqnr_db"] is not None)
    signal = sum(row["norm"] ** 2 for row in known)
    return {
        "nonzero": left / max(before["parameters"], 1),
        "shared": 1 - after["distinct"] / left if left else None,
        "weight_error": math.sqrt(noise / signal) if signal else None,
    }
