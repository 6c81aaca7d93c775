"""A network that draws random numbers in eval mode, as `F.dropout(x)` does, was told to "report the layers"
(pytorch#60828 and its like): nothing can be compared where each run answers otherwise.

Right: refused before any work, with the call that draws named; the remedy works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lilliput as lp
from lilliput.errors import InputError

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=1)


class Net(nn.Module):
    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(64, 64), nn.Linear(64, 8), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


@pytest.mark.parametrize(
    ("between", "named"),
    [
        (lambda net, x: F.dropout(x), ":dropout#0"),
        (lambda net, x: x + torch.randn_like(x), ":randn_like#0"),
        (lambda net, x: x * torch.bernoulli(torch.full_like(x, 0.5)), ":bernoulli#0"),
    ],
)
def test_it_is_refused_by_the_call_that_draws(between: Callable[[Any, Tensor], Tensor], named: str) -> None:
    state = torch.random.get_rng_state()
    with pytest.raises(InputError, match="answers the same input differently each time") as refused:
        lp.compress(Net(between), calibrate=[torch.ones(8, 64)], target=QUICK)
    assert refused.value.where == named
    assert "training=self.training" in str(refused.value)
    assert state.shape == torch.random.get_rng_state().shape


def test_the_remedy_works() -> None:
    net = Net(lambda net, x: F.dropout(x, training=net.training)).eval()
    x = torch.randn(8, 64)
    small = lp.compress(net, lp.Recipe([lp.Quantize()]), calibrate=[x], target=QUICK)
    assert (small.model(x) - net(x)).norm() < 0.02 * net(x).norm()
