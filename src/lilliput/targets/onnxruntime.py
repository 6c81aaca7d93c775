"""ONNX Runtime on a CPU, the default target.

What it fuses, and what it makes slower, was measured: docs/onnxruntime.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lilliput.encodings import Encoding, Int
from lilliput.file.session import session
from lilliput.model.view import CONVOLUTIONS, Call, View
from lilliput.recipe import Recipe
from lilliput.targets.onnx_file import Loaded, OnnxFile
from lilliput.targets.placing import INTEGER_CONVOLUTIONS, Placing, eight_bits
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.technique import Placement


@dataclass(frozen=True)
class OnnxRuntime(OnnxFile):
    """ONNX Runtime on a CPU: int8 weights, unsigned 8-bit activations."""

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """Convolutions with ranges from calibration, linear layers with ranges found at run time."""
        convolutional = any(call.op in CONVOLUTIONS for call in view.calls)
        if convolutional and calibrated:
            return Recipe([Quantize(weights=Int(8), activations=Int(8))])
        return Recipe([Quantize(weights=Int(8), activations=Int(8, dynamic=True))])

    def place(self, view: View, encoding: Int, weights: Mapping[str, Encoding]) -> Sequence[Placement]:
        placing = Placing(view, encoding, outputs=True)
        for call in view.calls:
            if call.value is None or not eight_bits(weights.get(call.weight or "")):
                continue
            if call.op == "linear":
                placing.operand(call)
            elif call.op in INTEGER_CONVOLUTIONS and not encoding.dynamic and placing.pays(call):
                placing.convolution(call)
        placing.additions()
        return list(placing.places.values())

    def remark(self, call: Call, weight: Encoding | None, activation: Encoding | None) -> str:
        if weight is None:
            return "float" if activation is None else "float, but the runtime may round it to int8 beside integers"
        if call.op == "embedding":
            return "size only: rows are decoded as they are looked up"
        if activation is None or not eight_bits(weight):
            return "size only: decoded to float when the runtime loads it"
        return "int8 kernel, range found at each run" if getattr(activation, "dynamic", False) else "int8 kernel"

    def load(self, built: Path | bytes) -> Loaded:
        held = session(built, self.threads_used)
        names = [value.name for value in held.get_inputs()]
        return Loaded(
            len(names),
            len(held.get_outputs()),
            lambda arrays: held.run(None, dict(zip(names, arrays, strict=True))),
        )
