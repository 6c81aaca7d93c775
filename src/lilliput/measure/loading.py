"""What it takes to load a built file and run it once, found in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RUNTIMES = frozenset({"onnxruntime", "openvino"})
_PROGRAM = Path(__file__).with_name("opened.py")
_TIMES = 2  # that a file is loaded: the least counts
_LONGEST_S = 600.0


@dataclass(frozen=True)
class Loading:
    """Processor seconds that loading a file takes, and the most memory that loading and one call add to a process."""

    seconds: float
    peak_bytes: int | None  # None where the system does not say


def loading(runtime: str, path: Path, inputs: Sequence[np.ndarray], threads: int) -> Loading | None:
    """Load the file at `path` in `runtime`, one of `RUNTIMES`, and call it on `inputs`; None where that fails.

    Each time in a fresh process, so that neither what this one holds nor the file before it counts.
    """
    with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
        held = Path(folder) / "inputs.npz"
        np.savez(held, *inputs)
        found = [_once(runtime, path, held, threads) for _ in range(_TIMES)]
    taken = [one for one in found if one is not None]
    if not taken:
        return None
    peaks = [one.peak_bytes for one in taken if one.peak_bytes is not None]
    return Loading(min(one.seconds for one in taken), min(peaks, default=None))


def _once(runtime: str, path: Path, inputs: Path, threads: int) -> Loading | None:
    # -P: or the files beside the program would stand for modules of Python's own
    command = [sys.executable, "-P", str(_PROGRAM), runtime, str(path), str(inputs), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LONGEST_S, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        return Loading(float(told["seconds"]), told["peak_bytes"])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return None
