"""`lilliput.open`: the network in a file as a callable; without importing torch."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from lilliput.errors import FormatError, nearest
from lilliput.file.container import Reader
from lilliput.file.graph import is_large, restore, restored
from lilliput.model.views.signature import Signature
from lilliput.runtimes import onnxruntime, openvino
from lilliput.runtimes.loaded import Runner, opened

Opens = Callable[[Path | bytes, Signature], Runner]
_RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}


def open(path: str | Path, *, threads: int | None = None, base: str | Path | None = None) -> Runner:
    """The network in a `.lil` file as a callable, without its source: it runs in the runtime that it was made for.

    It takes the arguments that the module takes and answers as the module does, named outputs as a dict; with tensors
    where it is given tensors, with arrays where it is given arrays, for which torch need not be there. `threads`: of
    the runtime; None: as many as there are cores. `base` is the file that it was made from, if any.

    Raises FormatError for a file that is damaged, hostile or holds no graph, InputError where the runtime is missing.

    >>> import numpy as np, tempfile, torch, lilliput as lp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sizes = lp.save(f"{folder}/net.lil", torch.nn.Linear(64, 8), example=torch.randn(1, 64))
    ...     run = open(f"{folder}/net.lil")
    >>> run(torch.randn(3, 64)).shape, type(run(np.zeros((3, 64), np.float32))).__name__
    (torch.Size([3, 8]), 'ndarray')
    """
    reader = Reader(path, None if base is None else Reader(base))
    reader.check_stored()
    large = is_large(reader)
    described = reader.header["graph"]
    where = f"{path}: graph"
    opens, signature = _opener(described.get("target"), threads, where), Signature.read(described, where)
    return _opened_large(reader, opens, signature) if large else opens(restored(reader), signature)


def _opener(target: str, threads: int | None, where: str) -> Opens:
    """What opens the graphs made for a target: a runtime of ours, or that of a target that was registered."""
    if target in _RUNTIMES:
        runtime = _RUNTIMES[target]
        load = partial(runtime.load, threads=threads or os.cpu_count() or 1)
        return lambda built, signature: opened(load, built, signature, runtime.TITLE)
    from lilliput.targets import TARGETS

    if target not in TARGETS:
        raise FormatError(f"was made for {target!r}", where=where, next=nearest(str(target), TARGETS))
    runs = TARGETS[target](threads=threads).runs
    if runs is None:
        raise FormatError(f"was made for {target}, which is not run here", where=where, next="load it into its module")
    return runs.open


def _opened_large(reader: Reader, opens: Opens, signature: Signature) -> Runner:
    """A graph that no protobuf holds: it lies in a folder for as long as it is used."""
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="lilliput-", ignore_cleanup_errors=True)
        built = restore(reader, Path(stack.enter_context(folder)) / "net.onnx")
        run = opens(built, signature)
        weakref.finalize(run, stack.pop_all().close)
        return run
