"""Arguments that the module takes and does not read, as a mask that its configuration leaves unused.

Found by the grammar: OpenVINO keeps an input that nothing reads when it opens a path, and drops it when it opens bytes.
So `lp.open` refused the file that `compress` had just written: "has other inputs or outputs than the module". Right is
the module's own answer, whatever is given for what is not read.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp


class Reads(nn.Module):
    """Reads the second of three."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, before: Tensor, x: Tensor, after: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize(
    "target", [lp.targets.OnnxRuntime(threads=1), lp.targets.OpenVino(threads=1)], ids=lambda t: t.name
)
def test_what_is_not_read_is_given_all_the_same(
    target: lp.targets.OnnxRuntime | lp.targets.OpenVino, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, x = Reads().eval(), torch.randn(3, 8)
    given = (torch.randn(3, 2), x, torch.randn(3, 8))
    lp.save(tmp_path / "net.lil", net, example=given, target=target)
    expected = x @ net.linear.weight.detach().T + net.linear.bias.detach()
    run = lp.open(tmp_path / "net.lil", threads=1)
    close(run(*given), expected)
    close(run(torch.full((3, 2), 9.0), x, torch.zeros(3, 8)), expected)
