"""The golden files, and the net whose file one of them is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
MODULE, ANSWER = HERE / "version2.lil", HERE / "version2-answer.lil"
FORMATS = HERE / "version2-formats.lil"
DELTAS, PRODUCTS = HERE / "version3.lil", HERE / "version2-products.lil"
DIVIDED = HERE / "version2-divided.lil"  # a convolution in parts, and minima beside scales
PACKED = HERE / "version4.lil"  # codes of four bits that the graph holds packed
FILES = (MODULE, ANSWER, FORMATS, DELTAS, PRODUCTS, DIVIDED, PACKED)
BASES = {DELTAS.name: ANSWER}  # files that a file needs beside it
EXPECTED = HERE / "expected.json"
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
)


class Net(nn.Module):
    """A little of everything that a `.lil` of a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 16)
        self.up, self.down = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.thin, self.last = nn.Linear(16, 16, bias=False), nn.Linear(16, 4)
        self.down.weight = self.up.weight
        self.register_buffer("steps", torch.arange(40))
        self.register_buffer("gain", torch.ones(16), persistent=False)
        self.shift = torch.zeros(16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        x = torch.relu(self.fc(x)) * self.gain + self.shift
        x = self.down(torch.tanh(self.up(x)))
        return self.last(torch.relu(self.thin(x)))  # type: ignore[no-any-return]


class Formats(nn.Module):
    """A layer for each number format of weights, and values on grids between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(14))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) + x
        return x


class Products(nn.Module):
    """Layers whose weights are products of two factors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.last = nn.Conv2d(2, 8, 3), nn.Linear(8, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).mean((2, 3))
        return self.last(torch.tanh(self.fc(x)))  # type: ignore[no-any-return]


class Packed(nn.Module):
    """Linear layers that a runtime multiplies by as they lie packed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.flatten(1)[:, :32]))
        return self.last(x)  # type: ignore[no-any-return]


def rows() -> Tensor:
    return drawn(2, 16, seed=98)


def drawn(*shape: int, seed: int) -> Tensor:
    """Numbers like those of a normal distribution, by integers alone, so that every machine has the same."""
    state, found = 2 * seed + 1, []
    for _ in range(4 * int(np.prod(shape))):
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        found.append(state >> 48)
    x = np.array(found, np.int64).reshape(-1, 4).sum(1) - 2 * 65535
    return torch.from_numpy((x / 2**16).astype(np.float32).reshape(shape))


def example() -> Tensor:
    return drawn(2, 2, 6, 6, seed=99)
