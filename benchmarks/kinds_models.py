"""A network of every kind, of a size that its data can train in about a minute.

Blocks, and whole networks where they fit, are those that pruning is tested on (tests/topologies) and that other
benchmarks train.
"""

from __future__ import annotations

import fashion
import recurrent
import shrunk  # noqa: F401  # says where tests/topologies is
import torch
import zoo_hub as hub
import zoo_images as images
import zoo_plain as plain
import zoo_sequences as sequences
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, LATENT, NOISE = 10, 16, 32
CHARACTERS, STEPS = 97, 128  # of the text that GRU and decoder foretell: the most frequent, and at a time
CLS = recurrent.WORDS  # the token before every message


def mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 256), nn.BatchNorm1d(256), nn.ReLU()),
        *(nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, CLASSES)),
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        *(images.block(1, 24), nn.MaxPool2d(2), images.block(24, 48), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(48 * 49, 128), nn.ReLU(), nn.Linear(128, CLASSES)),
    )


def resnet() -> nn.Module:
    return fashion.ResNet(1)


def mobilenet() -> nn.Module:
    net = fashion.MobileNet()
    net.stem[0] = nn.Conv2d(1, net.stem[0].out_channels, 3, 2, 1, bias=False)
    return net


def densenet() -> nn.Module:
    net = images.DenseNet()
    net.stem = nn.Conv2d(1, net.stem.out_channels, 3, 2, 1, bias=False)
    net.fc = nn.Linear(net.fc.in_features, CLASSES)
    return net


def unet() -> nn.Module:
    net = images.UNet()
    net.down1 = images.block(1, 18)
    net.out = nn.Conv2d(net.out.in_channels, 1, 1)
    return net


def lstm() -> nn.Module:
    return recurrent.Classifier()


class GRU(nn.Module):
    """Which character comes next, at every step."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.embed = nn.Embedding(CHARACTERS, 64)
        self.gru, self.head = nn.GRU(64, width, batch_first=True), nn.Linear(width, CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(text))[0])  # type: ignore[no-any-return]


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    places = recurrent.TOKENS + 1
    config = BertConfig(vocab_size=CLS + 1, max_position_embeddings=places, num_labels=2, **sizes)
    return hub.Answer(BertForSequenceClassification(config), "input_ids attention_mask", "logits")


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=CHARACTERS, intermediate_size=256, max_position_embeddings=STEPS, **sizes)
    return hub.Answer(LlamaForCausalLM(config), "input_ids", "logits", caches=True)


class ViT(nn.Module):
    """Sixteen patches of 7 × 7 pixels and a token for the class."""

    def __init__(self, width: int = 96, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, 7)
        self.cls, self.places = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.randn(1, 17, width) / 10)
        self.blocks = nn.Sequential(*(sequences.ViTBlock(width, heads, 2 * width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


class VAE(nn.Module):
    """Convolutions down, two heads, transposed convolutions up; the noise is an input, so that answers repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU())
        self.wide = nn.Linear(64 * 49, 128)
        self.mean, self.spread = nn.Linear(128, LATENT), nn.Linear(128, LATENT)
        self.narrow, self.spill = nn.Linear(LATENT, 128), nn.Linear(128, 64 * 49)
        self.up1, self.up2 = nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ConvTranspose2d(32, 1, 4, 2, 1)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the pixels, and mean and logarithm of the variance of what is between."""
        h = F.relu(self.wide(self.down(x).flatten(1)))
        mean, spread = self.mean(h), self.spread(h)
        h = F.relu(self.spill(F.relu(self.narrow(mean + torch.exp(spread / 2) * noise))))
        return self.up2(F.relu(self.up1(h.unflatten(1, (-1, 7, 7))))), mean, spread


def generator() -> nn.Module:
    """Noise [n, NOISE, 1, 1] to pictures (DCGAN, Radford et al. 2016, arXiv 1511.06434)."""
    return nn.Sequential(
        *(nn.ConvTranspose2d(NOISE, 64, 7, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Tanh()),
    )


def discriminator() -> nn.Module:
    """Whether a picture is a real one: a single logit, which no other picture of the batch has to do with."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(64 * 49, 1)),
    )


def graph() -> nn.Module:
    net = plain.GraphNetwork()
    net.embed, net.out = nn.Linear(64, net.embed.out_features), nn.Linear(net.out.in_features, CLASSES)
    return net
