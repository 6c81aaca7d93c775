"""A network in onnxruntime-web, held by a process of Node.js."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

from lilliput.errors import ExportError
from lilliput.external import files_of
from lilliput.web.package import Package, node_program

_RUNNER = Path(__file__).with_name("node.mjs")
_NUMPY = {"bool": np.dtype(np.bool_)}  # the other types go by NumPy's own names
_PATIENCE_S = 5.0  # for a process that is told to end


class Node:
    """One file, loaded; called with arrays in the order of its inputs, it gives those of its outputs.

    Raises ExportError for what the runtime does not load, or fails on. The process ends with this object.
    """

    def __init__(self, package: Package, built: Path | bytes, *, profiled: bool = False) -> None:
        folder = tempfile.TemporaryDirectory(prefix="lilliput-")
        path = Path(folder.name) / "net.onnx"
        if isinstance(built, bytes):
            path.write_bytes(built)
        else:
            path = built
        given = [package.script, package.binary, path, "1" if profiled else "0", *files_of(path)[1:]]
        self._said = open(Path(folder.name) / "said", "w+b")  # noqa: SIM115  closed by _end
        self._process = subprocess.Popen(
            [node_program(), str(_RUNNER), *map(str, given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        weakref.finalize(self, _end, self._process, self._said, folder)
        self._lock = Lock()
        told = self._answer()[0]
        self.inputs: list[str] = told["inputs"]
        self.outputs: list[str] = told["outputs"]

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        told, bytes_ = self._ask({"do": "run"}, arrays)
        found, at = [], 0
        for one in told["outputs"]:
            part = bytes_[at : at + one["length"]]
            found.append(np.frombuffer(part, _NUMPY.get(one["type"], one["type"])).reshape(one["shape"]).copy())
            at += one["length"]
        return found

    def take(self, arrays: Sequence[np.ndarray]) -> None:
        """Keep these to be called with by `time`, so that no time goes into carrying them over."""
        self._ask({"do": "take"}, arrays)

    def time(self, seconds: float, least: int = 1) -> tuple[list[float], float]:
        """Milliseconds of each call with what was taken, for so long, and those of the processor in the mean."""
        told, _ = self._ask({"do": "time", "seconds": seconds, "least": least})
        return told["ms"], told["processor_ms"]

    def account(self) -> list[dict[str, Any]]:
        """The runtime's own account of all calls, event by event, of a file that was loaded `profiled`."""
        lines: list[bytes] = []
        self._ask({"do": "account"}, lines=lines)
        return [json.loads(line.rstrip().rstrip(b",")) for line in lines if line.startswith(b"{")]

    def _ask(
        self, question: dict[str, Any], arrays: Sequence[np.ndarray] = (), lines: list[bytes] | None = None
    ) -> tuple[dict[str, Any], bytes]:
        held = [np.ascontiguousarray(x) for x in arrays]
        tensors = [
            {"name": name, "type": x.dtype.name, "shape": x.shape, "length": x.nbytes}
            for name, x in zip(self.inputs, held, strict=bool(arrays))
        ]
        told = {**question, "inputs": tensors, "bytes": sum(x.nbytes for x in held)}
        with self._lock:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # what it died of is said where its answer is missing
                self._process.stdin.write(json.dumps(told).encode() + b"\n")
                for x in held:
                    self._process.stdin.write(x.tobytes())
                self._process.stdin.flush()
            return self._answer(lines)

    def _answer(self, lines: list[bytes] | None = None) -> tuple[dict[str, Any], bytes]:
        pipe = self._process.stdout
        assert pipe is not None
        while not (line := pipe.readline()).startswith(b"\0"):
            if not line:
                raise ExportError(
                    "Node.js ended",
                    why=self._last_words(),
                    next="a page would do the same: the network may be too large",
                )
            if lines is not None:
                lines.append(line)
        told = json.loads(line[1:])
        if "error" in told:
            raise ExportError(told["error"])
        return told, pipe.read(sum(one["length"] for one in told.get("outputs", ()) if isinstance(one, dict)))

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return next((line for line in lines if "Error" in line), lines[-1] if lines else "it said nothing")


def _end(process: subprocess.Popen[bytes], said: IO[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    said.close()
    folder.cleanup()
