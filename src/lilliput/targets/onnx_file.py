"""An ONNX file for a runtime that is not here: checked, compared as it is written, and never timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lilliput.encodings import Encoding, Int
from lilliput.encodings.integer import Uniform
from lilliput.exporters.profiles import profile
from lilliput.model.views.view import Call, View
from lilliput.recipe import Recipe
from lilliput.targets.kernels import eight_bits
from lilliput.targets.onnx import OnnxWriter
from lilliput.targets.onnxruntime import OnnxRuntime, OrtPreferences, no_kernel
from lilliput.targets.placing import Placing
from lilliput.targets.simulated import told_alike
from lilliput.targets.target import NOT_HERE, Target
from lilliput.techniques.quantize import Quantize


@dataclass(frozen=True)
class FilePreferences(OrtPreferences):
    """Integers are placed as for ONNX Runtime, within the rules of the profile, also where float may be the faster."""

    profile: str
    safe: bool = False

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """Ranges from calibration, which every runtime takes; without batches, weights alone."""
        return Recipe([Quantize(weights=Int(8), activations=Int(8) if calibrated else None)])

    def pays_not(self, placing: Placing, call: Call) -> str:
        return ""

    def remark(
        self, call: Call, weight: Encoding | None, activation: Encoding | None, others: Sequence[Encoding | None] = ()
    ) -> str:
        if weight is None and activation is None:
            return "float"
        if told := told_alike(call, weight, activation):
            return told
        whole = all(map(eight_bits, (weight, *others)))
        if isinstance(activation, Uniform) and whole and not no_kernel(call, activation):
            return f"integers for {self.profile}: {NOT_HERE}"
        return "size only: decoded to float by what reads the file"


@dataclass(frozen=True)
class OnnxFile(Target):
    """An ONNX file that keeps the rules of a profile, and is not run here.

    It is validated by onnx and the rules of ``"ort-cpu"``, ``"openvino"``, ``"tensorrt"`` or ``"xnnpack"``, and
    compared with the module as it is written, by reference kernels. Nothing is timed.

    Raises InputError for an unknown profile.

    >>> import torch, lilliput
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 3))
    >>> small = lilliput.compress(net, calibrate=[torch.randn(4, 3, 16, 16)], target=OnnxFile(profile="tensorrt"))
    >>> small.data["speed"], small.data["ratio"]["faster"]
    ('not run here: no times', None)
    """

    opset: int = 20
    profile: str = "ort-cpu"  # what breaks its rules is refused when it is written

    name: ClassVar[str] = "onnx"

    def __post_init__(self) -> None:
        profile(self.profile)

    @property
    def prefers(self) -> FilePreferences:
        return FilePreferences(self.profile)

    @property
    def writes(self) -> OnnxWriter:
        return OnnxWriter(self.opset, profile(self.profile), OnnxRuntime.name)

    @property
    def runs(self) -> None:
        return None
