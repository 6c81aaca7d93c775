"""Architectures of the zoo from the library transformers: small configurations with random weights.

The library is imported where a model is built, so that the table can be read without it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TEXT = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**TEXT, "intermediate_size": 80, "max_position_embeddings": 20}
LLAMA = {**TEXT, "num_key_value_heads": 2, "intermediate_size": 80, "max_position_embeddings": 20, "head_dim": 12}
VISION = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": 32,
    "patch_size": 8,
}
ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CLASSES = 11


class Answer(nn.Module):
    """A model of the library that takes one or two tensors and answers with tensors alone.

    `takes`: the names of its arguments in the library; `gives`: the outputs to answer with, a tensor if it is one.
    """

    def __init__(self, model: nn.Module, takes: str, gives: str) -> None:
        super().__init__()
        self.model, self.takes, self.gives = model, takes.split(), gives.split()

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        taken = dict(zip(self.takes, (first, second), strict=False))
        told = self.model(**taken, return_dict=True)
        answers = tuple(getattr(told, name) for name in self.gives)
        return answers[0] if len(answers) == 1 else answers


def pictures(name: str, size: int = 32, **config: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """`name`ForImageClassification."""
    model = _model(name, "ForImageClassification", num_labels=CLASSES, **config)
    return Answer(model, "pixel_values", "logits"), (torch.randn(2, 3, size, size),)


def words(name: str, gives: str = "logits", head: str = "ForSequenceClassification", **config: Any) -> Any:
    """An encoder of texts, the second of which is padded."""
    model = _model(name, head, num_labels=6, **config)
    mask = torch.ones(2, 10, dtype=torch.int64)
    mask[1, 7:] = 0
    return Answer(model, "input_ids attention_mask", gives), (torch.randint(3, 97, (2, 10)), mask)


def decoder(name: str, head: str = "ForCausalLM", **config: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = _model(name, head, **ENDS, **config)
    return Answer(model, "input_ids", "logits"), (torch.randint(3, 97, (3, 10)),)


def _model(name: str, head: str, **config: Any) -> nn.Module:
    import transformers

    known = {"GPTNeoX": "GPTNeoXConfig", "GPT2LMHead": "GPT2Config"}
    configuration = getattr(transformers, known.get(name, f"{name}Config"))(**config)
    return getattr(transformers, f"{name}{head}")(configuration)  # type: ignore[no-any-return]


def resnet() -> Any:
    sizes = {"embedding_size": 18, "hidden_sizes": [24, 40, 52], "depths": [1, 2, 1]}
    return pictures("ResNet", **sizes, layer_type="bottleneck", downsample_in_first_stage=True)


def regnet() -> Any:
    return pictures("RegNet", embedding_size=18, hidden_sizes=[24, 40, 56], depths=[1, 2, 1], groups_width=8)


def mobilenet_v1() -> Any:
    return pictures("MobileNetV1", depth_multiplier=0.25, min_depth=6, image_size=32)


def mobilenet_v2() -> Any:
    return pictures("MobileNetV2", depth_multiplier=0.25, min_depth=6, image_size=32, expand_ratio=4)


def efficientnet() -> Any:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=32,
        width_coefficient=0.5,
        depth_coefficient=1.0,
        kernel_sizes=[3, 3, 5],
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        depthwise_padding=[],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 2],
        expand_ratios=[1, 4, 3],
        depth_divisor=2,
        hidden_dim=640,
        num_labels=CLASSES,
    )
    return Answer(EfficientNetForImageClassification(config), "pixel_values", "logits"), (torch.randn(2, 3, 32, 32),)


def convnext() -> Any:
    return pictures("ConvNext", patch_size=2, num_stages=3, hidden_sizes=[22, 36, 52], depths=[1, 2, 1])


def convnext_v2() -> Any:
    return pictures("ConvNextV2", patch_size=2, num_stages=3, hidden_sizes=[22, 36, 52], depths=[1, 1, 1])


def bit() -> Any:
    return pictures("Bit", embedding_size=24, hidden_sizes=[32, 48], depths=[1, 2], num_groups=4)


def swin() -> Any:
    sizes = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 3.0}
    return pictures("Swin", image_size=32, patch_size=4, **sizes)


def vit() -> Any:
    return pictures("ViT", **VISION)


def deit() -> Any:
    return pictures("DeiT", **VISION)


def dinov2() -> Any:
    sizes = {**VISION, "mlp_ratio": 2}
    del sizes["intermediate_size"]
    return pictures("Dinov2", **sizes)


def poolformer() -> Any:
    sizes = {"hidden_sizes": [22, 36], "depths": [2, 2], "num_encoder_blocks": 2, "mlp_ratio": 3.0}
    return pictures("PoolFormer", **sizes, patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1])


def segformer() -> Any:
    sizes = {"hidden_sizes": [16, 28], "depths": [1, 2], "num_attention_heads": [2, 4], "mlp_ratios": [3, 3]}
    stages = {"num_encoder_blocks": 2, "sr_ratios": [4, 2], "patch_sizes": [7, 3], "strides": [4, 2]}
    model = _model("Segformer", "ForSemanticSegmentation", **sizes, **stages, decoder_hidden_size=34, num_labels=5)
    return Answer(model, "pixel_values", "logits"), (torch.randn(2, 3, 32, 32),)


def bert() -> Any:
    return words("Bert", **BERT)


def bert_eager() -> Any:
    return words("Bert", **BERT, attn_implementation="eager")


def bert_masked() -> Any:
    """The head's matrix is the embedding's, with a bias of its own."""
    return words("Bert", head="ForMaskedLM", **BERT)


def distilbert() -> Any:
    return words("DistilBert", vocab_size=97, dim=48, n_layers=2, n_heads=4, hidden_dim=80, max_position_embeddings=20)


def albert() -> Any:
    """One block, called twice; the embedding is narrower."""
    return words("Albert", **BERT, embedding_size=26)


def roberta() -> Any:
    return words("Roberta", **BERT, pad_token_id=1)


def electra() -> Any:
    return words("Electra", **BERT, embedding_size=26)


def mpnet() -> Any:
    return words("MPNet", **BERT)


def squeezebert() -> Any:
    groups = {f"{part}_groups": 2 for part in ("q", "k", "v", "intermediate", "output")}
    return words("SqueezeBert", **BERT, embedding_size=48, **groups, post_attention_groups=1)


def deberta() -> Any:
    more = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 6}
    return words("DebertaV2", **BERT, **more)


def gpt2() -> Any:
    return decoder("GPT2", "LMHeadModel", vocab_size=97, n_positions=20, n_embd=48, n_layer=2, n_head=4, n_inner=80)


def gpt_neox() -> Any:
    """Each head's queries, keys and values stand together in one matrix; a quarter of a head is rotated."""
    return decoder("GPTNeoX", **BERT, rotary_pct=0.5)


