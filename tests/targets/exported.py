"""Networks after some steps, built for ONNX Runtime, and what it makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.model.capture import Inputs, dynamic_axes
from lilliput.model.signature import Signature
from lilliput.task import Batches
from lilliput.techniques.technique import Technique

DYNAMIC = lp.Int(8, dynamic=True)


def built(
    tmp_path: Path, net: nn.Module, inputs: Sequence[Tensor], steps: Sequence[Technique], axes: Any = None
) -> tuple[Driver, Path]:
    """`net` after `steps`, and the file built from it."""
    example = Inputs.of(inputs[0])
    open_axes = dynamic_axes(example, axes)
    driver = Driver.start(
        net.eval(),
        example=example,
        dynamic=open_axes,
        calibrate=Batches.checked(inputs, "calibrate", example, open_axes),
        target=lp.OnnxRuntime(threads=1),
        store=Store(),
        environment="",
    )
    for step in steps:
        step.apply(driver)
    path = tmp_path / "net.onnx"
    driver.target.build(path, driver.model, example, open_axes)
    return driver, path


def fused(path: Path) -> Counter[str]:
    """The operators that the runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def close(driver: Driver, path: Path, inputs: Sequence[Tensor], tolerance: float) -> None:
    """What was built computes what the module computes, on more samples than it was traced with."""
    expected = driver.model(inputs[0]).detach()
    run = driver.target.open(path, Signature.of(Inputs.of(inputs[0]), expected))
    for x in (*inputs, torch.cat(list(inputs))):
        torch.testing.assert_close(run(x), driver.model(x).detach(), atol=tolerance, rtol=0)


def initializers(path: Path) -> dict[str, int]:
    return {x.name: x.data_type for x in onnx.load(path).graph.initializer}
