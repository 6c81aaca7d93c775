"""Architectures of the zoo that read pictures through convolutions, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class VGG(nn.Module):
    """Every place of the last maps has rows of its own in the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 18), nn.MaxPool2d(2), block(18, 30), nn.MaxPool2d(2), block(30, 42), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Linear(42 * 16, 60), nn.ReLU(), nn.Dropout(), nn.Linear(60, 11))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 18)
        widths = [(18, 18, 1), (18, 18, 1), (18, 18, 1), (18, 26, 2), (26, 26, 1), (26, 26, 1), (26, 44, 2)]
        self.blocks = nn.Sequential(*(BasicBlock(*w) for w in [*widths, (44, 44, 1), (44, 44, 1)]))
        self.fc = nn.Linear(44, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        self.adds = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 18, stride=2),
            InvertedResidual(18, 22, 1, 3),
            InvertedResidual(22, 22, 1, 3),
            InvertedResidual(22, 30, 2, 4),
            InvertedResidual(30, 30, 1, 2),
            block(30, 52, 1),
        )
        self.classifier = nn.Linear(52, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


class DenseLayer(nn.Module):
    """Normalised before it is convolved: what comes in was put together from all layers before."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, y], 1)


class DenseNet(nn.Module):
    def __init__(self, growth: int = 14) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1, bias=False)
        first, between = 20 + 3 * growth, 34
        self.dense1 = nn.Sequential(*(DenseLayer(20 + i * growth, growth) for i in range(3)))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(first), nn.ReLU(), nn.Conv2d(first, between, 1, bias=False), nn.AvgPool2d(2)
        )
        self.dense2 = nn.Sequential(*(DenseLayer(between + i * growth, growth) for i in range(2)))
        self.norm, self.fc = nn.BatchNorm2d(between + 2 * growth), nn.Linear(between + 2 * growth, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.dense2(self.transition(self.dense1(self.stem(x))))))
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class UNet(nn.Module):
    """What went down is put beside what comes up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = block(3, 18), block(18, 26), block(26, 44)
        self.up2, self.mix2 = nn.ConvTranspose2d(44, 28, 2, 2), block(28 + 26, 30)
        self.up1, self.mix1 = nn.ConvTranspose2d(30, 22, 2, 2), block(22 + 18, 20)
        self.out = nn.Conv2d(20, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.up2(self.bottom(F.max_pool2d(second, 2)))
        x = self.up1(self.mix2(torch.cat([second, x], 1)))
        return self.out(self.mix1(torch.cat([first, x], 1)))


class Pyramid(nn.Module):
    """Features of three scales added into one another, a head shared by all, and a tuple of answers."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, 18, stride=2), block(18, 26, stride=2), block(26, 44, stride=2)])
        self.side = nn.ModuleList([nn.Conv2d(n, 34, 1) for n in (18, 26, 44)])
        self.head = nn.Sequential(nn.Conv2d(34, 30, 3, padding=1), nn.ReLU(), nn.Conv2d(30, 7, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for down, side in zip(self.down, self.side, strict=True):
            x = down(x)
            levels.append(side(x))
        second = levels[1] + F.interpolate(levels[2], scale_factor=2.0)
        first = levels[0] + F.interpolate(second, scale_factor=2.0)
        return self.head(first), self.head(second), self.head(levels[2])


class Inception(nn.Module):
    """Branches of different widths, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 20, stride=2)
        self.one, self.three = block(20, 14, 1), nn.Sequential(block(20, 18, 1), block(18, 26))
        self.five, self.pooled = nn.Sequential(block(20, 12, 1), block(12, 22, 5)), block(20, 10, 1)
        self.last, self.fc = block(14 + 26 + 22 + 10, 46), nn.Linear(46, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [self.one(x), self.three(x), self.five(x), self.pooled(F.max_pool2d(x, 3, 1, 1))]
        return self.fc(self.last(torch.cat(branches, 1)).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are convolved; then they are interleaved (ShuffleNet V2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            block(half, half, 1),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            block(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat((kept, self.branch(changed)), dim=1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, channels, height, width)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.units = block(3, 36, stride=2), nn.Sequential(ShuffleUnit(36), ShuffleUnit(36))
        self.last, self.fc = block(36, 50, 1), nn.Linear(50, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.units(self.stem(x))).mean([2, 3]))


class SuperResolution(nn.Module):
    """Nine channels become the 3 × 3 pixels of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 26, 5, padding=2), nn.Conv2d(26, 26, 3, padding=1)
        self.wide, self.shuffle = nn.Conv2d(26, 20 * 9, 3, padding=1), nn.PixelShuffle(3)
        self.last = nn.Conv2d(20, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = x + torch.relu(self.body(x))
        return self.last(torch.relu(self.shuffle(self.wide(x))))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.size()
        gates = F.hardsigmoid(self.gate(self.pool(x).view(batch, channels)))
        return x * gates.view(batch, channels, 1, 1).expand_as(x)


class SENet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = block(3, 22, stride=2), block(22, 38)
        self.squeeze1, self.squeeze2 = SqueezeExcite(22, 6), SqueezeExcite(38, 10)
        self.act, self.fc = nn.Hardswish(), nn.Linear(38, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze1(self.stem(x))
        return self.fc(self.act(self.squeeze2(self.deep(x))).mean((2, 3)))


class ResNeXt(nn.Module):
    """Bottlenecks whose middle convolutions have 4 groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 30, stride=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(block(30, inner, 1), block(inner, inner, groups=4), nn.Conv2d(inner, 30, 1))
            for inner in (40, 56)
        )
        self.fc = nn.Linear(30, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner in self.blocks:
            x = F.relu(x + inner(x))
        return self.fc(x.mean((2, 3)))


class PReLUNet(nn.Module):
    """Slopes of its own for every channel, and one slope for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 22, 3, 2), nn.PReLU(22)
        self.conv2, self.act2 = nn.Conv2d(22, 38, 3, 2), nn.PReLU()
        self.fc1, self.act3, self.fc2 = nn.Linear(38, 46), nn.PReLU(46), nn.Linear(46, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.fc2(self.act3(self.fc1(x.mean((2, 3)))))


class GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 24, 3, 2, 1), nn.GroupNorm(4, 24)
        self.conv2, self.norm2 = nn.Conv2d(24, 24, 3, 1, 1), nn.GroupNorm(6, 24)
        self.conv3, self.norm3, self.fc = nn.Conv2d(24, 44, 3, 2, 1), nn.GroupNorm(1, 44), nn.Linear(44, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        x = x + F.silu(self.norm2(self.conv2(x)))
        return self.fc(F.silu(self.norm3(self.conv3(x))).mean((2, 3)))


class InstanceNormNet(nn.Module):
    """Style transfer: each map normalised by itself, mirrored edges, up again by resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm1 = nn.Conv2d(3, 22, 3, 2), nn.InstanceNorm2d(22, affine=True)
        self.mid, self.norm2 = nn.Conv2d(22, 22, 3), nn.InstanceNorm2d(22, affine=True)
        self.up, self.norm3 = nn.Conv2d(22, 14, 3), nn.InstanceNorm2d(14)
        self.out, self.pad = nn.Conv2d(14, 3, 3), nn.ReflectionPad2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.down(self.pad(x))))
        x = x + F.relu(self.norm2(self.mid(self.pad(x))))
        x = F.interpolate(x, size=(32, 32), mode="nearest")
        return torch.sigmoid(self.out(self.pad(F.relu(self.norm3(self.up(self.pad(x)))))))
