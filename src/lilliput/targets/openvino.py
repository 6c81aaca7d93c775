"""OpenVINO on a CPU.

What it runs on integers, and with how many bits it computes the rest, was measured: docs/openvino.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lilliput.encodings import Encoding, Int, Sparse
from lilliput.encodings.integer import Uniform
from lilliput.errors import InputError, nearest, reason
from lilliput.exporters.profiles import Profile
from lilliput.model.view import Call, View
from lilliput.recipe import Recipe
from lilliput.targets.onnx_file import Loaded, OnnxFile
from lilliput.targets.openvino_operators import operators
from lilliput.targets.operators import Operator, called
from lilliput.targets.placing import INTEGER_CONVOLUTIONS, Placing, at_run_time, eight_bits
from lilliput.targets.simulated import REMARK, operands
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.technique import Placement

_PRECISIONS = ("f32", "bf16", "f16")
_LONG_TAILS = frozenset({"gelu", "silu"})  # what they give has outliers that one range serves badly


@dataclass(frozen=True)
class OpenVino(OnnxFile):
    """OpenVINO on a CPU: int8 weights, unsigned 8-bit activations; layers in float compute in `precision`.

    Raises InputError where the package is not installed.

    >>> OpenVino(threads=1).name
    'openvino'
    """

    precision: str | None = "f32"  # or "bf16", "f16"; None: what OpenVINO chooses, which is bf16 where there is AMX

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in _PRECISIONS:
            raise InputError(f"precision={self.precision!r}", next=nearest(str(self.precision), _PRECISIONS))
        _openvino()

    @property
    def required(self) -> Profile | None:
        return None

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """Ranges from calibration; without batches, weights alone, beside which it finds those of linear layers."""
        if calibrated:
            return Recipe([Quantize(weights=Int(8), activations=Int(8))])
        return Recipe([Quantize(weights=Int(8))])

    def place(self, view: View, encoding: Encoding, weights: Mapping[str, Encoding]) -> Sequence[Placement]:
        """Of what is dynamic nothing: beside int8 weights alone the runtime itself rounds what a linear layer reads."""
        if not isinstance(encoding, Uniform):
            return operands(view, encoding, weights)
        placing = Placing(view, encoding, outputs=False)
        for call in view.calls:
            found = [weights.get(path) for path in call.weights]
            if call.value is None or at_run_time(encoding) or not found or not all(map(eight_bits, found)):
                continue
            if call.op == "linear" and not _beside_long_tails(view, call):
                placing.operand(call)
            elif call.op in INTEGER_CONVOLUTIONS and placing.pays(call):
                placing.convolution(call)
        return list(placing.places.values())

    def remark(
        self, call: Call, weight: Encoding | None, activation: Encoding | None, others: Sequence[Encoding | None] = ()
    ) -> str:
        if weight is None:
            return "float"
        if call.op == "embedding":
            return "size only: rows are decoded as they are looked up"
        if activation is not None and not isinstance(activation, Uniform):
            return REMARK
        if activation is not None and eight_bits(weight):
            return "int8 kernel"
        if call.op == "linear" and activation is None and _whole_rows(weight):
            return "integer weights, decoded in the kernel, or int8 kernel with ranges that the runtime finds"
        return "size only: decoded to float when the runtime loads it"

    def load(self, built: Path | bytes) -> Loaded:
        compiled = self._compiled(built)
        request = compiled.create_infer_request()
        return Loaded(
            len(compiled.inputs),
            len(compiled.outputs),
            lambda arrays: list(request.infer(list(arrays), share_inputs=True).to_tuple()),
        )

    def accounts(self, built: Path, arrays: Sequence[np.ndarray], seconds: float) -> Sequence[Operator]:
        compiled = self._compiled(built, PERF_COUNT=True)
        request = compiled.create_infer_request()
        called(lambda: request.infer(list(arrays), share_inputs=True), seconds)
        return operators(built, compiled)

    def _compiled(self, built: Path | bytes, **more: Any) -> Any:
        core = _openvino().Core()
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": self.threads_used,
            "ENABLE_CPU_PINNING": False,  # or all that is timed waits for the same core, however busy
            **more,
        }
        if self.precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = self.precision
        given = built if isinstance(built, bytes) else str(built)
        return core.compile_model(core.read_model(given), "CPU", settings)


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            "OpenVINO is not installed", why=reason(error), next="pip install 'lilliput[openvino]'"
        ) from None
    return openvino


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
