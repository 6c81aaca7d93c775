"""The random numbers that loaders draw: seeded, so that what they give is the same in every process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int, epoch: int) -> None:
    """Seed torch's, NumPy's and Python's own random numbers."""
    mixed = int.from_bytes(hashlib.sha256(f"{seed},{epoch}".encode()).digest()[:4], "little")
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


def random_state() -> dict[str, Any]:
    """The states of torch's, NumPy's and Python's random numbers."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    held: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    return {**held, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else held


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Inside, random numbers may be seeded and drawn: afterwards they go on as if nothing had been."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
