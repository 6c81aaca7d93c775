"""How long int8 calibration of EfficientNet-Lite0 on 128 images takes: ours, nncf's, ONNX Runtime's `quantize_static`.

Each in a process of its own on one core, in turns, five times. Ours is what stands beside the others' work: finding
ranges and fitting weights. Told apart are reading the batches and capturing the network, instead of which they read a
file, and the export to one. Imports, and the export of the float network for them, count for nobody. The processor's
seconds are judged, for other work may slow the clock's. Once as the system gives memory, and once with what was
freed kept for what comes next (by two variables that the C library reads): torch gets most of it anew at each layer.

nncf runs in an environment of its own, named by PEERS_PYTHON (see against_nncf.py).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

IMAGES, SIZE, ROUNDS = 128, 8, 5
SETTINGS = ("lilliput", "onnxruntime MinMax", "nncf")
MEMORY: dict[str, dict[str, str]] = {
    "as the system gives it": {},
    "kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30)},
}
Work = tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], object]]  # what comes before, work, after it


def ours(folder: Path) -> Work:
    from networks import data, lite0
    from torch import nn

    import lilliput as lp
    from lilliput.engine.begin import begin, follow
    from lilliput.engine.run import Driver
    from lilliput.engine.store import Store
    from lilliput.progress import silent

    target, model = lp.targets.OpenVino(threads=1), lite0().model
    assert isinstance(model, nn.Module)
    images = data.calibration(IMAGES // 8)
    task = lp.Task(model, example=images[:1], calibrate=list(images.split(SIZE)))

    def capture() -> Driver:
        driver, _ = begin(task, target, Store(), silent)
        prepare(driver)
        driver.view()
        return driver

    def work(driver: Driver) -> Driver:
        follow(target.prefers.recipe(driver.view(), calibrated=True), driver)
        return driver

    def export(driver: Driver) -> None:
        target.writes.build(folder / "ours.onnx", driver.model, driver.example, driver.dynamic)

    return capture, work, export


def onnxruntime(folder: Path) -> Work:
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    images = np.load(folder / "images.npy")

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.split(images, IMAGES // SIZE))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    def work(nothing: None) -> None:
        quantize_static(folder / "plain.onnx", folder / "theirs.onnx", Reader(), per_channel=True)

    return lambda: None, work, lambda done: None


def nncf(folder: Path) -> Work:
    import nncf as peer
    import numpy as np
    import openvino

    images = np.load(folder / "images.npy")
    dataset = peer.Dataset([{"x": batch} for batch in np.split(images, IMAGES)])

    def work(nothing: None) -> None:
        model = openvino.Core().read_model(folder / "float.onnx")
        openvino.save_model(peer.quantize(model, dataset, subset_size=IMAGES), folder / "theirs.xml")

    return lambda: None, work, lambda done: None


def one(setting: str, folder: Path) -> None:
    """Do the work of one setting and print its seconds; run in a process of its own."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what nncf tells of its progress is no answer
    parts = {"lilliput": ours, "onnxruntime MinMax": onnxruntime, "nncf": nncf}[setting](folder)
    done, taken = None, {}
    for name, part in zip(("capture", "calibration", "export"), parts, strict=True):
        clock, processor = perf_counter(), process_time()
        done = part() if name == "capture" else part(done)  # type: ignore[operator]
        taken |= {f"{name}_seconds": perf_counter() - clock, f"{name}_processor_seconds": process_time() - processor}
    print(json.dumps(taken), file=answers, flush=True)


def prepare(folder: Path) -> None:
    """The float network as a file, prepared as ONNX Runtime asks for, and the images."""
    import numpy as np
    import onnx
    from networks import data, lite0
    from onnxruntime.quantization.shape_inference import quant_pre_process

    import lilliput as lp

    images = data.calibration(IMAGES // 8)
    np.save(folder / "images.npy", images.numpy())
    lp.export(folder / "float.onnx", lite0().model, example=images[:1])
    held = onnx.load(folder / "float.onnx")
    was = held.graph.input[0].name
    for node in held.graph.node:
        node.input[:] = ["x" if name == was else name for name in node.input]
    held.graph.input[0].name = "x"
    onnx.save(held, folder / "float.onnx")
    quant_pre_process(str(folder / "float.onnx"), str(folder / "plain.onnx"))


def alone(setting: str, memory: str, place: str) -> dict[str, float]:
    """What one setting takes, in a process of its own."""
    core, python = {min(os.sched_getaffinity(0))}, sys.executable
    given = os.environ | MEMORY[memory] | {"OMP_NUM_THREADS": "1", "NNCF_CI": "1"}  # nncf notes no events for its maker
    if setting == "nncf":
        python = os.environ["PEERS_PYTHON"]
        given.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, __file__, setting, place],
        env=given,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def beside_ours(found: list[dict[str, float]], ours: list[dict[str, float]]) -> dict[str, float]:
    """How many times the processor's seconds of ours a setting takes, round by round: median, least and most."""
    name = "calibration_processor_seconds"
    ratios = [row[name] / own[name] for row, own in zip(found, ours, strict=True)]
    return {"times_ours": statistics.median(ratios), "times_ours_least": min(ratios), "times_ours_most": max(ratios)}


def main() -> None:
    if "PEERS_PYTHON" not in os.environ:
        sys.exit(f"PEERS_PYTHON is not set.\n\n{__doc__}")
    from table import write

    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        for _ in range(ROUNDS):
            for memory in MEMORY:
                for setting in SETTINGS:
                    taken.setdefault((memory, setting), []).append(alone(setting, memory, place))
                    print(memory, setting, taken[memory, setting][-1], flush=True)
    rows = [
        {
            "network": "lite0",
            "images": IMAGES,
            "memory": memory,
            "setting": setting,
            **{name: statistics.median(row[name] for row in found) for name in found[0]},
            **beside_ours(found, taken[memory, "lilliput"]),
            "rounds": len(found),
        }
        for (memory, setting), found in taken.items()
    ]
    write("calibration", rows, threads=1)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        one(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
