"""What a batch holds: how many samples, and which."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from lilliput.encodings import tensor_digest
from lilliput.model.views.inputs import Inputs
from lilliput.nested import leaves


def batch_size(batch: Any) -> int:
    """The samples of a batch, however it is nested: the length of its first tensor that has an axis."""
    return next((len(x) for x in _leaves(batch) if isinstance(x, Tensor) and x.dim()), 1)


def fingerprint(batch: Any) -> str:
    """The content of one batch, however it is nested; equal for equal batches."""
    return "".join(f"{_told(leaf)};" for leaf in _leaves(batch))


def _told(leaf: Any) -> str:
    if isinstance(leaf, np.ndarray):  # which prints itself shortened
        content = repr(leaf.tolist()).encode() if leaf.dtype.hasobject else leaf.tobytes()
        return hashlib.sha256(f"{leaf.dtype}{leaf.shape}".encode() + content).hexdigest()
    return tensor_digest(leaf) if isinstance(leaf, Tensor) else repr(leaf)


def _leaves(batch: Any) -> list[Any]:
    """What a batch holds; of inputs all arguments, each after its name."""
    return leaves(list(batch.named()) if isinstance(batch, Inputs) else batch)
