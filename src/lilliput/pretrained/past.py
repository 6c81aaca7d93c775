"""Decoders that go on where they were: the keys and values of what was read come in, and go out with the new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError


class WithPast(nn.Module):
    """A decoder of transformers for one step of a text, or the first of several tokens.

    `past` are keys and values by turns, one pair a layer, [batch, heads, tokens read, width]; of nothing read they have
    no tokens (`nothing`). The answer has `logits` [batch, tokens, vocabulary], and `past` with the new tokens. All
    texts of a batch are of one length: there is no mask.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @property
    def config(self) -> Any:
        return self.network.config

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> dict[str, Any]:
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=self.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        told = self.network(input_ids=input_ids, past_key_values=cache, use_cache=True)
        held = [x for layer in told.past_key_values.layers for x in (layer.keys, layer.values)]
        return {"logits": told.logits, "past": held}

    def nothing(self, batch: int = 1) -> list[Tensor]:
        """The keys and values of no token."""
        with torch.no_grad():
            ids = torch.zeros(batch, 1, dtype=torch.int64, device=self.network.device)
            cache = self.network(input_ids=ids, use_cache=True).past_key_values
        return [x[:, :, :0] for layer in cache.layers for x in (layer.keys, layer.values)]

    def get_input_embeddings(self) -> Any:
        return self.network.get_input_embeddings()


def with_past(network: Any, place: Path | None) -> WithPast:
    """The decoder around a network; raises InputError for one whose caches hold other than all keys and values."""
    from transformers.cache_utils import DynamicCache

    kinds = {type(layer).__name__ for layer in DynamicCache(config=network.config).layers} - {"DynamicLayer"}
    if kinds or not isinstance(getattr(network.config, "num_hidden_layers", None), int):
        held = ", ".join(sorted(kinds)) or "no layers"
        raise InputError(
            f"keeps {held} of what was read, and not all keys and values",
            where=type(network).__name__,
            next='give task="text-generation", which reads each text anew',
        )
    return WithPast(network)
