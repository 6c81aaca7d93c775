"""OpenVINO, on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lilliput.errors import not_installed
from lilliput.runtimes.loaded import Loaded

TITLE = "OpenVINO"  # in a message
PRECISION = "f32"  # in which layers in float compute, unless another is asked for
_TRACKER = "openvino_telemetry"


def load(built: Path | bytes, threads: int, precision: str | None = PRECISION) -> Loaded:
    """A file in OpenVINO; raises whatever that raises, InputError where it is not installed."""
    held = compiled(built, threads, precision)
    request, names = held.create_infer_request(), _input_names(built)
    read = {name for taken in held.inputs for name in taken.names}  # OpenVINO may drop what nothing reads

    def run(arrays: Sequence[np.ndarray]) -> list[Any]:
        given = {name: x for name, x in zip(names, arrays, strict=True) if name in read}
        return list(request.infer(given, share_inputs=True).to_tuple())

    return Loaded(len(names), len(held.outputs), run)


def compiled(built: Path | bytes, threads: int, precision: str | None, **more: Any) -> Any:
    """A compiled model of OpenVINO; `precision` None: what OpenVINO chooses. `more` are settings of its own."""
    core = package().Core()
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # or all that is timed waits for the same core, however busy
        **more,
    }
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    given = built if isinstance(built, bytes) else str(built)
    return core.compile_model(core.read_model(given), "CPU", settings)


def _input_names(built: Path | bytes) -> list[str]:
    """The inputs that a file declares, in order, whether or not anything reads them."""
    model = onnx.load_from_string(built) if isinstance(built, bytes) else onnx.load(built, load_external_data=False)
    return [value.name for value in model.graph.input]


def package() -> Any:
    """The package, imported without a report to its maker; raises InputError where it is not installed."""
    try:
        with _untracked():
            import openvino
    except ImportError as error:
        raise not_installed("openvino", error=error) from None
    return openvino


@contextmanager
def _untracked() -> Iterator[None]:
    """Inside, OpenVINO does not find its tracker, in place of which it then takes a stub of its own.

    On being imported it would send an event and keep an identity in the user's home, and no variable stops that. A
    program that imported it earlier has decided for itself, and afterwards the tracker can be imported by others.
    """
    held = {name: module for name, module in sys.modules.items() if name == _TRACKER}
    sys.modules[_TRACKER] = None  # type: ignore[assignment]  # which importing takes for "not installed"
    try:
        yield
    finally:
        del sys.modules[_TRACKER]
        sys.modules.update(held)
