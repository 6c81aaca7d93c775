"""Bags of embeddings in ONNX: rows are looked up, those of padding left out, and the rest reduced."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import numpy_helper
from onnxscript import opset20 as op

_LEAST = float(np.finfo(np.float32).min)


def translate(
    weight: Any, indices: Any, offsets: Any, weights: Any, mode: str, padding_idx: int | None, last: bool
) -> Any:
    """The sum, mean or largest of each bag [bags, width]; a bag of padding alone, or of none, is zero as in torch."""
    rows = op.Gather(weight, indices, axis=0)
    rows = rows if weights is None else op.Mul(rows, op.Unsqueeze(weights, _ints([-1])))
    real = None if padding_idx is None else op.Unsqueeze(op.Not(op.Equal(indices, _ints(padding_idx))), _ints([-1]))
    if offsets is None:
        return _of_a_matrix(rows, real, mode)
    starts = op.Slice(offsets, _ints([0]), _ints([-1]), _ints([0])) if last else offsets
    return _of_a_run(rows, real, mode, starts)


def _of_a_matrix(rows: Any, real: Any, mode: str) -> Any:
    """Rows [bags, numbers, width], and which of them are no padding [bags, numbers, 1]."""
    if real is None:
        reduces: dict[str, Any] = {"sum": op.ReduceSum, "mean": op.ReduceMean, "max": op.ReduceMax}
        return reduces[mode](rows, _ints([1]), keepdims=0)
    if mode == "max":
        return _known(op.ReduceMax(op.Where(real, rows, _float(_LEAST)), _ints([1]), keepdims=0))
    counted = op.CastLike(real, rows)
    summed = op.ReduceSum(op.Mul(rows, counted), _ints([1]), keepdims=0)
    return summed if mode == "sum" else _mean(summed, op.ReduceSum(counted, _ints([1]), keepdims=0))


def _of_a_run(rows: Any, real: Any, mode: str, starts: Any) -> Any:
    """Rows [numbers, width], and where each bag begins [bags]."""
    numbers = op.Shape(rows, end=1)
    begun = op.ScatterElements(
        op.Expand(_ints(0), op.Add(numbers, _ints([1]))), starts, op.Expand(_ints(1), op.Shape(starts)), reduction="add"
    )
    bags = op.Sub(op.Slice(op.CumSum(begun, _ints(0)), _ints([0]), numbers, _ints([0])), _ints(1))
    whole = op.Concat(op.Shape(starts), op.Shape(rows, start=1, end=2), axis=0)
    into = op.Unsqueeze(bags, _ints([-1]))
    if mode == "max":
        shown = rows if real is None else op.Where(real, rows, _float(_LEAST))
        return _known(op.ScatterND(op.Expand(_float(_LEAST), whole), into, shown, reduction="max"))
    counted = op.CastLike(
        op.Expand(_float(1.0), op.Concat(numbers, _ints([1]), axis=0)) if real is None else real, rows
    )
    summed = op.ScatterND(op.Expand(_float(0.0), whole), into, op.Mul(rows, counted), reduction="add")
    if mode == "sum":
        return summed
    empty = op.Expand(_float(0.0), op.Concat(op.Shape(starts), _ints([1]), axis=0))
    return _mean(summed, op.ScatterND(empty, into, counted, reduction="add"))


def _mean(summed: Any, count: Any) -> Any:
    return op.Div(summed, op.Max(count, _float(1.0)))


def _known(largest: Any) -> Any:
    return op.Where(op.Equal(largest, _float(_LEAST)), _float(0.0), largest)


def _ints(numbers: int | list[int]) -> Any:
    return op.Constant(value=numpy_helper.from_array(np.array(numbers, dtype=np.int64)))


def _float(number: float) -> Any:
    return op.Constant(value=numpy_helper.from_array(np.array(number, dtype=np.float32)))
