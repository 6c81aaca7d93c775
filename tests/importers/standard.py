"""The cases that the ONNX standard comes with, and what becomes of one that is imported.

A case is a file, inputs, and the right outputs, computed by the standard's own reference in NumPy.
"""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.backend.test.case.node import collect_testcases

from lilliput.errors import InputError
from lilliput.importers import from_onnx
from lilliput.importers.checks import BUILT_IN
from lilliput.importers.names import argument
from lilliput.importers.operators.table import OPERATORS

OURS = sorted({*OPERATORS, *BUILT_IN})
_KINDS = {np.dtype(kind) for kind in ("float32", "float64", "int64", "int32", "int8", "uint8", "bool")}
TIES = {"test_top_k_same_values", "test_top_k_same_values_2d", "test_top_k_same_values_largest"}
# ONNX Runtime answers as we do, and the reference in NumPy otherwise
RUNTIMES_DIFFER = {
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
    "test_averagepool_2d_ceil_last_window_starts_on_pad",
}


@functools.cache
def cases() -> dict[str, list[Any]]:
    """Operator -> its cases of one node, on types that torch computes with."""
    found = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the reference: it divides by zero on purpose
        known = collect_testcases(None)
    for case in known:
        ops = [] if case.model is None else [node.op_type for node in case.model.graph.node]
        if len(ops) == 1 and ops[0] in OURS and case.name not in TIES | RUNTIMES_DIFFER and _plain(case):
            found[ops[0]].append(case)
    return dict(found)


def _plain(case: Any) -> bool:
    held = [one for side in case.data_sets[0] for one in side]
    return all(isinstance(x, np.ndarray | np.generic) and x.dtype in _KINDS and x.size for x in held)


def answers(case: Any, folder: Path, *, fixed: bool) -> dict[str, np.ndarray[Any, Any]] | None:
    """What the imported file answers; with all inputs `fixed` but the first, which are weights where it is a layer.

    None where it is refused, as a file may be.
    """
    path = folder / "case.onnx"
    onnx.save(case.model, path)
    given = dict(zip([one.name for one in case.model.graph.input], case.data_sets[0][0], strict=True))
    held = dict(list(given.items())[1:]) if fixed else {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*weights are integers with scales")
            net = from_onnx(path, fixed=held)
    except InputError as error:
        if str(path) not in str(error) or not error.next:
            raise
        return None
    with torch.no_grad():
        found = net(**{argument(k): torch.from_numpy(np.array(x)) for k, x in given.items() if k not in held})
    return {name: x.detach().numpy() for name, x in found.items()}


def right(case: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What it should answer."""
    return dict(zip([one.name for one in case.model.graph.output], case.data_sets[0][1], strict=True))
