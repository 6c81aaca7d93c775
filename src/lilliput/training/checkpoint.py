"""Where training stands, as a file of tensors and plain data: no pickle, whole or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lilliput.errors import FormatError, reason
from lilliput.file.container import Part, Reader, write
from lilliput.model.carrier.arrays import to_array, to_tensor


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers and strings."""
    tensors: list[Tensor] = []
    plain = _plain(state, tensors)
    parts = [Part.of(str(i), to_array(x)) for i, x in enumerate(tensors)]
    write(path, {"kind": "answer", "data": json.dumps(plain)}, parts, "fast")


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote; None where there is nothing, or nothing whole."""
    if not path.exists():
        return None
    try:
        reader = Reader(path)
        restored = _restored(json.loads(reader.header["data"]), reader)
    except FormatError:  # of a disk that was full, say: the training begins anew
        path.unlink(missing_ok=True)
        return None
    assert isinstance(restored, dict)
    return restored


def storable_state(state: Any) -> str:
    """Why `save` could not write nested data; empty where it could."""
    tensors: list[Tensor] = []
    try:
        json.dumps(_plain(state, tensors))
        for x in tensors:
            to_array(x)
    except (TypeError, ValueError, RuntimeError, FormatError) as error:
        return reason(error)
    return ""


def _plain(thing: Any, tensors: list[Tensor]) -> Any:
    if isinstance(thing, Tensor):
        tensors.append(thing)
        return {"tensor": len(tensors) - 1}
    if isinstance(thing, Mapping):
        return {"dict": [[_plain(key, tensors), _plain(value, tensors)] for key, value in thing.items()]}
    if isinstance(thing, list | tuple):
        return {type(thing).__name__: [_plain(value, tensors) for value in thing]}
    return thing


def _restored(plain: Any, reader: Reader) -> Any:
    if not isinstance(plain, dict):
        return plain
    ((kind, held),) = plain.items()
    if kind == "tensor":
        return to_tensor(reader.read(str(held)))
    if kind == "dict":
        return {_restored(key, reader): _restored(value, reader) for key, value in held}
    return (tuple if kind == "tuple" else list)(_restored(value, reader) for value in held)
