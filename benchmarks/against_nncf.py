"""Ours against nncf's settings in OpenVINO: latency, output SQNR and accuracy, with floats in float32 or bfloat16.

nncf is given the float ONNX file, all calibration samples one by one (`subset_size` is their number) and, for MiniLM,
`model_type=TRANSFORMER`, with which it smooths outliers away and quantizes attention. Its other settings are a grid. Of
MiniLM the sentences are compared, not every token: what nncf makes of padding is far off (3 dB, where tokens that are
there keep 20), no one reads it, and in the mean over all tokens it hid all else; calibrating without padding changes
little. Accurate bias correction loses by it where samples are padded.

Arguments: names of networks, and `bf16` for the same files with floats in bfloat16, too. nncf runs in an environment of
its own, whose Python the variable PEERS_PYTHON names:

    python3 -m venv peers && peers/bin/pip install nncf==3.4.0 openvino==2026.4.1
    PEERS_PYTHON=peers/bin/python make bench NAME=against_nncf
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from against import Made, compare, report
from labelled import LABELLED

import lilliput as lp
from lilliput.model.views.inputs import Inputs

GRID = Path(__file__).parent / "nncf_models.py"


def theirs(task: lp.Task, original: Path, folder: Path) -> Iterator[Made]:
    """Every setting of the grid, calibrated with the samples of the task's batches."""
    names = [given.name for given in onnx.load(original, load_external_data=False).graph.input]
    arrays: dict[str, np.ndarray] = {}
    count = 0
    for batch in task.calibrate or ():
        tensors = list(Inputs.of(batch).tensors().values())
        for row in range(len(tensors[0])):
            given = zip(names, tensors, strict=True)
            arrays |= {f"{count}:{name}": x[row : row + 1].numpy() for name, x in given}
            count += 1
    np.savez(folder / "calibration.npz", **arrays)
    kind = ["transformer"] if "minilm" in task.name else []
    command = [
        os.environ["PEERS_PYTHON"],
        str(GRID),
        str(original),
        str(folder / "calibration.npz"),
        str(folder),
        *kind,
    ]
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=alone) as process:
        assert process.stdout is not None
        told = [json.loads(line) for line in process.stdout]  # all of it first: nothing else runs while ours is timed
    if process.returncode:
        raise SystemExit(f"nncf stopped with {process.returncode}")
    for made in told:
        yield made["setting"], Path(made["path"]) if "path" in made else made["failed"]


def main() -> None:
    if "PEERS_PYTHON" not in os.environ:
        raise SystemExit(f"PEERS_PYTHON is not set.\n\n{__doc__}")
    targets = [lp.targets.OpenVino(threads=1)]
    if "bf16" in sys.argv[1:]:
        targets.append(replace(targets[0], precision="bf16"))
    names = [name for name in sys.argv[1:] if name != "bf16"] or list(LABELLED)
    report("against_nncf", names, lambda name: compare(name, targets, theirs))


if __name__ == "__main__":
    main()
