"""Names of a file as Python and torch have them: arguments, and paths of modules."""

from __future__ import annotations

import keyword
import re

_PACKED = (".weight_Q4", ".weight_encoded.codes.packed")  # by ONNX Runtime's own tool, and by ours
_WEIGHTS = (".weight", "/weight", ".bias", "/bias", *_PACKED)


def argument(name: str) -> str:
    """The name of an input as one of an argument.

    >>> argument("input_ids"), argument("serving:0"), argument("1"), argument("in")
    ('input_ids', 'serving_0', 'x1', 'in_')
    """
    plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "x"
    plain = f"x{plain}" if plain[0].isdigit() else plain
    return f"{plain}_" if keyword.iskeyword(plain) else plain


def path(name: str) -> str:
    """The name of a node or a tensor as a path.

    >>> path("/layer1/layer1.0/conv1/Conv"), path("dense/MatMul/ReadVariableOp:0")
    ('layer1.layer1.0.conv1.Conv', 'dense.MatMul.ReadVariableOp_0')
    """
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in re.split(r"[./]", name)]
    return ".".join(filter(None, parts)) or "unnamed"


def of_layer(weight: str, node: str, output: str) -> str:
    """The path of a layer: what its weight is part of, or else the node's name.

    >>> of_layer("encoder.0.weight", "/encoder/MatMul", "7"), of_layer("onnx::MatMul_9", "/encoder/MatMul", "7")
    ('encoder.0', 'encoder.MatMul')
    """
    for ending in _WEIGHTS:
        if weight.endswith(ending) and len(weight) > len(ending):
            return path(weight.removesuffix(ending))
    return path(node or output)
