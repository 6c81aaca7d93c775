"""Single layers in a runtime: float32 against what we export, each timed in turns with its float32 self.

docs/onnxruntime.md and docs/openvino.md quote these figures. Static ranges here are forced on layers that the target
would leave in float.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from networks import OUT
from table import write
from timings import timed
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import Encoding
from lilliput.external import bytes_of
from lilliput.model.carrier.carrier import attach
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.model.views.signature import Signature
from lilliput.model.views.values import attach_value
from lilliput.targets import Target

INT8 = lp.Int(8, symmetric=True, per="channel")
VALUE = lp.Int(8, symmetric=False, per="tensor")


@dataclass(frozen=True)
class Case:
    """A layer, what it is given, and how it is encoded."""

    layer: str
    variant: str
    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    weights: Encoding
    values: str = ""  # "static", "dynamic" or none
    op: str = "conv2d"


def conv(inputs: int, outputs: int, kernel: int, groups: int = 1, stride: int = 1) -> Callable[[], nn.Module]:
    return functools.partial(nn.Conv2d, inputs, outputs, kernel, stride, kernel // 2, groups=groups)


def cases() -> Iterator[Case]:
    dense, pointwise, depthwise = (1, 64, 56, 56), (1, 64, 28, 28), (1, 96, 56, 56)
    yield Case("convolution 3×3, 64 channels at 56×56", "static", conv(64, 64, 3), dense, INT8, "static")
    yield Case("convolution 1×1, 64 to 256 channels at 28×28", "static", conv(64, 256, 1), pointwise, INT8, "static")
    yield Case("depthwise 3×3, 96 channels at 56×56", "static", conv(96, 96, 3, 96), depthwise, INT8, "static")
    stem = (1, 3, 224, 224)
    yield Case("convolution 3×3 over 3 channels at 224×224", "static", conv(3, 32, 3, 1, 2), stem, INT8, "static")
    yield Case("convolution 7×7 over 3 channels at 224×224", "static", conv(3, 64, 7, 1, 2), stem, INT8, "static")
    yield Case("convolution 3×3, 64 channels at 56×56", "weights alone", conv(64, 64, 3), dense, INT8)
    tokens, linear = (1, 128, 384), functools.partial(nn.Linear, 384, 1536)
    for variant, weights, values in (
        ("static", INT8, "static"),
        ("dynamic", INT8, "dynamic"),
        ("weights alone", INT8, ""),
        ("weights alone, 4 bits", lp.Int(4, group=32), ""),
        ("weights alone, Float16", lp.formats.Float16(), ""),
    ):
        yield Case("linear 384 to 1536, 128 tokens", variant, linear, tokens, weights, values, "linear")
    table = functools.partial(nn.Embedding, 30522, 384)
    yield Case("table of 30,522 rows, 128 looked up", "weights alone", table, (1, 128), INT8, "", "embedding")


def encoded(case: Case, net: nn.Module, x: Tensor) -> nn.Module:
    """The layer in its encoding, ranges taken from the input it is timed with."""
    path, call = "0.weight", f"0:{case.op}#0"
    attach(net, (path,), case.weights.represent(net.get_parameter(path).detach()))
    if case.values == "static":
        with torch.no_grad():
            out = net(x)
        attach_value(net, f"{call}@0", VALUE, VALUE.fit(x))
        if case.op == "conv2d":
            attach_value(net, call, VALUE, VALUE.fit(out))
    elif case.values == "dynamic":
        attach_value(net, f"{call}@0", lp.Int(8, dynamic=True, symmetric=False, per="tensor"), {})
    return net


def measure(case: Case, target: Target) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randint(0, 30522, case.inputs) if case.op == "embedding" else torch.randn(case.inputs)
    net, example = nn.Sequential(case.make()).eval(), Inputs.of(x)
    axes = dynamic_axes(example, {0: {1: "tokens"}} if case.op == "linear" else {0: {0: "batch"}})
    files = {}
    for name in ("float", "ours"):
        subject = net if name == "float" else encoded(case, net, x)
        files[name] = OUT / f"kernel-{name}.onnx"
        target.writes.build(files[name], subject, example, axes)
    with torch.no_grad():
        signature = Signature.of(example, net(x))
    taken = timed(files, target, signature, example, rounds=15, round_s=0.05, settle_s=0.05)
    return {
        "layer": case.layer,
        "variant": case.variant,
        **taken.row("faster", "float", "ours"),
        "float_ms": taken.ms("float"),
        "ours_ms": taken.ms("ours"),
        "smaller": bytes_of(files["float"]) / bytes_of(files["ours"]),
    }


def report(benchmark: str, targets: Iterable[Target]) -> None:
    """Measure every case in every target, and write the rows."""
    rows = []
    for target in targets:
        for case in cases():
            conditions = {"run_threads": target.threads_used, "precision": getattr(target, "precision", "f32")}
            rows.append({**conditions, **measure(case, target)})
            print(rows[-1], flush=True)
    write(benchmark, rows, os.cpu_count() or 1)


if __name__ == "__main__":
    report("kernels", (lp.targets.OnnxRuntime(threads=threads) for threads in sorted({1, os.cpu_count() or 1})))
