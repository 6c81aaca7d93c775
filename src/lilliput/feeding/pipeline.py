"""A pipeline of transformers, taken for its network and for what makes inputs of texts or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lilliput.feeding.rows import BATCH


@runtime_checkable
class Pipeline(Protocol):
    """What holds a network and prepares what it is given."""

    model: nn.Module
    tokenizer: Any

    def preprocess(self, given: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class Prepared:
    """Batches of inputs made of samples as the pipeline makes them; texts are all padded to the longest."""

    pipeline: Pipeline
    samples: Sequence[Any]

    def __len__(self) -> int:
        return -(-len(self.samples) // BATCH)

    def __iter__(self) -> Any:
        parts = [self.samples[i : i + BATCH] for i in range(0, len(self.samples), BATCH)]
        if not all(isinstance(one, str) for one in self.samples):
            return (_joined([self.pipeline.preprocess(one) for one in part]) for part in parts)
        whole = self.pipeline.tokenizer(list(self.samples), padding=True, truncation=True, return_tensors="pt")
        return ({key: x[i : i + BATCH] for key, x in whole.items()} for i in range(0, len(self.samples), BATCH))


def prepared(pipeline: Pipeline, given: Any) -> Any:
    """Samples (texts, images) as a source of batches; batches of tensors, and all else, as they are."""
    made = isinstance(given, list) and given and not isinstance(given[0], Tensor | Mapping | tuple | list)
    return Prepared(pipeline, given) if made else given


def open_lengths(example: Mapping[str | int, Tensor]) -> dict[str | int, dict[int, str]]:
    """The axes that vary of what a tokenizer gives: how many texts, and how long."""
    return {key: {0: "batch", 1: "sequence"} if x.dim() > 1 else {0: "batch"} for key, x in example.items()}


def _joined(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([one[key] for one in rows]) for key in rows[0]}
