"""Small networks of blocks, written by hand, and what they are streamed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, WORDS = 16, 24


class Angles(nn.Module):
    """Buffers that no checkpoint has: they follow from what it keeps of its arguments."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("speed", 1 / 10 ** (torch.arange(0, width, 2) / width), persistent=False)
        self.scale = torch.tensor([0.5])

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.arange(ids.shape[1])[:, None] * self.speed * self.scale
        return angles.cos(), angles.sin()


class Block(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width, bias=bias), nn.Linear(2 * width, width, bias=bias)
        self.register_buffer("gain", torch.ones(width))

    def forward(self, x: Tensor, turned: tuple[Tensor, Tensor], memory: Tensor | None = None) -> Tensor:
        cos, sin = turned
        even, odd = x[..., ::2], x[..., 1::2]
        y = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
        y = y if memory is None else y + memory.mean(1, keepdim=True)
        return x + self.gain * self.down(torch.relu(self.up(self.norm(y))))


class Decoder(nn.Module):
    """Words in, scores of words out: an embedding, blocks with angles beside, a norm and a head."""

    def __init__(self, depth: int = 3, tied: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.angles = Angles(WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, bias) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x, turned = self.embed(ids), self.angles(ids)
        for block in self.blocks:
            x = block(x, turned=turned)
        return self.head(self.norm(x))


class Pair(nn.Module):
    """Two lists of blocks: what the first gives in the end, every block of the second reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.angles = nn.Embedding(WORDS, WIDTH), Angles(WIDTH)
        self.one = nn.ModuleList(Block(WIDTH, False) for _ in range(2))
        self.other = nn.ModuleList(Block(WIDTH, False) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        turned, memory = self.angles(ids), self.embed(ids)
        for block in self.one:
            memory = block(memory, turned)
        x = self.embed(ids.flip(1))
        for block in self.other:
            x = block(x, turned, memory=memory)
        return x


class Skipping(Decoder):
    """The last block reads what the first gave."""

    def forward(self, ids: Tensor) -> Tensor:
        x, turned = self.embed(ids), self.angles(ids)
        kept: list[Tensor] = []
        for block in self.blocks:
            x = block(x if len(kept) < 2 else x + kept[0], turned)
            kept.append(x)
        return self.head(x)


class Looping(Decoder):
    """Goes through its blocks twice."""

    def forward(self, ids: Tensor) -> Tensor:
        x, turned = self.embed(ids), self.angles(ids)
        for block in (*self.blocks, *self.blocks):
            x = block(x, turned)
        return self.head(x)


class Pictures(nn.Sequential):
    """Convolutions, and stages of them in a sequence."""

    def __init__(self) -> None:
        def stage() -> nn.Module:
            return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

        stages = nn.Sequential(stage(), stage())
        super().__init__(nn.Conv2d(3, 8, 3), stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def hollow(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().eval()


def words(count: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randint(0, WORDS, (4, 6)) for _ in range(count)]


def state(model: nn.Module) -> dict[str, Any]:
    return dict(model.state_dict())
