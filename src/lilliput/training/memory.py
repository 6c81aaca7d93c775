"""Want of memory, of a GPU or of a CPU, told with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lilliput.errors import InputError, reason
from lilliput.techniques.finetune import Finetune
from lilliput.training.data import Feed

_WORDS = ("not enough memory", "DefaultCPUAllocator")  # in what torch says when a CPU's memory is used up


@contextmanager
def enough_memory(step: Finetune, feed: Feed, where: Callable[[], str]) -> Iterator[None]:
    """Inside, want of memory is an InputError that suggests smaller batches."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not starved(error):
            raise
        size = feed.samples // feed.batches
        raise InputError(
            "out of memory",
            where=where(),
            why=reason(error),
            next=f"halve the batches of about {size} samples, and give accumulate={2 * step.accumulate}",
        ) from error


def starved(error: Exception) -> bool:
    """Whether memory was used up: of a GPU, which is an error of its own kind, or of a CPU, which only words tell."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _WORDS)
