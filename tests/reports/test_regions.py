"""What torch captures as a graph within the graph (a precision switched off inside `forward`, gradients switched on, an
activation checkpoint) hid the layers inside (pytorch#136545): they stayed in float without a word, or the network had
"no layer".

Right: such layers are encoded and pruned as any other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lilliput as lp
from lilliput.errors import ExportError
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=1)


def precise(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return net.last(net.first(x).relu())


def with_gradients(net: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = net.first(x).relu()
        with torch.autocast("cpu", enabled=False):
            z = net.last(y)
    return z + x


def checkpointed(net: Any, x: Tensor) -> Tensor:
    return net.last(checkpoint(net.first, x, use_reentrant=False).relu())


def half_inside(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net.first(x)
        with torch.autocast("cpu", enabled=False):
            z = net.last(y.float().relu())
    return z.float()


class Net(nn.Module):
    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.run, self.first, self.last = run, nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


@pytest.mark.parametrize("run", [precise, with_gradients, checkpointed])
def test_layers_inside_are_encoded(run: Callable[[Any, Tensor], Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net(run).eval(), torch.randn(8, 64)
    small = lp.compress(net, lp.Recipe([lp.Quantize(activations=lp.Int(8))]), calibrate=[x], target=QUICK)
    rows = {row["path"]: (row["encoding"], row["activations"]) for row in small.data["layers"]}
    assert set(rows) == {"first.weight", "last.weight"}
    assert all(encoding.startswith("int8") and flowing != "float32" for encoding, flowing in rows.values())
    with torch.no_grad():
        expected = net(x)
        assert 0 < (small.model(x) - expected).norm() < 0.05 * expected.norm()


def test_layers_inside_run_in_another_precision_are_seen() -> None:
    """ONNX Runtime has no such kernels, which it says."""
    net, x = Net(half_inside).eval(), torch.randn(8, 64)
    with pytest.raises(ExportError, match="does not load the export"):
        lp.compress(net, lp.Recipe([lp.Quantize()]), calibrate=[x], target=QUICK)
    view = capture(net, Inputs.of(x), {})
    assert set(view.weights) == {"first.weight", "last.weight"}
    assert [call.value for call in view.calls if call.op == "linear"] == ["first:linear#0", "last:linear#0"]


@pytest.mark.parametrize("run", [precise, with_gradients, checkpointed])
def test_layers_inside_are_pruned(run: Callable[[Any, Tensor], Tensor]) -> None:
    small = lp.compress(
        Net(run).eval(),
        lp.Recipe([lp.Prune("channels", 0.5, multiple=1)]),
        calibrate=[torch.randn(8, 64)],
        target=QUICK,
    )
    assert tuple(small.model.first.weight.shape) == (32, 64)
