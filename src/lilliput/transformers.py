"""transformers: a quantizer for its exporters, by which `OnnxExporter` writes what a recipe of ours makes.

transformers is imported with this module, which nothing else of the library needs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lilliput.delivery import Result
from lilliput.errors import not_installed
from lilliput.formats import from_onnx
from lilliput.recipe import Recipe
from lilliput.targets import Target
from lilliput.task import Task
from lilliput.verbs import compress

try:
    from transformers.exporters.configs import ExportFormat
    from transformers.exporters.quantizers.base import CalibrationSet, ExportQuantizer
    from transformers.exporters.utils import onnx_feed
except ImportError as error:
    raise not_installed("transformers>=5.23", error=error) from None


class LilliputQuantizer(ExportQuantizer):
    """Compresses the file that `transformers.exporters.OnnxExporter` makes: ``OnnxConfig(quantizer=…)``.

    Without a recipe, the target's own default is taken; `target` must read ONNX. `calibration_dataset` are inputs of
    the model, as for the quantizers of transformers. `result` is the outcome of the last export, with the report.

    >>> LilliputQuantizer(target="onnxruntime").result is None
    True
    """

    supported_formats = (ExportFormat.ONNX,)

    def __init__(
        self,
        recipe: Recipe | None = None,
        calibration_dataset: Iterable[dict[str, Any]] | None = None,
        *,
        target: str | Target = "onnxruntime",
        measure: bool = False,
    ) -> None:
        super().__init__(calibration_dataset)
        self.recipe, self.target, self.measure = recipe, target, measure
        self.result: Result | None = None

    def quantize(self, model: ir.Model, sample_inputs: dict[str, Any], export_format: Any) -> ir.Model:
        """The compressed graph of `model`, its inputs and outputs named as before."""
        names = [str(one.name) for one in model.graph.inputs]
        samples = CalibrationSet(self.calibration_dataset, sample_inputs, lambda sample: onnx_feed(names, sample))
        with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
            path = Path(folder) / "model.onnx"
            ir.save(model, path, external_data=f"{path.name}.data")
            task = Task(from_onnx(path), calibrate=list(samples), name=model.graph.name or "model")
            self.result = compress(task, self.recipe, target=self.target, measure=self.measure)
        made = ir.load(self.result.built)
        ir.external_data.load_to_model(made)
        return made
