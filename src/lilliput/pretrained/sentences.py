"""Sentence encoders: a network of transformers, pooled over its tokens, as sentence-transformers keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError

_POOLED = ("mean", "cls", "max")


class SentenceEncoder(nn.Module):
    """One vector a text, [texts, width]: tokens pooled over the attention mask, of length 1 if `normalize`."""

    def __init__(self, network: nn.Module, pooling: str = "mean", normalize: bool = False) -> None:
        super().__init__()
        self.network, self.pooling, self.normalize = network, pooling, normalize

    @property
    def config(self) -> Any:
        return self.network.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = self.network(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        pooled = self._pooled(tokens, attention_mask[..., None].to(tokens.dtype))
        return nn.functional.normalize(pooled, dim=1) if self.normalize else pooled

    def _pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "max":
            return tokens.masked_fill(mask == 0, torch.finfo(tokens.dtype).min).amax(1)
        return (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)

    def get_input_embeddings(self) -> Any:
        return self.network.get_input_embeddings()  # type: ignore[operator]


def encoder(network: nn.Module, folder: Path | None) -> SentenceEncoder:
    """The encoder around a network: pooled as its folder says, or by the mean.

    Raises InputError for what else sentence-transformers may put after a network.
    """
    listed = folder and folder / "modules.json"
    if not folder or not listed or not listed.is_file():
        return SentenceEncoder(network)
    pooling, normalize = "mean", False
    for module in json.loads(listed.read_text(encoding="utf-8"))[1:]:
        name = str(module["type"]).rsplit(".", 1)[-1]
        if name == "Pooling":
            pooling = _pooling(folder / module["path"] / "config.json")
        elif name == "Normalize":
            normalize = True
        else:
            raise InputError(
                f"puts a {name} after its network",
                where=str(listed),
                next="write a module around both, and give lp.Task(module, calibrate=…)",
            )
    return SentenceEncoder(network, pooling, normalize)


def _pooling(config: Path) -> str:
    told = json.loads(config.read_text(encoding="utf-8"))
    asked = [told["pooling_mode"]] if "pooling_mode" in told else [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, on in told.items()
        if key.startswith("pooling_mode_") and on
    ]  # fmt: skip
    if len(asked) != 1 or asked[0] not in _POOLED:
        raise InputError(
            f"pools by {' and '.join(map(str, asked))}",
            where=str(config),
            next=f"one of {', '.join(_POOLED)} is known here",
        )
    return str(asked[0])
