"""What is built for the targets here: two networks, their inputs, and how what comes of them is compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.feeding import Batches
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.model.views.signature import Signature
from lilliput.targets import Target
from lilliput.targets.kernels import exact_here
from lilliput.techniques.technique import Technique

ORT = lp.targets.OnnxRuntime(threads=1)
DYNAMIC = lp.Int(8, dynamic=True)
EXACT = exact_here()  # weights whose products the integer kernels of this processor sum without overflow
CALIBRATED, AT_RUN_TIME = (lp.Quantize(weights=EXACT, activations=flowing) for flowing in (lp.Int(8), DYNAMIC))


class Convolutions(nn.Module):
    """A stem, a depthwise layer, a residual add, a module called twice, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.twice = nn.Conv2d(32, 32, 3, padding=1)
        self.pool, self.classes = nn.MaxPool2d(2), nn.Linear(32, 10)
        self.cut = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.cut(self.wide(torch.relu(self.norm(self.stem(x)))))
        x = x + self.depthwise(x)
        x = self.pool(torch.relu(self.twice(x)))
        x = torch.relu(self.twice(x))
        return self.classes(x.mean((2, 3)))


class Tokens(nn.Module):
    """A table whose rows are looked up, three linear layers that read one value, and a head tied to the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.table(ids))
        x = x + torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1) @ self.v(x)
        return self.head(x)


def built(
    tmp_path: Path,
    net: nn.Module,
    inputs: Sequence[Tensor],
    steps: Sequence[Technique],
    axes: Any = None,
    target: Target = ORT,
) -> tuple[Driver, Path]:
    """`net` after `steps`, and the file built from it."""
    example = Inputs.of(inputs[0])
    open_axes = dynamic_axes(example, axes)
    driver = Driver.start(
        net.eval(),
        example=example,
        dynamic=open_axes,
        calibrate=Batches.checked(inputs, "calibrate", example, open_axes),
        target=target,
        store=Store(),
        environment="",
    )
    for step in steps:
        step.apply(driver)
    path = tmp_path / "net.onnx"
    driver.target.writes.build(path, driver.model, example, open_axes)
    return driver, path


def fused(path: Path) -> Counter[str]:
    """The operators that the runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def initializers(path: Path) -> dict[str, int]:
    return {x.name: x.data_type for x in onnx.load(path).graph.initializer}


def agree(driver: Driver, path: Path, inputs: Sequence[Tensor], **tolerance: float) -> None:
    """What was built computes what the module computes, on more samples than it was traced with."""
    expected = driver.model(inputs[0]).detach()
    run = driver.target.runs.open(path, Signature.of(Inputs.of(inputs[0]), expected))
    for x in (*inputs, torch.cat(list(inputs))):
        close(run(x), driver.model(x).detach(), **tolerance)


def images() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(4, 3, 16, 16) for _ in range(3)]


def sentences() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randint(0, 50, (2, 7)) for _ in range(3)]
