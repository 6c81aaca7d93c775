"""Programs that need no decomposing are exported as they are, and what is decomposed in place stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.nn import functional as F

import lilliput as lp
from lilliput.errors import CaptureError
from lilliput.exporters import decomposed
from lilliput.exporters.onnx import export
from lilliput.model.views.inputs import Inputs


class Net(nn.Module):
    """A convolution with a batch norm that has seen something, then what is asked for."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.then = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), then
        self.conv.bias.data += 0.3
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.norm(self.conv(x)))


def written_over_and_read(y: Tensor) -> Tensor:
    z = y * 2
    z.relu_()
    return y + z


def written_over_though_another_reads_it(y: Tensor) -> Tensor:
    z = y * 2
    w = z.view(-1, 8, 36)
    z.relu_()
    return w + 1


def written_over_through_dropout(y: Tensor) -> Tensor:
    """In eval mode dropout gives what it was given."""
    z = y * 2
    F.dropout(z, 0.5, training=False).relu_()
    return z + 1


AS_IT_IS: dict[str, Callable[[Tensor], Tensor]] = {
    "a batch norm": lambda y: y + 1,
    "an activation in place": lambda y: F.relu(y, inplace=True),
    "a sum in place": lambda y: (y * 2).add_(1.0).clamp_(0, 2),
    "of another than is read": written_over_and_read,
    "pooled to one place": lambda y: F.adaptive_avg_pool2d(y, 1).flatten(1),
    "other types": lambda y: (y.to(torch.float64) * 2).to(torch.float32),
    "the same type": lambda y: y.to(torch.float32),
    "other shapes": lambda y: y.reshape(len(y), 8, -1).flatten(1).unflatten(1, (8, -1)),
}
TRACED: dict[str, Callable[[Tensor], Tensor]] = {
    "written over though another reads it": written_over_though_another_reads_it,
    "pooled to four": lambda y: F.adaptive_avg_pool2d(y, 2),
    "a mask of whole numbers": lambda y: y * (1.0 - (y > 0.5).long()),
}


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each program that is exported, whether it was left as it is."""
    known, found = decomposed._as_it_is, list[bool]()

    def watched(*args: object) -> bool:
        found.append(known(*args))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(decomposed, "_as_it_is", watched)
    return found


@pytest.mark.parametrize("name", [*AS_IT_IS, *TRACED])
def test_it_computes_what_the_module_does(name: str, left: list[bool], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net({**AS_IT_IS, **TRACED}[name]).eval(), torch.randn(2, 3, 8, 8)
    export(tmp_path / "net.onnx", net, Inputs.of(x), {})
    with torch.no_grad():
        expected = net(x.clone())
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).run(None, {"x": x.numpy()})
    close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    assert left == [name in AS_IT_IS]


def test_what_torch_itself_writes_wrong_is_left_to_it_and_refused(left: list[bool], tmp_path: Path) -> None:
    """torch 2.13 loses that dropout in eval mode gives what it was given; what it captures is compared, too."""
    net, x = Net(written_over_through_dropout).eval(), torch.randn(2, 3, 8, 8)
    export(tmp_path / "net.onnx", net, Inputs.of(x), {})
    assert left == [False]
    with pytest.raises(CaptureError, match="does not answer as the model does"):
        lp.export(tmp_path / "other.onnx", net, x)
    assert not (tmp_path / "other.onnx").exists()
