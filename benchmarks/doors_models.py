"""Forty networks of transformers that the zoo of our tests has not.

They have their default configs but for sizes: whether they cache, what they answer with and how they attend is as the
library has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, dict[str, Any]]
TEXT: dict[str, Any] = {"vocab_size": 120, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
INNER = {"intermediate_size": 128}
LLAMA = {**TEXT, **INNER}
WIDE: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, **INNER}


def library(head: str, config: str, reads: str, **sizes: Any) -> Callable[[], Built]:
    """A network of transformers, and inputs of the kind that it `reads`."""

    def made() -> Built:
        import transformers

        torch.manual_seed(0)
        net = getattr(transformers, head)(getattr(transformers, config)(**sizes))
        return net.eval(), INPUTS[reads]()

    return made


def ids(*shape: int) -> Tensor:
    return torch.randint(5, 120, shape, generator=torch.Generator().manual_seed(0))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


INPUTS: dict[str, Callable[[], dict[str, Any]]] = {
    "ids": lambda: {"input_ids": ids(2, 16)},
    "texts": lambda: {"input_ids": ids(2, 16), "attention_mask": torch.tensor([[1] * 16, [1] * 11 + [0] * 5])},
    "both": lambda: {"input_ids": ids(2, 16), "decoder_input_ids": ids(2, 7)},
    "picture": lambda: {"pixel_values": noise(2, 3, 64, 64)},
    "sound": lambda: {"input_values": noise(2, 4000)},
    "spectrum": lambda: {"input_values": noise(2, 64, 32)},
    "features": lambda: {"input_features": noise(2, 80, 16), "decoder_input_ids": ids(2, 7)},
}
_SIDES = {
    f"{side}_{what}": n
    for side in ("encoder", "decoder")
    for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))
}
SEQ2SEQ = {"vocab_size": 120, "d_model": 64, **_SIDES, "max_position_embeddings": 64, "pad_token_id": 0}
WAVES = {
    **{"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **INNER},
    **{"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
}
VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    **INNER,
    "image_size": 64,
    "patch_size": 16,
}

LIBRARY: dict[str, Callable[[], Built]] = {
    "xlnet": library(
        "XLNetForSequenceClassification",
        "XLNetConfig",
        "texts",
        vocab_size=120,
        d_model=64,
        n_layer=2,
        n_head=4,
        d_inner=128,
    ),
    "funnel": library(
        "FunnelForSequenceClassification",
        "FunnelConfig",
        "texts",
        vocab_size=120,
        block_sizes=[1, 1],
        d_model=64,
        n_head=4,
        d_head=16,
        d_inner=128,
    ),
    "fnet": library(
        "FNetForSequenceClassification",
        "FNetConfig",
        "ids",
        vocab_size=120,
        hidden_size=64,
        num_hidden_layers=2,
        **INNER,
    ),
    "layoutlm": library("LayoutLMForTokenClassification", "LayoutLMConfig", "texts", **LLAMA),
    "convbert": library("ConvBertForSequenceClassification", "ConvBertConfig", "texts", **LLAMA, embedding_size=64),
    "mobilebert": library(
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        "texts",
        **LLAMA,
        embedding_size=32,
        intra_bottleneck_size=32,
    ),
    "roformer": library("RoFormerForSequenceClassification", "RoFormerConfig", "texts", **LLAMA),
    "nystromformer": library(
        "NystromformerForSequenceClassification",
        "NystromformerConfig",
        "texts",
        **LLAMA,
        segment_means_seq_len=16,
        num_landmarks=16,
    ),
    "longformer": library(
        "LongformerForSequenceClassification", "LongformerConfig", "texts", **LLAMA, attention_window=8
    ),
    "deberta-v2": library("DebertaV2ForSequenceClassification", "DebertaV2Config", "texts", **LLAMA),
    "canine": library("CanineForSequenceClassification", "CanineConfig", "texts", hidden_size=64, **WIDE),
    "esm": library("EsmForSequenceClassification", "EsmConfig", "texts", **LLAMA, pad_token_id=1, mask_token_id=4),
    "gptj": library(
        "GPTJForCausalLM", "GPTJConfig", "ids", vocab_size=120, n_embd=64, n_layer=2, n_head=4, rotary_dim=8
    ),
    "gpt-neo": library(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        "ids",
        vocab_size=120,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
    ),
    "codegen": library(
        "CodeGenForCausalLM", "CodeGenConfig", "ids", vocab_size=120, n_embd=64, n_layer=2, n_head=4, rotary_dim=8
    ),
    "falcon": library("FalconForCausalLM", "FalconConfig", "ids", **TEXT),
    "stablelm": library("StableLmForCausalLM", "StableLmConfig", "ids", **LLAMA, num_key_value_heads=4),
    "olmo": library("OlmoForCausalLM", "OlmoConfig", "ids", **LLAMA),
    "starcoder2": library("Starcoder2ForCausalLM", "Starcoder2Config", "ids", **LLAMA),
    "gemma2": library("Gemma2ForCausalLM", "Gemma2Config", "ids", **LLAMA, num_key_value_heads=2, head_dim=16),
    "qwen3": library("Qwen3ForCausalLM", "Qwen3Config", "ids", **LLAMA, num_key_value_heads=2, head_dim=16),
    "phi": library("PhiForCausalLM", "PhiConfig", "ids", **LLAMA),
    "beit": library("BeitForImageClassification", "BeitConfig", "picture", **VISION),
    "levit": library(
        "LevitForImageClassification",
        "LevitConfig",
        "picture",
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    "cvt": library(
        "CvtForImageClassification",
        "CvtConfig",
        "picture",
        embed_dim=[16, 32, 64],
        num_heads=[1, 2, 4],
        depth=[1, 2, 3],
    ),
    "mobilevit": library(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        "picture",
        image_size=64,
        hidden_sizes=[48, 64, 80],
        neck_hidden_sizes=[16, 16, 32, 32, 48, 64, 128],
    ),
    "pvt-v2": library(
        "PvtV2ForImageClassification",
        "PvtV2Config",
        "picture",
        image_size=64,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
    ),
    "swin-v2": library(
        "Swinv2ForImageClassification",
        "Swinv2Config",
        "picture",
        image_size=64,
        embed_dim=32,
        depths=[1, 1],
        num_heads=[2, 4],
        window_size=4,
    ),
    "focalnet": library(
        "FocalNetForImageClassification",
        "FocalNetConfig",
        "picture",
        image_size=64,
        embed_dim=32,
        depths=[1, 1],
        hidden_sizes=[32, 64],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    "yolos": library(
        "YolosForObjectDetection",
        "YolosConfig",
        "picture",
        **{**VISION, "image_size": [64, 64]},
        num_detection_tokens=10,
    ),
    "vit-mae": library("ViTMAEModel", "ViTMAEConfig", "picture", **VISION, mask_ratio=0.0),
    "pegasus": library("PegasusForConditionalGeneration", "PegasusConfig", "both", **SEQ2SEQ),
    "marian": library("MarianMTModel", "MarianConfig", "both", **SEQ2SEQ, decoder_start_token_id=0),
    "blenderbot": library("BlenderbotForConditionalGeneration", "BlenderbotConfig", "both", **SEQ2SEQ),
    "mbart": library("MBartForConditionalGeneration", "MBartConfig", "both", **SEQ2SEQ),
    "m2m100": library("M2M100ForConditionalGeneration", "M2M100Config", "both", **SEQ2SEQ),
    "hubert": library("HubertForCTC", "HubertConfig", "sound", **WAVES),
    "wavlm": library("WavLMForCTC", "WavLMConfig", "sound", **WAVES),
    "ast": library(
        "ASTForAudioClassification", "ASTConfig", "spectrum", hidden_size=64, **WIDE, max_length=64, num_mel_bins=32
    ),
    "moonshine": library(
        "MoonshineForConditionalGeneration",
        "MoonshineConfig",
        "spoken",
        vocab_size=120,
        hidden_size=64,
        intermediate_size=128,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
    ),
}
INPUTS["spoken"] = lambda: {"input_values": noise(2, 4000), "decoder_input_ids": ids(2, 7)}
