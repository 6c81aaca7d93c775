"""ONNX Runtime on a CPU, the default target.

What it fuses, and what it makes slower, was measured: docs/onnxruntime.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from lilliput.encodings import Encoding, Int
from lilliput.exporters.profiles import Profile, profile
from lilliput.file.session import session
from lilliput.model.view import CONVOLUTIONS, Call, View
from lilliput.recipe import Recipe
from lilliput.targets.onnx_file import Loaded, OnnxFile
from lilliput.targets.placing import INTEGER_CONVOLUTIONS, Placing, eight_bits
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.technique import Placement

SAFE_CODE = 63  # of a weight: two products with codes of 255 sum to 32,130, which 16 bits hold


@dataclass(frozen=True)
class OnnxRuntime(OnnxFile):
    """ONNX Runtime on a CPU: int8 weights, unsigned 8-bit activations.

    With a `profile` the file also keeps to what another runtime takes: ``"tensorrt"``, ``"xnnpack"``, ``"openvino"``.
    `safe` is for x86 without VNNI, where sums of pairs of products can overflow 16 bits: weights have 7 bits.

    Raises InputError for an unknown profile.
    """

    profile: str | None = None  # what breaks its rules is refused when it is built
    safe: bool = False

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"

    def __post_init__(self) -> None:
        if self.profile is not None:
            profile(self.profile)

    @property
    def required(self) -> Profile | None:
        if not self.safe:
            return None if self.profile is None else profile(self.profile)
        rules = profile(self.profile or "ort-cpu")
        return replace(rules, name=f"{rules.name}, safe without VNNI,", largest_code=SAFE_CODE)

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """Convolutions with ranges from calibration, linear layers with ranges found at run time."""
        convolutional, rules = any(call.op in CONVOLUTIONS for call in view.calls), self.required
        weights, run_time = Int(7 if self.safe else 8), rules is None or rules.dynamic
        if calibrated and (convolutional or not run_time):
            return Recipe([Quantize(weights=weights, activations=Int(8))])
        return Recipe([Quantize(weights=weights, activations=Int(8, dynamic=True) if run_time else None)])

    def place(self, view: View, encoding: Int, weights: Mapping[str, Encoding]) -> Sequence[Placement]:
        rules = self.required
        if rules is not None and encoding.dynamic and not rules.dynamic:
            return []
        if rules is not None and rules.signed:
            encoding = replace(encoding, symmetric=True)
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
        rules = self.required
        if rules is not None and rules.signed:
            return f"integers for {self.profile}; ONNX Runtime may compute it in float"
        return "int8 kernel, range found at each run" if getattr(activation, "dynamic", False) else "int8 kernel"

    def load(self, built: Path | bytes) -> Loaded:
        held = session(built, self.threads_used)
        names = [value.name for value in held.get_inputs()]
        return Loaded(
            len(names),
            len(held.get_outputs()),
            lambda arrays: held.run(None, dict(zip(names, arrays, strict=True))),
        )
