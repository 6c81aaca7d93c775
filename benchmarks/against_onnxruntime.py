"""Ours against `onnxruntime.quantization`: latency, output SQNR and accuracy of a grid of its settings.

The grid: ranges at run time, weights signed or not, a scale a channel or a tensor; ranges from calibration by three
methods with unsigned values and signed weights, a scale a channel or a tensor; and by the first method also with
weights of 7 bits, and with signed values. Networks without convolutions get static ranges around what is multiplied
alone, as its documentation advises: around all else, a mask's -1e38 would set the range of what is added to it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from against import Made, compare, report
from labelled import LABELLED
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

import lilliput as lp
from lilliput.model.views.inputs import Inputs

METHODS = {
    "MinMax": CalibrationMethod.MinMax,
    "Entropy": CalibrationMethod.Entropy,
    "Percentile": CalibrationMethod.Percentile,
}
TYPES = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
MULTIPLIED = ["Gemm", "MatMul"]
STATIC_OPS = ["Conv", "Gemm", "MatMul", "Add", "MaxPool", "GlobalAveragePool", "Clip", "Relu", "Concat", "AveragePool"]


class Reader(CalibrationDataReader):
    """The calibration batches under the names of a graph's inputs."""

    def __init__(self, task: lp.Task, names: list[str]) -> None:
        tensors = [Inputs.of(batch).tensors().values() for batch in task.calibrate or ()]
        self.batches = iter([{n: x.numpy() for n, x in zip(names, given, strict=True)} for given in tensors])

    def get_next(self) -> Any:
        return next(self.batches, None)


def theirs(task: lp.Task, original: Path, folder: Path) -> Iterator[Made]:
    """Every setting of the grid with the file that it gives, or with the reason why it gives none."""
    plain = folder / "theirs.onnx"
    with contextlib.chdir(folder):  # it leaves files where it is run
        try:
            quant_pre_process(str(original), str(plain))
        except Exception:  # its symbolic shape inference does not know every graph
            quant_pre_process(str(original), str(plain), skip_symbolic_shape=True)
    stripped = onnx.load(plain)
    del stripped.graph.value_info[:]
    onnx.save(stripped, plain)
    for per_channel, weight in itertools.product((True, False), TYPES):
        name, path = f"dynamic {'per channel' if per_channel else 'per tensor'} {weight}", folder / "dynamic.onnx"
        settings = {"per_channel": per_channel, "weight_type": TYPES[weight]}
        yield name, _made(path, functools.partial(quantize_dynamic, plain, path, **settings))
    operators = STATIC_OPS if any(node.op_type == "Conv" for node in stripped.graph.node) else MULTIPLIED
    for method in METHODS:
        ranges = _ranges(task, plain, folder, method, operators)
        if isinstance(ranges, str):
            yield f"static {method}", ranges
            continue
        kinds = [("u8", "s8", False, True), ("u8", "s8", False, False)]
        if method == "MinMax":
            kinds += [("u8", "s8", True, True), ("s8", "s8", False, True)]
        for activation, weight, reduced, per_channel in kinds:
            bits = " of 7 bits" if reduced else ""
            name = f"static {method} {'per channel' if per_channel else 'per tensor'} {activation}×{weight}{bits}"
            path = folder / "static.onnx"
            made = functools.partial(_static, plain, path, ranges, operators, per_channel, reduced, activation, weight)
            yield name, _made(path, made)


def _made(path: Path, make: Callable[[], object]) -> Path | str:
    try:
        make()
        return path
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _ranges(task: lp.Task, plain: Path, folder: Path, method: str, operators: list[str]) -> Any:
    try:
        calibrator = create_calibrator(
            plain, operators, str(folder / "augmented.onnx"), METHODS[method], extra_options={"symmetric": False}
        )
        names = [given.name for given in onnx.load(plain, load_external_data=False).graph.input]
        calibrator.collect_data(Reader(task, names))
        return calibrator.compute_data()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _static(
    plain: Path,
    path: Path,
    ranges: Any,
    operators: list[str],
    per_channel: bool,
    reduced: bool,
    activation: str,
    weight: str,
) -> None:
    quantizer = QDQQuantizer(
        onnx.load(plain),
        per_channel,
        reduced,
        TYPES[weight],
        TYPES[activation],
        ranges,
        [],
        [],
        operators,
        {"ActivationSymmetric": activation == "s8", "WeightSymmetric": weight == "s8"},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(path))


def main() -> None:
    logging.disable(logging.WARNING)
    target = lp.targets.OnnxRuntime(threads=1)
    names = sys.argv[1:] or list(LABELLED)
    report("against_onnxruntime", names, lambda name: compare(name, [target], theirs, speed=False))


if __name__ == "__main__":
    main()
