"""ONNX Runtime on a CPU, the default target.

What it fuses, and what it makes slower, was measured: docs/onnxruntime.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from lilliput.encodings import Encoding, Fixed, Int
from lilliput.encodings.integer import Uniform
from lilliput.exporters.profiles import Profile, profile
from lilliput.measure import cpu
from lilliput.model.views.view import CONVOLUTIONS, RECURRENT, Call, View
from lilliput.recipe import Recipe
from lilliput.runtimes import onnxruntime
from lilliput.runtimes.loaded import Loaded
from lilliput.targets.kernels import (
    INTEGER_CONVOLUTIONS,
    at_run_time,
    beyond_kernels,
    eight_bits,
    exact_here,
    no_kernel_finds,
    weights_lack,
)
from lilliput.targets.onnx import OnnxPreferences, OnnxSession, OnnxWriter
from lilliput.targets.onnxruntime_operators import operators
from lilliput.targets.onnxruntime_packed import packed_here, told_packed, why_not_packed
from lilliput.targets.operators import Operator
from lilliput.targets.placing import Placing
from lilliput.targets.simulated import REMARK, told_alike
from lilliput.targets.target import Target
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.run import Placed, Wanted

SAFE_CODE = 63  # of a weight: two products with codes of 255 sum to 32,130, which 16 bits hold


@dataclass(frozen=True)
class OrtPreferences(OnnxPreferences):
    """What ONNX Runtime on a CPU takes; with `rules`, of that what another runtime takes too."""

    profile: str | None
    safe: bool
    packed: frozenset[int] = frozenset()  # bits of weights by whose packed codes it multiplies

    @property
    def rules(self) -> Profile | None:
        return rules_of(self.profile, self.safe)

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """Networks with convolutions with ranges from calibration, others, and LSTMs, with ranges found at run time."""
        convolutional, rules = any(call.op in CONVOLUTIONS for call in view.calls), self.rules
        weights = Int(7) if self.safe else exact_here() if self.profile is None else Int(8)
        run_time = rules is None or rules.dynamic
        static, dynamic = (Quantize(weights=weights, activations=Int(8, dynamic=at_run)) for at_run in (False, True))
        if not (calibrated and (convolutional or not run_time)):
            return Recipe([dynamic if run_time else Quantize(weights=weights)])
        lstms = sorted({path.rpartition(".")[0] for call in view.calls if call.op == "lstm" for path in call.weights})
        if not lstms or not run_time:
            return Recipe([static])
        others = ("*", *(f"!{path}" for path in lstms))
        return Recipe([replace(dynamic, where=tuple(lstms)), replace(static, where=others)])

    def pays_not(self, placing: Placing, call: Call) -> str:
        """Why a layer gains nothing from integers; empty where it gains, or where that is not known."""
        return placing.pays_not(call)

    def place(self, view: View, wanted: Wanted) -> Placed:
        rules = self.rules
        if rules is not None and rules.signed:
            wanted = replace(wanted, activations={path: _signed(one) for path, one in wanted.activations.items()})
        placing = Placing(view, wanted, outputs=True)
        for call, encoding in placing.calls():
            if rules is not None and at_run_time(encoding) and not rules.dynamic:
                placing.leave(call, f"{rules.name} does not take ranges found at run time")
            elif no_kernel_finds(encoding):
                placing.simulate(call, encoding)
            elif why := no_kernel(call, encoding) or weights_lack(call, wanted.weights) or self.pays_not(placing, call):
                placing.lacks(call, encoding, why)
            elif call.op in INTEGER_CONVOLUTIONS:
                placing.layer(call, encoding)
            else:
                placing.operand(call, encoding)
        placing.additions()
        return placing.placed()

    def remark(
        self, call: Call, weight: Encoding | None, activation: Encoding | None, others: Sequence[Encoding | None] = ()
    ) -> str:
        if call.op in RECURRENT:
            return _recurrent(call, (weight, *others), activation)
        if weight is None and isinstance(activation, Uniform | None):
            return "float" if activation is None else "float, but the runtime may round it to int8 beside integers"
        if told := told_packed(call, weight, activation, self.packed) or told_alike(call, weight, activation):
            return told
        if not isinstance(activation, Uniform) or not eight_bits(weight) or no_kernel(call, activation):
            why = why_not_packed(call, weight, self.packed) if activation is None and self.rules is None else ""
            return f"size only: decoded to float when the runtime loads it{why and f' ({why})'}"
        rules = self.rules
        if rules is not None and rules.signed:
            return f"integers for {self.profile}; ONNX Runtime may compute it in float"
        if activation.bits < 8:
            return f"may run in float: what flows is cut to {activation.bits} bits beside the rounding"
        if isinstance(activation, Fixed) or (isinstance(activation, Int) and activation.symmetric):
            return "int8 kernel, but in float where a ReLU follows"
        return "int8 kernel, range found at each run" if at_run_time(activation) else "int8 kernel"


@dataclass(frozen=True)
class OrtSession(OnnxSession):
    """ONNX Runtime, on a CPU."""

    written_for: str | None = None  # another runtime, whose kernels are not this machine's

    title: ClassVar[str] = onnxruntime.TITLE

    @property
    def multiple(self) -> int | None:
        """Convolutions take 16 channels at a time where there is AVX-512, else 8; fewer take as long as so many."""
        return 16 if self.written_for is None and "avx512f" in cpu().flags else None

    def accounts(self, built: Path, arrays: Sequence[np.ndarray], seconds: float) -> Sequence[Operator]:
        return operators(built, arrays, self.threads, seconds)

    def load(self, built: Path | bytes) -> Loaded:
        return onnxruntime.load(built, self.threads)


@dataclass(frozen=True)
class OnnxRuntime(Target):
    """ONNX Runtime on a CPU: int8 weights, unsigned 8-bit activations.

    With a `profile` the file also keeps to what another runtime takes: ``"tensorrt"``, ``"xnnpack"``, ``"openvino"``.
    `safe` is for x86 without VNNI, where sums of pairs of products can overflow 16 bits: weights have 7 bits.

    Raises InputError for an unknown profile.
    """

    opset: int = 20
    profile: str | None = None  # what breaks its rules is refused when it is built
    safe: bool = False

    name: ClassVar[str] = "onnxruntime"

    def __post_init__(self) -> None:
        if self.profile is not None:
            profile(self.profile)

    @property
    def prefers(self) -> OrtPreferences:
        return OrtPreferences(self.profile, self.safe, self._packed)

    @property
    def writes(self) -> OnnxWriter:
        return OnnxWriter(self.opset, rules_of(self.profile, self.safe), self.name, self._packed)

    @property
    def runs(self) -> OrtSession:
        return OrtSession(self.threads_used, self.profile)

    @property
    def _packed(self) -> frozenset[int]:
        """What has rules to keep has operators of the standard alone."""
        return packed_here() if rules_of(self.profile, self.safe) is None else frozenset()


def rules_of(name: str | None, safe: bool = False) -> Profile | None:
    """Rules that what is built must keep; None: what the runtime itself takes, which opening it shows."""
    if not safe:
        return None if name is None else profile(name)
    rules = profile(name or "ort-cpu")
    return replace(rules, name=f"{rules.name}, safe without VNNI,", largest_code=SAFE_CODE)


def _signed(encoding: Encoding) -> Encoding:
    """Values that flow as codes around zero."""
    return replace(encoding, symmetric=True) if isinstance(encoding, Int) else encoding


def no_kernel(call: Call, values: Uniform) -> str:
    """Why nothing multiplies such integers by the weights of a call; empty where a kernel does."""
    dynamic = at_run_time(values)
    if call.op in RECURRENT:
        if call.op != "lstm" or _projected(call):
            return f"there is no integer kernel for {call.op.partition('_')[0]}" + " with projections" * _projected(
                call
            )
        return (
            ""
            if dynamic
            else "an lstm runs on integers with ranges found at run time, activations=Int(8, dynamic=True)"
        )
    if call.op != "linear" and call.op not in INTEGER_CONVOLUTIONS:
        return "there is no integer kernel for transposed convolutions"
    if dynamic and call.op != "linear":
        return "convolutions run on integers with calibrated ranges, activations=Int(8)"
    return ""


def _projected(call: Call) -> bool:
    """Whether an LSTM has projections: a third weight for each level and direction."""
    levels, directions = int(call.constants[1]), 1 + int(call.constants[2])
    return len(call.weights) > 2 * levels * directions


def _recurrent(call: Call, weights: Sequence[Encoding | None], activation: Encoding | None) -> str:
    if weights[0] is None:
        return "float"
    if activation is not None and any(beyond_kernels(weight, activation) for weight in weights):
        return REMARK
    if isinstance(activation, Uniform) and all(map(eight_bits, weights)) and not no_kernel(call, activation):
        return "int8 kernel, ranges of inputs and hidden states found at each run"
    why = "no integer kernel with projections" if call.op == "lstm" and _projected(call) else ""
    why = f"no integer kernel for {call.op.partition('_')[0]}" if call.op != "lstm" else why
    return f"size only: decoded to float when the runtime loads it{why and f' ({why})'}"
