"""A task from what the user has: Python that defines one, a network in ONNX, or a folder of Hugging Face."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.errors import InputError, reason
from lilliput.importers import from_onnx
from lilliput.pretrained import KINDS
from lilliput.task import Task

_BATCH = 16  # samples


@dataclass(frozen=True)
class Source:
    """What the user typed of what is to be compressed."""

    path: Path
    inputs: Path | None = None  # that go with an ONNX file
    task: str | None = None  # the name of what a folder's network does
    data: Path | None = None  # that go with a folder


def load_task(source: Source) -> Task:
    """The task in a file: an ONNX file with inputs, a folder with data, or Python that defines a `task`."""
    is_onnx, is_folder = source.path.suffix.lower() == ".onnx", source.task is not None or source.path.is_dir()
    if source.inputs is not None and not is_onnx:
        raise InputError("goes with an ONNX file", where="--inputs", next="give calibrate= to the task of the file")
    if source.data is not None and not is_folder:
        raise InputError("goes with a folder and --task", where="--data", next="give --task NAME beside it")
    if is_folder:
        return _folder_task(source)
    return _onnx_task(source.path, source.inputs) if is_onnx else _python_task(source.path)


def _folder_task(source: Source) -> Task:
    """The network in a folder of Hugging Face, by the name of its task."""
    if source.task is None or source.data is None:
        missing = "--task NAME" if source.task is None else "--data FILE"
        kinds = f": {', '.join(KINDS)}" if source.task is None else ", samples as it will meet them"
        raise InputError(f"a folder without {missing}", where=str(source.path), next=f"give {missing}{kinds}")
    return Task.from_pretrained(source.path, source.task, source.data)


def _onnx_task(path: Path, inputs: Path | None) -> Task:
    """The network of an ONNX file, and a file of arrays by the names of its inputs, samples along the first axis."""
    net = from_onnx(path)
    axes = net.meta["dynamic"]
    if inputs is None:
        raise InputError(
            "needs inputs to calibrate with",
            where=str(path),
            next=f"give --inputs FILE.npz, made by numpy.savez(file, {', '.join(f'{name}=…' for name in axes)})",
        )
    try:
        with np.load(inputs, allow_pickle=False) as held:
            arrays = {name: torch.from_numpy(held[name]) for name in held.files}
    except Exception as error:  # whatever NumPy says of a file
        raise InputError("holds no arrays", where=str(inputs), why=reason(error), next="write numpy.savez") from None
    if set(arrays) != set(axes):
        raise InputError(
            f"holds {', '.join(sorted(arrays))}", where=str(inputs), next=f"name the arrays {', '.join(axes)}"
        )
    return Task(net, calibrate=_batches(arrays, axes), name=path.stem)


def _batches(arrays: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]]) -> list[dict[str, Tensor]]:
    """Some samples at a time, where all inputs have them along their first axis; or else all as one batch."""
    lengths = {len(x) if 0 in axes[name] and x.dim() else 0 for name, x in arrays.items()}
    if len(lengths) > 1 or 0 in lengths:
        return [dict(arrays)]
    parts = (x.split(_BATCH) for x in arrays.values())
    return [dict(zip(arrays, part, strict=True)) for part in zip(*parts, strict=True)]


def _python_task(path: Path) -> Task:
    """The `task` that the file at `path` defines: a Task, or a function that returns one.

    The file's folder is on `sys.path` meanwhile. An error in the file is reported with its file and line.
    """
    if not path.is_file():
        raise InputError("there is no such file", where=str(path), next="give a Python file that defines `task`")
    with _importable_beside(path):
        module = _run(path)
        task = getattr(module, "task", None)
        if callable(task) and not isinstance(task, Task):
            task = _guarded(task, path)
    if task is None:
        raise InputError("defines no `task`", where=str(path), next="write task = lp.Task(…), or a function task()")
    if not isinstance(task, Task):
        raise InputError(f"`task` is of type {type(task).__name__}", where=str(path), next="make it an lp.Task")
    return task


@contextlib.contextmanager
def _importable_beside(path: Path) -> Iterator[None]:
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the file may have removed it itself
            sys.path.remove(folder)


def _run(path: Path) -> ModuleType:
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_task"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError("is no Python file", where=str(path), next="give a .py file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # classes defined in the file are looked up here, by dataclasses and pickle
    _guarded(lambda: spec.loader.exec_module(module), path)  # type: ignore[union-attr]
    return module


def _guarded(call: Callable[[], Any], path: Path) -> Any:
    """What `call` returns; what it raises comes out as one message with the user's file and line."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise InputError("the task file failed", where=_place(error, path), why=reason(error)) from error


def _place(error: BaseException, path: Path) -> str:
    """Where the user's code failed: a line that cannot be parsed, or the innermost one beside the task."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    beside = path.resolve().parent
    lines = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if beside in Path(frame.filename).resolve().parents
    ]
    return lines[-1] if lines else str(path)
