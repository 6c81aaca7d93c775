"""Run as a program: opens a built file in a runtime, calls it once, and says what that took; imports none of ours."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np


def main(runtime: str, path: str, inputs: str, threads: str) -> None:
    """Print what loading the file at `path` took, and the first call of it on the arrays of `inputs` (`.npz`).

    As ``{"seconds": …, "peak_bytes": …, "call_s": …, "call_peak_bytes": …}``: processor seconds and added memory.
    """
    with np.load(inputs, allow_pickle=False) as held:
        arrays = [held[name] for name in held.files]
    open_it = {"onnxruntime": onnxruntime, "openvino": openvino}[runtime](int(threads))
    held_before, began = memory("VmRSS"), process_time()
    call = open_it(path)
    seconds, peak = process_time() - began, memory("VmHWM")
    forget_peak()
    began = process_time()
    call(arrays)
    call_s, call_peak = process_time() - began, memory("VmHWM")
    added, call_added = (None if x is None or held_before is None else x - held_before for x in (peak, call_peak))
    print(json.dumps({"seconds": seconds, "peak_bytes": added, "call_s": call_s, "call_peak_bytes": call_added}))


def onnxruntime(threads: int) -> Callable[[str], Callable[[Sequence[np.ndarray]], Any]]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4

    def open_it(path: str) -> Callable[[Sequence[np.ndarray]], Any]:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))

    return open_it


def openvino(threads: int) -> Callable[[str], Callable[[Sequence[np.ndarray]], Any]]:
    import openvino as runtime

    core, settings = runtime.Core(), {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}

    def open_it(path: str) -> Callable[[Sequence[np.ndarray]], Any]:
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        return lambda arrays: compiled(list(arrays))

    return open_it


def forget_peak() -> None:
    """Let the system count the peak of this process anew; where it cannot, what follows holds the peak before it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory(key: str) -> int | None:
    """Bytes that the system's status of this process gives for `key`: the peak is of this program alone there."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = next((line for line in lines if line.startswith(f"{key}:")), None)
    return None if found is None else 1024 * int(found.split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
