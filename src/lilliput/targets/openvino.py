"""OpenVINO on a CPU.

What it runs on integers, and with how many bits it computes the rest, was measured: docs/openvino.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lilliput.encodings import Encoding, Int, Sparse
from lilliput.errors import InputError, nearest
from lilliput.model.views.view import RECURRENT, Call, View
from lilliput.recipe import Recipe
from lilliput.runtimes import openvino
from lilliput.runtimes.loaded import Loaded
from lilliput.targets.kernels import (
    INTEGER_CONVOLUTIONS,
    at_run_time,
    eight_bits,
    exact_here,
    no_kernel_finds,
    weights_lack,
)
from lilliput.targets.onnx import OnnxPreferences, OnnxSession, OnnxWriter
from lilliput.targets.openvino_operators import operators
from lilliput.targets.operators import Operator, called
from lilliput.targets.placing import Placing
from lilliput.targets.simulated import told_alike
from lilliput.targets.target import Target
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.run import Placed, Wanted

_PRECISIONS = ("f32", "bf16", "f16")
_LONG_TAILS = frozenset({"gelu", "silu"})  # what they give has outliers that one range serves badly


class OpenVinoPreferences(OnnxPreferences):
    """What OpenVINO on a CPU takes."""

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """Ranges from calibration; without batches, weights alone, beside which it finds those of linear layers."""
        if calibrated:
            return Recipe([Quantize(weights=exact_here(), activations=Int(8))])
        return Recipe([Quantize(weights=exact_here())])

    def place(self, view: View, wanted: Wanted) -> Placed:
        """Of what is dynamic nothing: beside int8 weights alone the runtime itself rounds what a linear layer reads."""
        placing = Placing(view, wanted, outputs=False)
        for call, encoding in placing.calls():
            if no_kernel_finds(encoding):
                placing.simulate(call, encoding)
            elif at_run_time(encoding):
                placing.lacks(call, encoding, "OpenVINO decides by itself which ranges it finds at run time")
            elif why := _no_kernel(view, call) or weights_lack(call, wanted.weights) or placing.pays_not(call):
                placing.lacks(call, encoding, why)
            elif call.op in INTEGER_CONVOLUTIONS:
                placing.layer(call, encoding)
            else:
                placing.operand(call, encoding)
        return placing.placed()

    def remark(
        self, call: Call, weight: Encoding | None, activation: Encoding | None, others: Sequence[Encoding | None] = ()
    ) -> str:
        if weight is None:
            return "float"
        if told := told_alike(call, weight, activation):
            return told
        if activation is not None and eight_bits(weight) and (call.op == "linear" or call.op in INTEGER_CONVOLUTIONS):
            return "int8 kernel"
        if call.op == "linear" and activation is None and _whole_rows(weight):
            return "integer weights, decoded in the kernel, or int8 kernel with ranges that the runtime finds"
        return "size only: decoded to float when the runtime loads it"


@dataclass(frozen=True)
class OpenVinoSession(OnnxSession):
    """OpenVINO, on a CPU."""

    precision: str | None

    title: ClassVar[str] = openvino.TITLE

    def load(self, built: Path | bytes) -> Loaded:
        return openvino.load(built, self.threads, self.precision)

    def accounts(self, built: Path, arrays: Sequence[np.ndarray], seconds: float) -> Sequence[Operator]:
        compiled = openvino.compiled(built, self.threads, self.precision, PERF_COUNT=True)
        request = compiled.create_infer_request()
        called(lambda: request.infer(list(arrays), share_inputs=True), seconds)
        return operators(built, compiled)


@dataclass(frozen=True)
class OpenVino(Target):
    """OpenVINO on a CPU: int8 weights, unsigned 8-bit activations; layers in float compute in `precision`.

    Raises InputError where the package is not installed.

    >>> OpenVino(threads=1).name
    'openvino'
    """

    opset: int = 20
    precision: str | None = openvino.PRECISION  # or "bf16", "f16"; None: what OpenVINO chooses, bf16 where there is AMX

    name: ClassVar[str] = "openvino"

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in _PRECISIONS:
            raise InputError(f"precision={self.precision!r}", next=nearest(str(self.precision), _PRECISIONS))
        openvino.package()

    @property
    def prefers(self) -> OpenVinoPreferences:
        return OpenVinoPreferences()

    @property
    def writes(self) -> OnnxWriter:
        return OnnxWriter(self.opset, None, self.name)

    @property
    def runs(self) -> OpenVinoSession:
        return OpenVinoSession(self.threads_used, self.precision)


def _no_kernel(view: View, call: Call) -> str:
    """Why a layer does not run on integers of calibrated ranges; empty where it does."""
    if call.op != "linear" and call.op not in INTEGER_CONVOLUTIONS:
        kind = "recurrent layers" if call.op in RECURRENT else "transposed convolutions"
        return f"there is no integer kernel for {kind}"
    if call.op == "linear" and _beside_long_tails(view, call):
        return "GELU and SiLU have outliers that one range serves badly"
    return ""


def _beside_long_tails(view: View, call: Call) -> bool:
    """Whether a linear layer reads what such an activation gives, or widens for it what a normalisation gives, which in
    transformers has outliers of its own.
    """
    source, after = view.by_id.get(call.reads[0] or ""), view.only_reader(call)
    while source is not None and source.op == "dropout":
        source = view.by_id.get(source.reads[0] or "")
    widens = source is not None and source.op == "layer_norm" and after is not None and after.op in _LONG_TAILS
    return widens or (source is not None and source.op in _LONG_TAILS)


def _whole_rows(encoding: Encoding | None) -> bool:
    """Integers without groups, which the kernel of a linear layer decodes itself."""
    inner = encoding.values if isinstance(encoding, Sparse) else encoding
    return isinstance(inner, Int) and inner.group is None
