"""What Python makes of a tensor's values (`.item()`, `.tolist()`, NumPy, `if`) is a constant of the captured graph,
which then answers every input with the value of one (pytorch#157734 and its like).

Right: the graph is asked about inputs that differ in each argument before any work, and one that does not follow them
is refused; with the value as a tensor it works.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import LilliputError

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=1)


def remembered(net: Any, x: Tensor, scale: Tensor) -> Tensor:
    """Reads the value once, as code does that would be traced, and goes on with the number."""
    number = net.numbers.setdefault("scale", float(scale.detach().reshape(-1)[0]) if type(scale) is Tensor else 0.25)
    return net.layer(x) * number


def by_branch(net: Any, x: Tensor, scale: Tensor) -> Tensor:
    return net.layer(x) if scale.sum() > 0 else -net.layer(x)


def by_numpy(net: Any, x: Tensor, scale: Tensor) -> Tensor:
    return net.layer(x) * float(scale.numpy().sum())


class Net(nn.Module):
    def __init__(self, how: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.how, self.layer, self.numbers = how, nn.Linear(16, 16), {}

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.how(self, x, scale)


@pytest.mark.parametrize("how", [remembered, by_branch, by_numpy])
def test_a_graph_that_does_not_follow_an_argument_is_refused(how: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(4, 16), torch.full((4, 1), float(i))) for i in range(1, 3)]
    with pytest.raises(LilliputError) as refused:
        lp.compress(lp.Task(Net(how), calibrate=batches), lp.Recipe([lp.Quantize()]), target=QUICK)
    assert refused.value.next
    assert "please report" not in str(refused.value)


def test_the_remedy_works(tmp_path: Path) -> None:
    net = Net(lambda net, x, scale: net.layer(x) * scale).eval()
    batches = [(torch.randn(4, 16), torch.full((4, 1), float(i))) for i in range(1, 3)]
    small = lp.compress(lp.Task(net, calibrate=batches), lp.Recipe([lp.Quantize()]), target=QUICK)
    run = lp.open(small.save(tmp_path / "net.lil"))
    for batch in batches:
        assert (run(*batch) - net(*batch)).norm() < 0.02 * net(*batch).norm()
