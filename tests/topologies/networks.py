"""The networks that compression and training are checked on: one small one of every kind, with inputs that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


class CNN(nn.Module):
    """Batch norms, a residual add, a grouped and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.point, self.norm2 = nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.stem(x)))
        x = F.relu(self.norm1(self.deep(x))) + x
        x = F.relu6(self.norm2(self.point(x)))
        return self.fc(F.max_pool2d(x, 2).mean((2, 3)))  # type: ignore[no-any-return]


class RNN(nn.Module):
    """The class of a sequence by its last state; `cell` is LSTM or GRU."""

    def __init__(self, cell: type[nn.RNNBase] = nn.LSTM, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(12, 8), nn.Linear(8, 4)
        self.cell = cell(8, 8, layers, batch_first=True, dropout=dropout)  # type: ignore[arg-type,misc]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.cell(self.embed(tokens))[0][:, -1])  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """An encoder with dropout whose output matrix is tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.place = nn.Parameter(torch.randn(5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens) + self.place))  # type: ignore[no-any-return]


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 32)
        self.up1, self.norm = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1), nn.BatchNorm2d(8)
        self.up2 = nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.fc(z).reshape(-1, 8, 2, 2)
        return torch.tanh(self.up2(F.leaky_relu(self.norm(self.up1(x)), 0.2)))


class Discriminator(nn.Module):
    """Whether a picture is a real one: a single logit."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 4, stride=2, padding=1), nn.Conv2d(8, 8, 4, stride=2, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.down2(F.leaky_relu(self.down1(x), 0.2))), 0.2)
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


class VAE(nn.Module):
    """Two heads on one encoder, several outputs, noise in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.spread = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.decode = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.silu(self.encode(x))
        mean, spread = self.mean(h), self.spread(h)
        noise = torch.randn_like(mean) if self.training else 0.1
        return self.decode(mean + torch.exp(spread / 2) * noise), mean, spread


class Graph(nn.Module):
    """Messages along edges given by a dense matrix, twice with the same weights, and a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        for _ in range(2):
            nodes = torch.relu(edges @ self.message(nodes) @ self.mix) + nodes
        return self.out(nodes)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Topology:
    make: Callable[[], nn.Module]
    batch: Callable[[], Any]


def tokens() -> Tensor:
    return torch.randint(0, 12, (4, 5))


TOPOLOGIES = {
    "mlp": Topology(MLP, lambda: torch.randn(4, 8)),
    "cnn": Topology(CNN, lambda: torch.randn(4, 3, 8, 8)),
    "lstm": Topology(RNN, tokens),
    "gru": Topology(lambda: RNN(nn.GRU), tokens),
    "transformer": Topology(Transformer, tokens),
    "generator": Topology(Generator, lambda: torch.randn(4, 8)),
    "discriminator": Topology(Discriminator, lambda: torch.randn(4, 3, 8, 8)),
    "vae": Topology(VAE, lambda: torch.randn(4, 8)),
    "graph": Topology(Graph, lambda: {"nodes": torch.randn(4, 5, 8), "edges": torch.rand(4, 5, 5)}),
}
