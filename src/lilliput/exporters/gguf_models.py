"""What GGUF calls the tensors, numbers and tokens of decoders of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.errors import ExportError, InputError


@dataclass(frozen=True)
class Architecture:
    """A kind of decoder as llama.cpp knows it."""

    name: str
    paired: bool = False  # its rotary embedding turns neighbours, where transformers turns halves


_ARCHITECTURES = {  # by `model_type` of transformers
    "llama": Architecture("llama", paired=True),
    "mistral": Architecture("llama", paired=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {  # of `tokenizer.ggml.pre`, by what splits a text before the merges: steps, or a regular expression
    "smollm": ("Digits", "ByteLevel"),
    "gpt-2": ("ByteLevel",),
    "llama-bpe": rf"{_WORDS}\p{{N}}{{1,3}}{_SIGNS}",
    "qwen2": rf"{_WORDS}\p{{N}}{_SIGNS}",
}
_NORMAL, _CONTROL, _USER = 1, 3, 4  # types of tokens


@dataclass(frozen=True)
class Decoder:
    """The decoder within a module, and how llama.cpp is told of it."""

    kind: Architecture
    config: Any
    root: nn.Module
    prefix: str  # of its paths in the whole module
    names: Any  # gguf's table

    @classmethod
    def of(cls, model: nn.Module, gguf: ModuleType) -> Decoder:
        """The outermost module with a config of a known kind; raises InputError where there is none."""
        found = [(path, one) for path, one in model.named_modules() if hasattr(one, "config")]
        kinds = [str(getattr(one.config, "model_type", "")) for _, one in found]
        known = [(path, one, kind) for (path, one), kind in zip(found, kinds, strict=True) if kind in _ARCHITECTURES]
        if not known or not isinstance(getattr(known[0][1], "lm_head", None), nn.Module):
            raise InputError(
                "is no decoder that can be written as GGUF" if not known else "has no head that gives logits",
                where=kinds[0] if kinds and kinds[0] else type(model).__name__,
                next=f"give a …ForCausalLM of {', '.join(_ARCHITECTURES)}",
            )
        path, root, kind = known[0]
        config, architecture = root.config, _ARCHITECTURES[kind]
        table = gguf.get_tensor_name_map(_enum(gguf, architecture.name), config.num_hidden_layers)
        decoder = cls(architecture, config, root, f"{path}." if path else "", table)
        decoder._check()
        return decoder

    @property
    def architecture(self) -> str:
        return self.kind.name

    @property
    def width(self) -> int:
        """Of a head."""
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads)

    def _check(self) -> None:
        """Refuse what llama.cpp would compute otherwise."""
        config = self.config
        activation = str(getattr(config, "hidden_act", "silu"))
        sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        scaled = float(getattr(self._rotary(), "attention_scaling", 1.0))
        for wrong, what in (
            (activation not in ("silu", "swish"), f"hidden_act={activation!r}"),
            (sliding is not None and sliding < config.max_position_embeddings, f"sliding_window={sliding}"),
            (scaled != 1.0, f"an attention scaled by {scaled:g} beside its rotary embedding"),
            (bool(getattr(config, "mlp_bias", False)), "mlp_bias=True"),
        ):
            if wrong:
                raise ExportError(
                    f"has {what}, which llama.cpp's {self.architecture} does not compute",
                    where="config",
                    next="run it by ONNX Runtime, or change the config if the network was not trained with it",
                )

    def name(self, paths: tuple[str, ...]) -> str:
        """What GGUF calls the tensor at these paths (several where it is tied); raises ExportError for one too many."""
        own = [path.removeprefix(self.prefix) for path in paths if path.startswith(self.prefix)]
        for path in sorted(own, key=lambda one: "lm_head" in one):  # a tied head is left out, the table is not
            stem, _, leaf = path.rpartition(".")
            if leaf in ("weight", "bias") and (found := self.names.get_name(stem)) is not None:
                return f"{found}.{leaf}"
        raise ExportError(
            f"llama.cpp's {self.architecture} has no such tensor",
            where=paths[0],
            next="give the decoder as transformers makes it",
        )

    def order(self, name: str, rows: int) -> Tensor | None:
        """The rows of queries and keys in the order that ggml's rotary embedding takes; None for all else."""
        if not self.kind.paired or not any(f".{one}." in name for one in ("attn_q", "attn_k")):
            return None
        heads = torch.arange(rows).reshape(-1, 2, self.width // 2)
        return heads.transpose(1, 2).reshape(-1)

    def describe(self, writer: Any) -> None:
        """Tell the writer of every number that the network is made by."""
        config = self.config
        writer.add_name(str(getattr(config, "name_or_path", "") or type(self.root).__name__).rpartition("/")[2])
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(self._theta())
        writer.add_rope_dimension_count(self.width)
        writer.add_key_length(self.width)
        writer.add_value_length(self.width)
        writer.add_vocab_size(config.vocab_size)

    def frequencies(self) -> Iterator[tuple[str, np.ndarray]]:
        """By what the frequencies of the rotary embedding are divided, where they are not its base's powers."""
        steps = torch.arange(0, self.width, 2, dtype=torch.float32) / self.width
        factors = (1.0 / self._theta() ** steps) / self._rotary().inv_freq.detach().float().cpu()
        if not torch.allclose(factors, torch.ones_like(factors), rtol=1e-5):
            yield "rope_freqs.weight", factors.numpy()

    def _rotary(self) -> Any:
        found: list[Any] = [one for one in self.root.modules() if isinstance(getattr(one, "inv_freq", None), Tensor)]
        if len(found) != 1 or len(found[0].inv_freq) != self.width // 2:
            raise ExportError(
                f"has {len(found)} rotary embeddings of whole heads, where llama.cpp's {self.architecture} has one",
                where=type(self.root).__name__,
                next="give the decoder as transformers makes it",
            )
        return found[0]

    def _theta(self) -> float:
        told = getattr(self.config, "rope_parameters", None) or {}
        return float(told.get("rope_theta") or getattr(self.config, "rope_theta", None) or 10000.0)


def _enum(gguf: ModuleType, name: str) -> Any:
    return next(one for one, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def vocabulary(tokenizer: Any, config: Any) -> Iterator[tuple[str, Any]]:
    """What to tell the writer of the tokens, method and value; without a tokenizer, that there are none.

    Raises InputError for one that is no byte-level BPE, or that does not fit the network.
    """
    if tokenizer is None:
        yield "add_tokenizer_model", "none"
        return
    told = _described(tokenizer)
    model, count = told["model"], int(config.vocab_size)
    pieces = {**model["vocab"], **{one["content"]: one["id"] for one in told.get("added_tokens", [])}}
    if len(pieces) > count or max(pieces.values()) >= count:
        raise InputError(
            f"has {max(pieces.values()) + 1} tokens, where the network has {count}",
            where="tokenizer",
            next="give the tokenizer that the network was trained with",
        )
    special = {one["id"]: one.get("special", False) for one in told.get("added_tokens", [])}
    by_id = {index: piece for piece, index in pieces.items()}
    yield "add_tokenizer_model", "gpt2"
    yield "add_tokenizer_pre", _pattern(told.get("pre_tokenizer") or {})
    yield "add_token_list", [by_id.get(index, f"[PAD{index}]") for index in range(count)]
    yield (
        "add_token_types",
        [
            _USER if index not in by_id else (_CONTROL if special[index] else _USER) if index in special else _NORMAL
            for index in range(count)
        ],
    )
    yield "add_token_merges", [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id", None)
        if index is not None:
            yield f"add_{name}_token_id", int(index)
    yield "add_add_bos_token", bool(getattr(tokenizer, "add_bos_token", False))
    if template := getattr(tokenizer, "chat_template", None):
        yield "add_chat_template", template


def _described(tokenizer: Any) -> Mapping[str, Any]:
    """A fast tokenizer as `tokenizer.json` has it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"is a {type(tokenizer).__name__}",
            where="tokenizer",
            next="give a fast tokenizer: transformers.AutoTokenizer.from_pretrained(folder)",
        )
    told: dict[str, Any] = json.loads(backend.to_str())
    if told["model"].get("type") != "BPE" or told["model"].get("byte_fallback"):
        raise InputError(
            f"is {told['model'].get('type')}, and only byte-level BPE can be written",
            where="tokenizer",
            next="leave it out, and give token numbers to llama.cpp",
        )
    return told


def _pattern(told: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a text is split before the merges; raises InputError for one that it has no name for."""
    steps = told.get("pretokenizers", [told] if told else [])
    kinds = tuple(step["type"] for step in steps)
    regexes = [step["pattern"].get("Regex", "") for step in steps if "pattern" in step]
    for name, known in _PATTERNS.items():
        if kinds == known or known in regexes:
            return name
    raise InputError(
        f"splits texts by {' and '.join(kinds) or 'nothing'} in a way that llama.cpp has no name for",
        where="tokenizer",
        next="leave it out, and give token numbers to llama.cpp",
    )
