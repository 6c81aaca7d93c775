"""ONNX Runtime on a CPU, the default target.

What it fuses, and what it makes slower, was measured: docs/onnxruntime.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding, Fixed, Int, Sparse
from lilliput.encodings.integer import Uniform
from lilliput.errors import ExportError, InputError, reason
from lilliput.exporters.onnx import export
from lilliput.model.capture import Inputs
from lilliput.model.edits import Edit
from lilliput.model.fold import fold_norms
from lilliput.model.signature import Signature
from lilliput.model.view import CONVOLUTIONS, Call, View
from lilliput.recipe import Recipe
from lilliput.targets.simulated import REMARK, operands
from lilliput.targets.target import Runner, Target
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.technique import Placement

_INTEGER_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_SAME_SCALE = frozenset(  # int8 kernels that need equal parameters on both sides
    (
        *("max_pool1d", "max_pool2d", "max_pool3d", "flatten", "reshape", "view"),
        *("transpose", "permute", "squeeze", "unsqueeze"),
    )
)
_THROUGH = frozenset({"dropout", "contiguous", "identity", "pad"})  # nothing to encode between its two sides
_ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh"})  # taken into the rounding of what comes after a convolution
_FEW_CHANNELS, _FEW_PRODUCTS = 4, 64  # of one group: input channels, and products summed for one output


@dataclass(frozen=True)
class OnnxRuntime(Target):
    """ONNX Runtime on a CPU: int8 weights, unsigned 8-bit activations."""

    opset: int = 20

    name: ClassVar[str] = "onnxruntime"
    format: ClassVar[str] = "onnx"

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """Convolutions with ranges from calibration, linear layers with ranges found at run time."""
        convolutional = any(call.op in CONVOLUTIONS for call in view.calls)
        if convolutional and calibrated:
            return Recipe([Quantize(weights=Int(8), activations=Int(8))])
        return Recipe([Quantize(weights=Int(8), activations=Int(8, dynamic=True))])

    def prepare(self, view: View, root: nn.Module) -> Iterable[tuple[Edit, Mapping[str, Tensor]]]:
        return fold_norms(view, root)

    def place(self, view: View, encoding: Encoding, weights: Mapping[str, Encoding]) -> Sequence[Placement]:
        if not isinstance(encoding, Uniform):
            return operands(view, encoding, weights)
        placing = _Placing(view, encoding)
        for call in view.calls:
            weight = weights.get(call.weight or "")
            if call.value is None or not _eight_bits(weight):
                continue
            if call.op == "linear":
                placing.operand(call)
            elif call.op in _INTEGER_CONVOLUTIONS and not _dynamic(encoding) and placing.pays(call):
                placing.convolution(call)
        placing.additions()
        return list(placing.places.values())

    def remark(self, call: Call, weight: Encoding | None, activation: Encoding | None) -> str:
        if weight is None and isinstance(activation, Uniform | None):
            return "float" if activation is None else "float, but the runtime may round it to int8 beside integers"
        if call.op == "embedding":
            return "size only: rows are decoded as they are looked up"
        if activation is not None and not isinstance(activation, Uniform):
            return REMARK
        if activation is None or not _eight_bits(weight):
            return "size only: decoded to float when the runtime loads it"
        if isinstance(activation, Fixed) or (isinstance(activation, Int) and activation.symmetric):
            return "int8 kernel, but in float where a ReLU follows"
        return "int8 kernel, range found at each run" if _dynamic(activation) else "int8 kernel"

    def build(
        self, path: Path, model: nn.Module, example: Inputs, dynamic: Mapping[str | int, Mapping[int, str]]
    ) -> None:
        export(path, model, example, dynamic, self.opset)

    def open(self, built: Path | bytes, signature: Signature) -> Runner:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads_used
        options.log_severity_level = 4  # what fails comes as an error, and is reported as one
        # threads that spin on after a run would steal time from the session that it is compared with
        options.add_session_config_entry("session.force_spinning_stop", "1")
        where = "graph" if isinstance(built, bytes) else str(built)
        given = built if isinstance(built, bytes) else str(built)
        try:
            session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many kinds
            raise ExportError("ONNX Runtime does not load the export", where=where, why=reason(error)) from error
        names = [value.name for value in session.get_inputs()]
        if len(names) != len(signature.inputs) or len(session.get_outputs()) != signature.count:
            raise ExportError("has other inputs or outputs than the module", where=where)

        def run(*args: Any, **kwargs: Any) -> Any:
            tensors = signature.arguments(Inputs(args, kwargs))
            feed = {name: x.detach().numpy() for name, x in zip(names, tensors, strict=True)}
            try:
                found = session.run(None, feed)
            except Exception as error:  # onnxruntime raises many kinds
                raise InputError(
                    "ONNX Runtime fails on this input",
                    where=where,
                    why=reason(error),
                    next="give inputs as the example's",
                ) from error
            return signature.assemble([torch.from_numpy(np.asarray(out)) for out in found])

        return run


def _eight_bits(encoding: Encoding | None) -> bool:
    """Whether integer kernels take a weight so encoded."""
    inner = encoding.values if isinstance(encoding, Sparse) else encoding
    if not isinstance(inner, Uniform) or inner.group is not None or not 4 < inner.bits <= 8:
        return False
    symmetric = not isinstance(inner, Int) or inner.symmetric is not False
    return symmetric and (inner.axis == 0 or inner.per == "tensor")


def _dynamic(encoding: Encoding) -> bool:
    return isinstance(encoding, Int) and encoding.dynamic


class _Placing:
    """The values to encode, found by going back from each convolution and linear layer."""

    def __init__(self, view: View, encoding: Encoding) -> None:
        self.view, self.encoding = view, encoding
        self.places: dict[str, Placement] = {}
        self.integer: set[str] = set()  # ids of calls whose output is encoded

    def pays(self, call: Call) -> bool:
        """Whether a convolution gains from integers: not a small one over an image's few channels, and a depthwise one
        (whose float kernel is the faster) only where its input is encoded already.
        """
        if prod(call.weight_shape[1:]) >= _FEW_PRODUCTS or call.weight_shape[1] > _FEW_CHANNELS:
            return True
        source = self.view.by_id.get(call.reads[0] or "")
        while source is not None and source.op in _THROUGH | _ACTIVATIONS:
            source = self.view.by_id.get(source.reads[0] or "")
        return source is not None and source.id in self.integer

    def operand(self, call: Call) -> None:
        name = f"{call.value}@0"
        self.places[name] = Placement(name, self.encoding)

    def convolution(self, call: Call) -> None:
        if self._source(call.reads[0]) is None:
            self.operand(self._first_through(call))
        self.integer.add(call.id)
        self._output(call)

    def additions(self) -> None:
        """An addition of two encoded values runs on integers if its own is encoded too."""
        for call in self.view.calls:
            if call.op == "add" and len(call.reads) > 1 and all(self._encoded(read) for read in call.reads[:2]):
                self._output(call)

    def _encoded(self, source: str | None) -> bool:
        call = self.view.by_id.get(source or "")
        while call is not None and call.op in _THROUGH:
            call = self.view.by_id.get(call.reads[0] or "")
        return call is not None and call.value in self.places

    def _output(self, call: Call) -> None:
        """Encode what a call returns, or what the activation right after it makes of that."""
        after = self.view.only_reader(call)
        fused = after if after is not None and after.op in _ACTIVATIONS and after.value else call
        if fused.value is not None:
            self.places.setdefault(fused.value, Placement(fused.value, self.encoding))

    def _first_through(self, call: Call) -> Call:
        """Back over padding and the like: encoded before it, the padding becomes part of the convolution."""
        before = self.view.by_id.get(call.reads[0] or "")
        while before is not None and before.op in _THROUGH and before.value is not None:
            call, before = before, self.view.by_id.get(before.reads[0] or "")
        return call

    def _source(self, source: str | None) -> str | None:
        """Encode the value at `source`, where it has a name; returns the value whose range it has."""
        call = self.view.by_id.get(source or "")
        if call is None:
            return None
        if call.op in _THROUGH:
            return self._source(call.reads[0])
        if call.value is None:
            return None
        if call.op in _SAME_SCALE:
            like = self._source(call.reads[0])
            if like is not None:
                self.places.setdefault(call.value, Placement(call.value, self.encoding, like=like))
            return like
        known = call.value in self.places
        self.integer.add(call.id)
        self.places.setdefault(call.value, Placement(call.value, self.encoding))
        if call.op == "add" and not known:
            for read in call.reads:
                self._source(read)
        return call.value