def bloom() -> Any:
    return decoder("Bloom", vocab_size=97, hidden_size=48, n_layer=2, n_head=4)


def opt() -> Any:
    return decoder("OPT", **TEXT, ffn_dim=80, max_position_embeddings=20, word_embed_proj_dim=48)


def llama() -> Any:
    return decoder("Llama", **LLAMA)


def qwen2() -> Any:
    return decoder("Qwen2", **{key: value for key, value in LLAMA.items() if key != "head_dim"})


def mistral() -> Any:
    return decoder("Mistral", **LLAMA, sliding_window=6)


def gemma() -> Any:
    """The norm's gain is 1 + its weight; heads are wider than a share of the model."""
    return decoder("Gemma", **{**LLAMA, "head_dim": 14})


def phi3() -> Any:
    """Queries, keys and values in one matrix, gate and up in another."""
    return decoder("Phi3", **{key: value for key, value in LLAMA.items() if key != "head_dim"})


def t5() -> Any:
    sizes = {"vocab_size": 97, "d_model": 48, "d_kv": 14, "d_ff": 80, "num_layers": 2, "num_heads": 4}
    model = _model("T5", "ForConditionalGeneration", **sizes, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    tokens = torch.randint(3, 97, (2, 10)), torch.randint(3, 97, (2, 7))
    return Answer(model, "input_ids decoder_input_ids", "logits"), tokens


def bart() -> Any:
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in BART.items()}
    model = _model("Bart", "ForConditionalGeneration", vocab_size=97, d_model=48, max_position_embeddings=20, **sizes)
    tokens = torch.randint(3, 97, (2, 10)), torch.randint(3, 97, (2, 7))
    return Answer(model, "input_ids decoder_input_ids", "logits"), tokens


BART = {"layers": 1, "attention_heads": 4, "ffn_dim": 80}


def whisper() -> Any:
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in BART.items()}
    places = {"num_mel_bins": 18, "max_source_positions": 26, "max_target_positions": 20}
    model = _model(
        "Whisper",
        "ForConditionalGeneration",
        vocab_size=97,
        d_model=48,
        **sizes,
        **places,
        **ENDS,
        decoder_start_token_id=1,
    )
    given = torch.randn(2, 18, 52), torch.randint(3, 97, (2, 7))
    return Answer(model, "input_features decoder_input_ids", "logits"), given


def wav2vec2() -> Any:
    convolutions = {"conv_dim": (22, 28, 34), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2)}
    places = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
    sizes = {key: value for key, value in BERT.items() if key != "max_position_embeddings"}
    model = _model("Wav2Vec2", "ForCTC", **sizes | {"vocab_size": 31}, **convolutions, **places)
    return Answer(model, "input_values", "logits"), (torch.randn(2, 400),)


def clip() -> Any:
    """Two encoders, of texts and of pictures, that meet in a product of both."""
    text = {**BERT, "hidden_size": 36, "intermediate_size": 60, **ENDS}
    model = _model("CLIP", "Model", text_config=text, vision_config=dict(VISION), projection_dim=26)
    tokens = torch.randint(3, 97, (3, 10))
    tokens[:, -1] = 2
    answers = "logits_per_image text_embeds image_embeds"
    return Answer(model, "input_ids pixel_values", answers), (tokens, torch.randn(2, 3, 32, 32))


def mixtral() -> Any:
    """Each token goes to two experts of four, which are chosen as it runs."""
    return decoder("Mixtral", **{**LLAMA, "num_local_experts": 4})


def mamba() -> Any:
    """A state space: its scan is a loop over the tokens."""
    sizes = {"vocab_size": 97, "hidden_size": 36, "state_size": 6, "num_hidden_layers": 1, "time_step_rank": 5}
    return decoder("Mamba", **sizes)
