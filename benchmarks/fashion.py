"""Fashion-MNIST, 60,000 and 10,000 pictures of clothes, and residual networks of its size.

The files are those of Debian's package: `apt-get install dataset-fashion-mnist`, or unpack it (`dpkg -x`) anywhere and
name the folder in FASHION_MNIST.
"""

from __future__ import annotations

import gzip
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lilliput as lp

FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
MEAN, DEVIATION = 0.2860, 0.3530  # of the pixels of the training set, from 0 to 1


def read(part: str) -> tuple[Tensor, Tensor]:
    """Pictures [n, 1, 28, 28] with mean 0 and deviation 1, and their classes; `part` is train or t10k."""
    try:
        x, y = (_idx(FOLDER / f"{part}-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    except FileNotFoundError as error:
        sys.exit(
            f"{error.filename}: not there; apt-get install dataset-fashion-mnist, or name its folder in FASHION_MNIST"
        )
    pictures = torch.from_numpy(x).unsqueeze(1).float() / 255
    return (pictures - MEAN) / DEVIATION, torch.from_numpy(y).long()


def _idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An array of bytes in the IDX format: a magic number that ends in the count of axes, their sizes, the elements."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, ">i4", axes, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def batches(pictures: Tensor, labels: Tensor, size: int = 128) -> DataLoader[Any]:
    """Batches in an order that torch's random numbers decide."""
    return DataLoader(TensorDataset(pictures, labels), batch_size=size, shuffle=True, drop_last=True)


class Block(nn.Module):
    """Two convolutions around which the input is added, projected where its size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.short = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.short(x))


class ResNet(nn.Module):
    """ResNet of 6n + 2 layers in three stages (He et al., 2015, arXiv 1512.03385, section 4.2); 16 is their width."""

    def __init__(self, n: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, width, 2 * width, 4 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Block(widths[i] if j == 0 else widths[i + 1], widths[i + 1], 2 if i and not j else 1)
                    for j in range(n)
                )
            )
            for i in range(3)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Inverted(nn.Module):
    """Widened by a 1 × 1 convolution, filtered channel by channel, narrowed again; the input is added if it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = inputs * widening
        self.layers = nn.Sequential(
            *_convolution(inputs, wide, 1),
            *_convolution(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class MobileNet(nn.Module):
    """Inverted residuals with ReLU6 (Sandler et al., 2018, arXiv 1801.04381), sized for 28 × 28 pixels."""

    def __init__(self) -> None:
        super().__init__()
        stages = ((16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1), (40, 64, 1), (64, 64, 1))
        self.stem = nn.Sequential(*_convolution(1, 16, 3))
        self.blocks = nn.Sequential(*(Inverted(inputs, outputs, stride, 4) for inputs, outputs, stride in stages))
        self.last = nn.Sequential(*_convolution(64, 256, 1))
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU6()]


def resnet20() -> nn.Module:
    """A ResNet-20 trained for three epochs (kept in out/, made again when it is not there)."""
    torch.manual_seed(0)
    return _trained(ResNet(3), "resnet20-fashion.lil", epochs=3)


def mobilenet() -> nn.Module:
    """A small MobileNetV2 trained for two epochs (kept in out/, made again when it is not there)."""
    torch.manual_seed(0)
    return _trained(MobileNet(), "mobilenet-fashion.lil", epochs=2)


def _trained(net: nn.Module, name: str, epochs: int) -> nn.Module:
    net, kept = net.to(memory_format=torch.channels_last), Path("out") / "bench" / name
    if not kept.exists():
        step = lp.Finetune(epochs=epochs, optimizer="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine")
        step = replace(step, warmup=0.1, precision="bf16")
        trained = lp.train(lp.Task(net, train=batches(*read("train")), loss=loss), step).model
        kept.parent.mkdir(parents=True, exist_ok=True)
        lp.save(kept, trained)
    return lp.load(kept, into=net).eval()


def loss(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def right(model: nn.Module, pictures: Tensor, labels: Tensor) -> Tensor:
    """1 for each picture whose class is found, else 0."""
    answers = [model(part).argmax(1) for part in pictures.split(500)]
    return (torch.cat(answers) == labels).float()
