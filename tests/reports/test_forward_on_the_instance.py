"""A `forward` set on the instance hides the class's (diffusers#14135, executorch#22069): accelerate's hooks, fx and
`torch.export(…).module()` do so. Values that flow were then not seen, and all that needs them was skipped.

Right: the same layers are encoded as without it, to the same numbers.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

import lilliput as lp

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=1)
IMAGES = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
RECIPE = lp.Recipe([lp.Quantize(weights=lp.Int(4), rounding=lp.rounding.GPTQ(), activations=lp.Int(8))])


def made() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU())
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 8)).eval()


def assigned(net: nn.Module) -> nn.Module:
    net.forward = net.forward  # type: ignore[method-assign]
    return net


def replaced(net: nn.Module) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        for layer in self[:7]:
            x = layer(x)
        return x

    net.forward = types.MethodType(forward, net)  # type: ignore[method-assign]
    return net


def hooked(net: nn.Module) -> nn.Module:
    hooked: nn.Module = add_hook_to_module(net, ModelHook())
    return hooked


def traced(net: nn.Module) -> nn.Module:
    return torch.fx.symbolic_trace(net)


def exported(net: nn.Module) -> nn.Module:
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    return torch.export.export(net, (IMAGES[0],), dynamic_shapes=(batch,)).module()


@pytest.fixture(scope="module")
def plain() -> lp.results.Result:
    return lp.compress(made(), RECIPE, calibrate=IMAGES, target=QUICK)


@pytest.mark.parametrize("wrap", [assigned, replaced, hooked, traced, exported])
def test_values_are_seen_as_without_it(
    wrap: Callable[[nn.Module], nn.Module], plain: lp.results.Result, tmp_path: Path
) -> None:
    net = wrap(made())
    before = copy.copy(vars(net))
    small = lp.compress(net, RECIPE, calibrate=IMAGES, target=QUICK)
    assert vars(net).keys() == before.keys() and vars(net).get("forward") is before.get("forward")
    assert torch.equal(net(IMAGES[0]), made()(IMAGES[0]))
    assert [row["activations"] for row in small.data["layers"]] == [row["activations"] for row in plain.data["layers"]]
    apart = (small.model(IMAGES[1]) - plain.model(IMAGES[1])).norm() / plain.model(IMAGES[1]).norm()
    assert apart < 0.01  # the graph of fx calls functions in place of modules, whose values have other names
    beyond, run = 10 * IMAGES[1], lp.open(small.save(tmp_path / "net.lil"))  # of the ranges, which the file cuts too
    cut = small.model(beyond)
    assert (run(beyond) - cut).norm() < 0.1 * cut.norm() < 0.1 * (net(beyond) - cut).norm()
    copied = copy.deepcopy(small.model)
    assert torch.equal(copied(IMAGES[1]), small.model(IMAGES[1]))


def test_a_traced_network_keeps_its_hooks() -> None:
    net = traced(made())
    net.register_forward_hook(lambda module, inputs, output: 2 * output)
    small = lp.compress(net, RECIPE, calibrate=IMAGES, target=QUICK)
    expected = net(IMAGES[0])
    assert (small.model(IMAGES[0]) - expected).norm() < 0.3 * expected.norm()
    assert torch.equal(copy.deepcopy(small.model)(IMAGES[0]), small.model(IMAGES[0]))
