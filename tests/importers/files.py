"""Small files of our own making, and what ONNX Runtime answers for any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """A node; names stand apart by spaces, and a dash is an input that is left out."""
    given = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, given, outputs.split(), name=f"{op}_of_{outputs.split()[0]}", **attributes)


def file(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str],
    tensors: Mapping[str, Array],
    opset: int = 17,
    kinds: Mapping[str, int] | None = None,
) -> Path:
    """Write a file; inputs are of float32 unless `kinds` says otherwise."""
    kind = dict.fromkeys(inputs, TensorProto.FLOAT) | dict(kinds or {})
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind[name], dims) for name, dims in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(held, name) for name, held in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    for value in model.graph.output:
        value.type.tensor_type.elem_type = kind.get(value.name, TensorProto.FLOAT)
    onnx.save(model, path)
    return path


def answered(path: Path, given: Mapping[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime answers, node by node as the file stands."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, dict(given)), strict=True))
