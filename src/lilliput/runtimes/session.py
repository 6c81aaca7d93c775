"""An ONNX file opened by ONNX Runtime, without its notes to its maker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lilliput.errors import not_installed
from lilliput.external import SMALL, data_of

_BESIDE = "session.optimized_model_external_initializers_"


def session(
    built: Path | bytes,
    threads: int | None = None,
    *,
    optimized: Path | None = None,
    profile: Path | None = None,
    as_written: bool = False,
    folder: Path | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU; raises whatever onnxruntime raises, and InputError without it.

    With `as_written` it computes node by node, with nothing fused. The graph that it makes of the file is written to
    `optimized`, and what its nodes take to a file that begins with `profile`. What bytes do not hold lies in `folder`.

    On being imported, ONNX Runtime 1.31 begins to note events for its maker, unless the variable is set by then.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise not_installed("onnxruntime", error=error) from None

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what fails comes as an error, and is reported as one
    # threads that spin on after a run would steal time from the session that it is compared with
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        if not isinstance(built, bytes) and data_of(built).exists():  # a protobuf would not hold it
            options.add_session_config_entry(f"{_BESIDE}file_name", data_of(optimized).name)
            options.add_session_config_entry(f"{_BESIDE}min_size_in_bytes", str(SMALL))
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    given = built if isinstance(built, bytes) else str(built)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
