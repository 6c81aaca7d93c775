"""The rows of the report: what became of each tensor that a layer multiplies by or looks up in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lilliput.encodings import Encoding
from lilliput.engine.run import Driver
from lilliput.measure import Noise
from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.encoded_tensor import SUFFIX, EncodedTensor
from lilliput.model.carrier.parameters import encoding_of
from lilliput.model.views.values import value_encodings

_PIECE = 1 << 22  # elements of a weight that are compared at a time, in float64


def layers(
    driver: Driver, exact: Mapping[str, tuple[str, Tensor]], stored: Mapping[str, int] | None
) -> list[dict[str, Any]]:
    """One row for each tensor that a layer multiplies by or looks up in.

    `exact` holds the tensors before they were encoded, with the paths that they had, by those that they have now;
    `stored` the bytes of each tensor in the file, where there is one.
    """
    view = driver.view()
    values, rows = value_encodings(driver.model), []
    for paths, held in tensors(driver.model).items():
        calls = view.weights.get(paths[0], [])
        if not calls:
            continue
        call, encoding = calls[0], held.encoding if isinstance(held, EncodedTensor) else None
        read = values.get(f"{call.value}@0") or _producer(view, call, values)
        with torch.no_grad():
            now = held() if isinstance(held, EncodedTensor) else held
        was, before = exact.get(paths[0], (None, None))
        moved = _moved(before, now)
        count, held_bytes = max(1, math.prod(held.shape)), None if stored is None else _bytes(stored, paths[0])
        rows.append(
            {
                "path": paths[0],
                "ties": list(paths[1:]),
                "op": call.op,
                "shape": list(held.shape),
                "was": was if was != paths[0] else None,
                "shape_before": None if before is None else list(before.shape),
                "encoding": str(held.dtype).removeprefix("torch.") if encoding is None else encoding.label(),
                "activations": "float32" if read is None else read.encoding.label(),
                "bits_per_weight": None if held_bytes is None else 8 * held_bytes / count,
                "nominal_bits": _bits(encoding, held) / count,
                "bytes": held_bytes,
                "zeros": float((now == 0).float().mean()),
                "norm": None if moved is None else math.sqrt(moved.signal),
                "sqnr_db": None if moved is None else moved.db,
                "runs_as": _runs_as(driver, paths[0], call, encoding, None if read is None else read.encoding),
                "note": driver.told.notes.get(paths[0], ""),
            }
        )
    return rows


def _runs_as(driver: Driver, path: str, call: Any, encoding: Encoding | None, activation: Encoding | None) -> str:
    """What the target will do with a layer."""
    others = [encoding_of(driver.model, other) for other in call.weights if other != path]
    return driver.target.prefers.remark(call, encoding, activation, others)


def _producer(view: Any, call: Any, values: Mapping[str, Any]) -> Any:
    """The encoder of the value that the call reads, seen through calls that leave the range alone."""
    source = view.by_id.get(call.reads[0] or "")
    while source is not None and source.value not in values and source.op in ("pad", "dropout", "contiguous"):
        if f"{source.value}@0" in values:
            return values[f"{source.value}@0"]
        source = view.by_id.get(source.reads[0] or "")
    return None if source is None else values.get(source.value)


def _bytes(stored: Mapping[str, int], path: str) -> int:
    """What a tensor takes in the file, all parts of it."""
    return sum(size for name, size in stored.items() if name == path or name.startswith(f"{path}{SUFFIX}."))


def _bits(encoding: Encoding | None, held: Tensor | EncodedTensor) -> int:
    shape = tuple(held.shape)
    return 8 * held.dtype.itemsize * math.prod(shape) if encoding is None else encoding.size_bits(shape)


def _moved(exact: Tensor | None, now: Tensor) -> Noise | None:
    """How far encoding moved a weight of the prepared original; None where there is none of that shape."""
    if exact is None or exact.shape != now.shape:
        return None
    noise = Noise()
    pieces = (x.detach().reshape(-1).split(_PIECE) for x in (exact, now))
    for before, after in zip(*pieces, strict=True):
        noise.add(before, after)
    return noise
