"""ONNX Runtime, on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lilliput.runtimes.loaded import Loaded
from lilliput.runtimes.session import session

TITLE = "ONNX Runtime"  # in a message


def load(built: Path | bytes, threads: int) -> Loaded:
    """A file in ONNX Runtime; raises whatever that raises, InputError where it is not installed."""
    return loaded_by(session(built, threads))


def loaded_by(held: Any) -> Loaded:
    """What a session of ONNX Runtime holds."""
    names = [value.name for value in held.get_inputs()]
    run = held.run
    return Loaded(len(names), len(held.get_outputs()), lambda given: run(None, dict(zip(names, given, strict=True))))
