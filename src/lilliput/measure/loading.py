"""What it takes to load a built file and run it once, found in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

RUNTIMES = frozenset({"onnxruntime", "openvino"})
_PROGRAM = Path(__file__).with_name("opened.py")
_TIMES = 2  # that a file is loaded: the least counts
_LONGEST_S = 600.0


@dataclass(frozen=True)
class Loading:
    """What loading a file takes, and the first call: processor seconds, and the most memory added to a process.

    >>> Loading(0.4, 143, 0.1, 90).most_bytes
    143
    """

    seconds: float
    peak_bytes: int | None  # while it is loaded; None where the system does not say
    call_s: float  # of the first call
    call_peak_bytes: int | None  # while that runs, what was loaded included

    @property
    def most_bytes(self) -> int | None:
        known = [x for x in (self.peak_bytes, self.call_peak_bytes) if x is not None]
        return max(known, default=None)


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
    seconds, peaks, calls, call_peaks = zip(*map(astuple, taken), strict=True)
    return Loading(min(seconds), _least(peaks), min(calls), _least(call_peaks))


def _least(counts: Sequence[int | None]) -> int | None:
    return min((x for x in counts if x is not None), default=None)


def _once(runtime: str, path: Path, inputs: Path, threads: int) -> Loading | None:
    # -P: or the files beside the program would stand for modules of Python's own
    command = [sys.executable, "-P", str(_PROGRAM), runtime, str(path), str(inputs), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LONGEST_S, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        return Loading(float(told["seconds"]), told["peak_bytes"], float(told["call_s"]), told["call_peak_bytes"])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return None
