"""What answers in an environment without Lilliput: ``python serving.py MODULE THREADS``, MODULE a file beside this one.

A message is a line of JSON, in which ``arrays`` tells types and shapes, and then the bytes of those arrays.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np


def read(stream: BinaryIO) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """The next message and its arrays; None where there is no more."""
    line = stream.readline()
    if not line:
        return None
    told, arrays = json.loads(line), []
    for kind, shape in told.pop("arrays"):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        arrays.append(np.frombuffer(bytearray(stream.read(size)), np.dtype(kind)).reshape(shape))
    return told, arrays


def write(stream: BinaryIO, told: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """A message and its arrays.

    >>> import io
    >>> stream = io.BytesIO()
    >>> write(stream, {"do": "run"}, [np.float32([[1, 2]])])
    >>> read(io.BytesIO(stream.getvalue()))
    ({'do': 'run'}, [array([[1., 2.]], dtype=float32)])
    """
    line = json.dumps({**told, "arrays": [(x.dtype.str, list(x.shape)) for x in arrays]})
    stream.write(line.encode() + b"\n")
    for x in arrays:
        stream.write(x.tobytes())
    stream.flush()


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, called again until `seconds` are over, and once at least."""
    taken = list[float]()
    began = last = time.perf_counter()
    while not taken or last - began < seconds:
        call()
        now = time.perf_counter()
        taken.append(now - last)
        last = now
    return taken


def serve(package: Any, source: BinaryIO, stream: BinaryIO) -> None:
    """Answer until there is no more to read. `package` has two functions.

    ``build(program, path)`` writes a file and may tell of it; ``opened(path)`` gives one with the shapes that it
    `takes`, its arguments when they are `ready`, a way to `run` it, and a way to `read` what comes of that.
    """
    held = list[Any]()
    while (request := read(source)) is not None:
        told, arrays = request
        try:
            answer, given = _answer(package, told, arrays, held)
        except Exception as error:  # packages raise many kinds
            answer, given = {"error": f"{type(error).__name__}: {error}"}, []
        write(stream, answer, given)


def _answer(
    package: Any, told: dict[str, Any], arrays: list[np.ndarray], held: list[Any]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    verb = told["do"]
    if verb == "build":
        return package.build(told["program"], told["path"]) or {}, []
    if verb == "open":
        held.append(package.opened(told["path"]))
        return {"id": len(held) - 1, "takes": held[-1].takes}, []
    if verb == "clock":
        return {"seconds": time.process_time()}, []
    file = held[told["id"]]
    given = file.ready(arrays)
    if verb == "time":
        return {"seconds": timed(lambda: file.run(given), told["for"])}, []
    return {}, [np.array(x, order="C") for x in file.read(file.run(given))]


def main() -> None:
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what packages print is no answer
    package = importlib.import_module(sys.argv[1])
    package.begin(int(sys.argv[2]))
    write(stream, {"ready": True})
    serve(package, sys.stdin.buffer, stream)


if __name__ == "__main__":
    main()
