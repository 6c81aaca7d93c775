"""A forward that runs through all that its module is made of met what carries our encodings: ``for layer in
self.children(): x = layer(x) + x`` counted one layer more, and answers were twice what they had been.

Right: the module sees its own children and no more; one that goes through its parameters in another way is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import InputError

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=0)
RECIPE = lp.Recipe([lp.Quantize(weights=lp.Int(7), activations=lp.Int(8))])
BATCHES = [torch.randn(8, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(32, 32) for _ in range(3)]


class Children(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for i, layer in enumerate(layers()):
            self.add_module(f"layer{i}", layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x).relu() + x
        return x


class Named(Children):
    def forward(self, x: Tensor) -> Tensor:
        for _, layer in self.named_children():
            x = x + layer(x)
        return x


class Last(nn.Sequential):
    def __init__(self, *held: Any) -> None:
        super().__init__(*(held or layers()))

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            x = layer(x).relu()
        return self[-1](x) * len(self)


class Parts(Last):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self[1:]:
            x = layer(x).relu()
        return self[0](x) + self[-2](x)


class List(nn.ModuleList):
    def __init__(self) -> None:
        super().__init__(layers())

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self):
            x = layer(x) * (i + 1) / len(self)
        return x


class Dict(nn.ModuleDict):
    def __init__(self) -> None:
        super().__init__({f"layer{i}": layer for i, layer in enumerate(layers())})

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.values()], -1) * len(self)


@pytest.mark.parametrize("kind", [Children, Named, Last, Parts, List, Dict])
def test_a_module_sees_its_own_children(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    net = kind().eval()
    small = lp.compress(net, RECIPE, calibrate=BATCHES, target=QUICK)
    assert len(small.data["layers"]) == 3 and not small.data["skipped"]
    expected = net(BATCHES[1])
    small.save(tmp_path / "net.lil")
    for found in (small.model(BATCHES[1]), lp.open(tmp_path / "net.lil")(BATCHES[1])):
        assert found.shape == expected.shape and (found - expected).norm() < 0.05 * expected.norm()
    children = list(small.model.children())
    assert len(children) == 3 and all(isinstance(child, nn.Linear) for child in children)
    again = lp.load(tmp_path / "net.lil", into=kind())
    assert torch.equal(again(BATCHES[0]), small.model(BATCHES[0]))
    assert not any(module.training for module in small.model.train().eval().modules())
    assert {str(x.dtype) for x in small.model.half().parameters()} == {"torch.float16"}


class Penalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layers()[:2]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.second(self.first(x).relu())
        return x, torch.stack([p.square().sum() for p in self.parameters()]).sum()


class Positions(Penalised):
    def forward(self, x: Tensor) -> Any:
        weight, bias, *_ = self.parameters()
        return self.second(nn.functional.linear(x, weight, bias).relu())


@pytest.mark.parametrize("kind", [Penalised, Positions])
def test_one_that_goes_through_its_parameters_is_refused(kind: Callable[[], nn.Module]) -> None:
    with pytest.raises(InputError, match=r"by name \(self.weight\)") as caught:
        lp.compress(kind().eval(), lp.Recipe([lp.Quantize(weights=lp.Int(8))]), calibrate=BATCHES, target=QUICK)
    assert caught.value.where == kind.__name__ and caught.value.why  # type: ignore[attr-defined]
    assert lp.compress(kind().eval(), lp.Recipe([lp.Prune("channels", 0.5)]), calibrate=BATCHES, target=QUICK)
