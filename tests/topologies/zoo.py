"""Architectures that anything which changes a network's shape is tried on: small, with random weights.

Sizes differ from one another wherever an architecture lets them (width 48, 4 heads of 12, 80 inside, 10 tokens, batch
2), so that no rule fits by chance. Normalisations have statistics and gains of their own, no bias is zero. Nothing of
Lilliput's is needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import zoo_hub as hub
import zoo_images as images
import zoo_plain as plain
import zoo_sequences as sequences
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Subject:
    """One architecture: `build` gives the module in eval mode, and a tuple of inputs for it."""

    name: str
    kind: str  # convolutional, recurrent, transformer, other
    make: Callable[[], Built]
    dynamic: Mapping[str | int, Mapping[int, str]] | None = None  # axes that vary; None: the first of every input
    source: str = "torch"  # or the library that the model comes from
    uncaptured: str = ""  # why torch.export cannot have it, where it cannot

    def build(self, seed: int = 0) -> Built:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model, inputs = self.make()
            enliven(model, inputs)
        return model.eval(), inputs


@torch.no_grad()
def enliven(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Draw all parameters anew, so that none is zero or constant, and take statistics about as they come."""
    for name, x in model.named_parameters():
        if name.endswith(("A_log", "dt_proj.bias")):
            continue  # of state spaces, whose steps must stay in bounds
        if x.dim() > 1:
            x.normal_(std=1.2 * x[0].numel() ** -0.5)
        elif "bias" in name.rpartition(".")[2]:
            x.normal_(std=0.2)
        else:
            x.uniform_(0.5, 1.5)
    norms = [m for m in model.modules() if isinstance(getattr(m, "running_var", None), Tensor)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(*inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_var.clamp_(min=0.05).mul_(torch.empty_like(norm.running_var).uniform_(0.5, 1.5))
            norm.running_mean.add_(0.3 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt())


def over(module: type[nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Built]:
    """Inputs of normal numbers."""
    return lambda: (module(), tuple(torch.randn(shape) for shape in shapes))


def reading(module: type[nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Built]:
    """Inputs of tokens."""
    return lambda: (module(), tuple(torch.randint(0, 89, shape) for shape in shapes))


def on_graph(module: type[nn.Module]) -> Callable[[], Built]:
    """13 nodes of 9 features, each the end of some edge, and 40 edges."""

    def make() -> Built:
        ends = torch.cat([torch.arange(13), torch.randint(0, 13, (27,))])
        return module(), (torch.randn(13, 9), torch.stack([torch.randint(0, 13, (40,)), ends]))

    return make


PICTURES = (2, 3, 32, 32)
NODES = {0: {0: "nodes"}}

ZOO = (
    Subject("mlp", "other", over(plain.MLP, (3, 20))),
    Subject("gated mlp", "other", over(plain.Gated, (3, 20))),
    Subject("vgg", "convolutional", over(images.VGG, PICTURES)),
    Subject("resnet-20", "convolutional", over(images.ResNet20, PICTURES)),
    Subject("mobilenet v2, plain", "convolutional", over(images.MobileNetV2, PICTURES)),
    Subject("densenet", "convolutional", over(images.DenseNet, PICTURES)),
    Subject("u-net", "convolutional", over(images.UNet, PICTURES)),
    Subject("feature pyramid", "convolutional", over(images.Pyramid, PICTURES)),
    Subject("inception", "convolutional", over(images.Inception, PICTURES)),
    Subject("shufflenet", "convolutional", over(images.ShuffleNet, PICTURES)),
    Subject("super-resolution", "convolutional", over(images.SuperResolution, (2, 3, 16, 16))),
    Subject("squeeze-and-excite", "convolutional", over(images.SENet, PICTURES)),
    Subject("resnext", "convolutional", over(images.ResNeXt, PICTURES)),
    Subject("hard view", "convolutional", over(plain.HardView, PICTURES)),
    Subject("hard groups", "convolutional", over(plain.HardGroups, PICTURES)),
    Subject("prelu", "convolutional", over(images.PReLUNet, PICTURES)),
    Subject("group norm", "convolutional", over(images.GroupNormNet, PICTURES)),
    Subject("instance norm", "convolutional", over(images.InstanceNormNet, PICTURES)),
    Subject("wavenet", "convolutional", over(plain.Temporal, (2, 5, 24))),
    Subject("conv3d", "convolutional", over(plain.Volumes, (2, 2, 8, 8, 8))),
    Subject("vae", "convolutional", over(plain.VAE, PICTURES)),
    Subject("generator", "convolutional", over(plain.Generator, (2, 24, 1, 1))),
    Subject("discriminator", "convolutional", over(plain.Discriminator, PICTURES)),
    Subject("film", "convolutional", over(plain.Conditioned, PICTURES, (2, 9))),
    Subject("pointnet", "convolutional", over(plain.Points, (2, 3, 17))),
    Subject("graph network", "other", on_graph(plain.GraphNetwork), NODES),
    Subject("graph attention", "other", on_graph(plain.GraphAttention), NODES),
    Subject("early exit", "other", over(plain.EarlyExit, (3, 20)), uncaptured="data-dependent"),
    Subject("siamese", "other", over(plain.Siamese, (3, 20), (3, 20))),
    Subject("experts", "other", over(plain.Experts, (3, 20))),
    Subject("mixer", "other", over(plain.Mixer, PICTURES)),
    Subject("lstm classifier", "recurrent", reading(sequences.LSTMClassifier, (3, 10))),
    Subject("gru tagger", "recurrent", reading(sequences.GRUTagger, (3, 10))),
    Subject("rnn", "recurrent", over(sequences.ElmanNet, (3, 10, 9))),
    Subject("projected lstm", "recurrent", reading(sequences.ProjectedLSTM, (3, 10))),
    Subject("gru cell", "recurrent", reading(sequences.Unrolled, (3, 10))),
    Subject("crnn", "recurrent", over(sequences.CRNN, PICTURES)),
    Subject("vit, fused qkv", "transformer", over(sequences.ViT, PICTURES)),
    Subject("transformer encoder", "transformer", reading(sequences.Encoder, (3, 10))),
    Subject("cross attention", "transformer", over(sequences.CrossAttention, (2, 10, 9))),
    Subject("transformer", "transformer", reading(sequences.Translator, (2, 10), (2, 7))),
    Subject("llama, plain", "transformer", reading(sequences.Llama, (3, 10))),
    Subject("tied embedding", "transformer", reading(sequences.TiedModel, (3, 10))),
    Subject("einsum attention", "transformer", over(sequences.EinsumAttention, (2, 10, 9))),
    *(
        Subject(make.__name__.replace("_", " "), kind, make, dynamic, "transformers")
        for kind, dynamic, makes in (
            ("convolutional", None, (hub.resnet, hub.regnet, hub.mobilenet_v1, hub.mobilenet_v2, hub.efficientnet)),
            ("convolutional", None, (hub.convnext, hub.convnext_v2, hub.bit, hub.poolformer)),
            ("transformer", None, (hub.vit, hub.deit, hub.dinov2, hub.swin, hub.segformer)),
            ("transformer", None, (hub.bert, hub.bert_eager, hub.bert_masked, hub.distilbert, hub.albert)),
            ("transformer", None, (hub.roberta, hub.electra, hub.mpnet, hub.squeezebert, hub.deberta)),
            ("transformer", None, (hub.gpt2, hub.gpt_neox, hub.bloom, hub.opt, hub.llama, hub.qwen2, hub.mistral)),
            ("transformer", None, (hub.gemma, hub.phi3, hub.mixtral, hub.t5, hub.bart, hub.whisper, hub.wav2vec2)),
            ("transformer", {0: {0: "texts"}, 1: {0: "pictures"}}, (hub.clip,)),
            ("recurrent", None, (hub.mamba,)),
        )
        for make in makes
    ),
)


def subject(name: str) -> Subject:
    """The architecture of that name."""
    return {subject.name: subject for subject in ZOO}[name]


__all__ = ["ZOO", "Subject", "subject"]
