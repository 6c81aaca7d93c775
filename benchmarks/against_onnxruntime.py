"""Ours against `onnxruntime.quantization` on three networks: latency and output SQNR of a grid of its settings.

A setting of theirs beats ours only if it is faster (the interval of the ratio reaches 1.03) and closer to the float
network (by 0.3 dB of SQNR over the evaluation inputs). All files are run by the same runtime, in turns with ours.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from networks import NETWORKS, OUT
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from table import write

import lilliput as lp
from lilliput.measure import DistanceSoFar, interleaved
from lilliput.model.capture import Inputs
from lilliput.model.signature import Signature
from lilliput.targets import OnnxRuntime

FASTER, CLOSER_DB = 1.03, 0.3
METHODS = {
    "MinMax": CalibrationMethod.MinMax,
    "Entropy": CalibrationMethod.Entropy,
    "Percentile": CalibrationMethod.Percentile,
}
TYPES = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
STATIC_OPS = ["Conv", "Gemm", "MatMul", "Add", "MaxPool", "GlobalAveragePool", "Clip", "Relu", "Concat", "AveragePool"]


class Reader(CalibrationDataReader):
    """The calibration batches under the names of a graph's inputs."""

    def __init__(self, task: lp.Task, names: list[str]) -> None:
        tensors = [Inputs.of(batch).tensors().values() for batch in task.calibrate or ()]
        self.batches = iter([{n: x.numpy() for n, x in zip(names, given, strict=True)} for given in tensors])

    def get_next(self) -> Any:
        return next(self.batches, None)


def theirs(task: lp.Task, original: Path, folder: Path) -> Iterator[tuple[str, Path | str]]:
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
    for method in METHODS:
        ranges = _ranges(task, plain, folder, method)
        if isinstance(ranges, str):
            yield f"static {method}", ranges
            continue
        for per_channel, activation, weight in itertools.product((True, False), TYPES, TYPES):
            name = f"static {method} {'per channel' if per_channel else 'per tensor'} {activation}×{weight}"
            path = folder / "static.onnx"
            yield name, _made(path, functools.partial(_static, plain, path, ranges, per_channel, activation, weight))


def _made(path: Path, make: Callable[[], object]) -> Path | str:
    try:
        make()
        return path
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _ranges(task: lp.Task, plain: Path, folder: Path, method: str) -> Any:
    try:
        calibrator = create_calibrator(
            plain, STATIC_OPS, str(folder / "augmented.onnx"), METHODS[method], extra_options={"symmetric": False}
        )
        names = [given.name for given in onnx.load(plain, load_external_data=False).graph.input]
        calibrator.collect_data(Reader(task, names))
        return calibrator.compute_data()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _static(plain: Path, path: Path, ranges: Any, per_channel: bool, activation: str, weight: str) -> None:
    quantizer = QDQQuantizer(
        onnx.load(plain),
        per_channel,
        False,
        TYPES[weight],
        TYPES[activation],
        ranges,
        [],
        [],
        STATIC_OPS,
        {"ActivationSymmetric": activation == "s8", "WeightSymmetric": weight == "s8"},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(path))


def compare(name: str, threads: int) -> Iterator[dict[str, Any]]:
    """Rows for one network: ours first, then every setting of theirs beside it."""
    task, folder = NETWORKS[name](), OUT / f"against-{name}"
    target = OnnxRuntime(threads=threads)
    small = lp.compress(task, target=target, folder=folder)
    example = Inputs.of(task.example)
    called = Signature.of(example, example.call(task.model))
    original = target.open(folder / "work" / "original.onnx", called)
    ours = target.open(folder / "net.onnx", called)
    our_db = _sqnr(task, original, ours)
    yield {
        "network": name,
        "setting": "lilliput",
        "bytes": (folder / "net.onnx").stat().st_size,
        "sqnr_db": our_db,
        "faster_than_float": small.data["ratio"]["faster"]["value"],
    }
    for setting, path in theirs(task, folder / "work" / "original.onnx", folder):
        row: dict[str, Any] = {"network": name, "setting": setting}
        if isinstance(path, str):
            yield {**row, "failed": path}
            continue
        try:
            run = target.open(path, called)
            db = _sqnr(task, original, run)
        except Exception as error:
            yield {**row, "failed": str(error).splitlines()[0]}
            continue
        subjects = {"theirs": functools.partial(example.call, run), "ours": functools.partial(example.call, ours)}
        taken = interleaved(subjects, rounds=9, round_s=0.06, settle_s=0.05)
        ratio = taken.ratio("theirs", "ours")
        theirs_faster = taken.ratio("ours", "theirs")
        yield {
            **row,
            "bytes": path.stat().st_size,
            "sqnr_db": db,
            "ours_faster": ratio.value,
            "ours_faster_low": ratio.low,
            "ours_faster_high": ratio.high,
            "rounds": ratio.samples,
            "others_cores": taken.others_cores,
            "beats_ours": theirs_faster.low >= FASTER and db - our_db >= CLOSER_DB,
        }


def _sqnr(task: lp.Task, original: Callable[..., Any], run: Callable[..., Any]) -> float:
    so_far = DistanceSoFar()
    for batch in task.evaluate or ():
        inputs = Inputs.of(batch)
        so_far.add(inputs.call(original), inputs.call(run))
    return so_far.distance().sqnr_db


def main() -> None:
    logging.disable(logging.WARNING)
    threads = os.cpu_count() or 1
    rows = []
    for name in sys.argv[1:] or NETWORKS:
        for row in compare(name, threads):
            rows.append(row)
            print({key: value for key, value in row.items() if key != "failed"}, row.get("failed", ""), flush=True)
    write("against_onnxruntime", rows, threads)
    beaten = [row for row in rows if row.get("beats_ours")]
    print(f"settings that beat ours on both: {len(beaten)} of {len(rows)}")


if __name__ == "__main__":
    main()
