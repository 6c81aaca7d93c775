"""A `forward` that writes over its input (`x /= 255`, `x[:, 0] = 0`, `relu_`) changed the batches of the user, whose
second reading was then called a loader that shuffles (pytorch#112429).

Right: the user's data is never written to, and every answer is that on the data as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=1)


def divided(x: Tensor) -> Tensor:
    return x.div_(255)


def erased(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x / 255


def clipped(x: Tensor) -> Tensor:
    x -= 100
    return torch.relu_(x) / 255


class Writes(nn.Module):
    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.write, self.conv, self.last = write, nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.write(x)).mean((2, 3)))


RECIPES: list[Any] = [
    lp.Quantize(weights=lp.Int(8), activations=lp.Int(8)),
    lp.Quantize(weights=lp.Int(4), rounding=lp.rounding.GPTQ()),
    lp.Prune("channels", 0.5, multiple=1),
]


@pytest.mark.parametrize(("write", "step"), list(zip([divided, erased, clipped], RECIPES, strict=True)))
def test_the_users_data_stays(write: Callable[[Tensor], Tensor], step: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [torch.rand(2, 3, 8, 8) * 255 for _ in range(3)]
    kept = [x.clone() for x in batches]
    net = Writes(write).eval()
    task = lp.Task(net, example=batches[0], calibrate=batches, evaluate=batches[1:])
    small = lp.compress(task, lp.Recipe([step]), target=QUICK)
    run = lp.open(small.save(tmp_path / "net.lil"))
    run(batches[0])
    assert all(torch.equal(x, y) for x, y in zip(batches, kept, strict=True))
    expected = small.model(kept[1].clone())
    assert (run(kept[1].clone()) - expected).norm() < 0.02 * expected.norm()
    if not isinstance(step, lp.Prune):
        exact = net(kept[1].clone())
        assert (expected - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("write", [divided, erased, clipped])
def test_training_leaves_it_and_teachers_see_it_as_it_is(write: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    batches = [torch.rand(2, 3, 8, 8) * 255 for _ in range(3)]
    kept = [x.clone() for x in batches]
    asked: list[Tensor] = []

    class Teacher(Writes):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(x.clone())
            return super().forward(x)

    teachers = [Teacher(write).eval(), Teacher(write).eval()]
    terms = (lp.distill.LogitKD(teacher=0), lp.distill.LogitKD(teacher=1))
    task = lp.Task(
        Writes(write).eval(),
        calibrate=batches,
        train=batches,
        validate=batches[:1],
        loss=lambda model, x: model(x).square().mean(),
        teacher=teachers,
    )
    step = lp.Finetune(epochs=1, distill=terms)
    lp.compress(task, lp.Recipe([lp.Prune("channels", 0.5, multiple=1), step]), target=replace(QUICK, seconds=0))
    assert all(torch.equal(x, y) for x, y in zip(batches, kept, strict=True))
    assert asked and all(any(torch.equal(x, y) for y in kept) for x in asked)
