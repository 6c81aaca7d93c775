"""Architectures of the zoo on signals, volumes, graphs and lists of numbers, and ones that draw, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(20, 48),
            nn.BatchNorm1d(48),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(48, 36),
            nn.BatchNorm1d(36),
            nn.GELU(),
            nn.Linear(36, 28),
            nn.Tanh(),
            nn.Linear(28, 10),
        )


class Gated(nn.Module):
    """Halves of one layer's output multiply each other, first by `glu`, then by slices; a softmax over width."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(20, 2 * 26), nn.Linear(26, 34)
        self.gate, self.last = nn.Linear(34, 2 * 34), nn.Linear(34, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.outer(F.glu(self.inner(x), dim=-1))
        y = self.gate(x)
        x = x + torch.sigmoid(y[:, : y.shape[1] // 2]) * y[:, y.shape[1] // 2 :]
        return self.last(torch.softmax(x, -1) * x)


class VAE(nn.Module):
    """Convolutions down, two heads, transposed convolutions up; noise in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 18, 4, 2, 1), nn.Conv2d(18, 30, 4, 2, 1)
        self.mean, self.spread = nn.Linear(30 * 64, 22), nn.Linear(30 * 64, 22)
        self.decode = nn.Linear(22, 26 * 64)
        self.up1, self.up2 = nn.ConvTranspose2d(26, 20, 4, 2, 1), nn.ConvTranspose2d(20, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x))))
        mean, spread = self.mean(h.flatten(1)), self.spread(h.flatten(1))
        noise = torch.randn_like(mean) if self.training else 0.1
        z = mean + torch.exp(0.5 * spread) * noise
        h = F.relu(self.decode(z)).view(-1, 26, 8, 8)
        return torch.sigmoid(self.up2(F.relu(self.up1(h)))), mean, spread


class Generator(nn.Module):
    """Noise of shape [n, z, 1, 1] to pictures (DCGAN)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride, padding in ((24, 52, 1, 0), (52, 38, 2, 1), (38, 22, 2, 1)):
            layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(22, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z)


class Discriminator(nn.Module):
    """Whether a picture is a real one: a single logit."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 18, 4, 2, 1), nn.Conv2d(18, 34, 4, 2, 1, bias=False)
        self.norm2, self.down3 = nn.BatchNorm2d(34), nn.Conv2d(34, 50, 4, 2, 1, bias=False)
        self.norm3, self.out = nn.BatchNorm2d(50), nn.Conv2d(50, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.down1(x), 0.2)
        x = F.leaky_relu(self.norm2(self.down2(x)), 0.2)
        x = F.leaky_relu(self.norm3(self.down3(x)), 0.2)
        return self.out(x).squeeze((1, 2, 3))


class GraphNetwork(nn.Module):
    """Messages along edges [2, e], summed at their ends, with a gated update; a mean over all nodes at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message = nn.Linear(9, 28), nn.Linear(2 * 28, 36)
        self.update, self.norm, self.out = nn.Linear(28 + 36, 28), nn.LayerNorm(28), nn.Linear(28, 5)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        x = torch.relu(self.embed(nodes))
        for _ in range(2):
            told = torch.relu(self.message(torch.cat([x[source], x[target]], -1)))
            heard = torch.zeros(x.shape[0], told.shape[1]).index_add(0, target, told)
            x = self.norm(x + torch.relu(self.update(torch.cat([x, heard], -1))))
        return self.out(x)


class GraphAttention(nn.Module):
    """Edges weighed by a softmax over those that end in the same node, gathered with `scatter_add`; heads 3 of 14."""

    def __init__(self, heads: int = 3, size: int = 14) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.project, self.out = nn.Linear(9, heads * size, bias=False), nn.Linear(heads * size, 5)
        self.ends = nn.Parameter(torch.randn(2, heads, size))

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        x = self.project(nodes).view(-1, self.heads, self.size)
        score = (x[source] * self.ends[0]).sum(-1) + (x[target] * self.ends[1]).sum(-1)  # [e, heads]
        score = torch.exp(F.leaky_relu(score, 0.2).clamp(max=8))
        index = target[:, None].expand_as(score)
        total = torch.zeros(nodes.shape[0], self.heads).scatter_add(0, index, score)
        told = x[source] * (score / total[target])[..., None]
        x = torch.zeros_like(x).index_add(0, target, told)
        return self.out(F.elu(x.flatten(1)))


class Points(nn.Module):
    """Points [n, 3, p] one by one, the largest of each feature over all of them, and both together (PointNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 26, 1), nn.Conv1d(26, 42, 1)
        self.norm1, self.norm2 = nn.BatchNorm1d(26), nn.BatchNorm1d(42)
        self.mix, self.out = nn.Conv1d(26 + 42, 30, 1), nn.Conv1d(30, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        local = F.relu(self.norm1(self.one(x)))
        whole = F.relu(self.norm2(self.two(local))).max(2, keepdim=True)[0]
        x = torch.cat([local, whole.expand(-1, -1, x.shape[2])], 1)
        return self.out(F.relu(self.mix(x)))


class Siamese(nn.Module):
    """One tower for two inputs; the features' difference and product are judged."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(20, 44), nn.ReLU(), nn.Linear(44, 26))
        self.judge = nn.Sequential(nn.Linear(2 * 26, 34), nn.ReLU(), nn.Linear(34, 1))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.tower(a), self.tower(b)
        return self.judge(torch.cat([(a - b).abs(), a * b], 1)), F.cosine_similarity(a, b)


class Conditioned(nn.Module):
    """A second input scales and shifts the channels of the first (FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 26, 3, 2), nn.BatchNorm2d(26, affine=False)
        self.condition = nn.Sequential(nn.Linear(9, 34), nn.SiLU(), nn.Linear(34, 2 * 26))
        self.conv2, self.fc = nn.Conv2d(26, 42, 3, 2), nn.Linear(42, 11)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        gain, shift = self.condition(given)[:, :, None, None].chunk(2, dim=1)
        x = F.relu(self.norm(self.conv1(x)) * (1 + gain) + shift)
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


class Experts(nn.Module):
    """Four experts in one tensor, all of them run and mixed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(20, 30), nn.Linear(30, 4)
        self.inner, self.outer = nn.Parameter(torch.randn(4, 30, 46)), nn.Parameter(torch.randn(4, 46, 30))
        self.norm, self.out = nn.LayerNorm(30), nn.Linear(30, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        gates = torch.softmax(self.gate(x), -1)  # [n, 4]
        y = torch.bmm(F.gelu(torch.matmul(x, self.inner)), self.outer)  # [4, n, 30]
        return self.out(self.norm(x + (gates.t()[:, :, None] * y).sum(0)))


class Mixer(nn.Module):
    """Layers over the places and over the channels in turns (MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 40, 8, 8)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(40), nn.LayerNorm(40), nn.LayerNorm(40)
        self.tokens = nn.Sequential(nn.Linear(16, 26), nn.GELU(), nn.Linear(26, 16))
        self.channels = nn.Sequential(nn.Linear(40, 68), nn.GELU(), nn.Linear(68, 40))
        self.head = nn.Linear(40, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(self.norm3(x).mean(1))


class EarlyExit(nn.Module):
    """A branch that depends on what flows: there is no one graph of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.more, self.out = nn.Linear(20, 34), nn.Linear(34, 34), nn.Linear(34, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if x.mean() < 1:
            x = x + torch.relu(self.more(x))
        return self.out(x)


class HardView(nn.Module):
    """The width and the size of the last maps stand in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 20, 5), nn.Conv2d(20, 34, 5), nn.Conv2d(34, 64, 2)
        self.fc1, self.fc2 = nn.Linear(64 * 4 * 4, 50), nn.Linear(50, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x))
        x = x.view(-1, 64 * 4 * 4)
        return self.fc2(F.relu(self.fc1(x)))


class HardGroups(nn.Module):
    """Six groups of eight channels, each weighed by its own largest value: 6 and 8 stand in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.mix = nn.Conv2d(3, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.Conv2d(48, 26, 1)
        self.fc = nn.Linear(26, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.conv(x)))
        x = x.view(x.shape[0], 6, 8, 16, 16)
        x = x / (1 + x.abs().amax(2, keepdim=True))
        x = F.relu(self.mix(x.reshape(-1, 48, 16, 16)))
        return self.fc(x.mean((2, 3)))


class Temporal(nn.Module):
    """Dilated convolutions over a signal, gated, with residual and skip paths (WaveNet)."""

    def __init__(self, width: int = 28, skip: int = 36) -> None:
        super().__init__()
        self.stem = nn.Conv1d(5, width, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(width, 2 * 20, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.residual = nn.ModuleList(nn.Conv1d(20, width, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(20, skip, 1) for _ in range(3))
        self.norm, self.out = nn.BatchNorm1d(skip), nn.Conv1d(skip, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, skipped = self.stem(x), []
        for dilated, residual, skip in zip(self.dilated, self.residual, self.skip, strict=True):
            signal, gate = dilated(x).chunk(2, dim=1)
            y = torch.tanh(signal) * torch.sigmoid(gate)
            skipped.append(skip(y))
            x = x + residual(y)
        return self.out(self.norm(torch.relu(sum(skipped))))


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(2, 18, 3, padding=1),
            nn.BatchNorm3d(18),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Conv3d(18, 30, 3, padding=1, groups=3),
            nn.BatchNorm3d(30),
            nn.LeakyReLU(0.1),
            nn.AdaptiveAvgPool3d(1),
        )
        self.fc = nn.Linear(30, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))
