"""Where the constants of a graph come from, as a `.lil` refers to the tensors of its module.

Each initializer carries its origin from where it is made: torch's exporter takes the module's own tensors, which their
memory tells; `simplify` folds what only reshapes or turns them; `lower` computes scales, codes and biases of them. An
origin is a reference as docs/format.md has it. It is a claim: whoever writes a reference compares the elements first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from lilliput.disk import origins_of, whole_file
from lilliput.exporters.nodes import DOMAIN
from lilliput.model.edits.held import named

Origin = dict[str, Any]
_KEY = "lilliput.origin"  # in the `meta` of a value, of which nothing is written
_SAME = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Cast"})


def note(value: ir.Value, origin: Origin | None) -> None:
    """Let `value` come from there, where that is known and nothing else is."""
    if origin is not None:
        value.meta.setdefault(_KEY, origin)


def origin(value: ir.Value | None) -> Origin | None:
    """Where a constant, or a part of an encoding that is only converted, comes from; None where that is not known."""
    maker = None if value is None else value.producer()
    if maker is not None and maker.domain == DOMAIN:
        return origin(maker.inputs[0]) if maker.op_type == "DecodeFloat" else None
    return None if value is None else value.meta.get(_KEY)


def scale_origin(weight: ir.Value) -> Origin | None:
    """Where the scales of an encoded tensor come from."""
    maker = weight.producer()
    return None if maker is None or len(maker.inputs) < 2 else origin(maker.inputs[1])


def transposed(of: Origin | None) -> Origin | None:
    """That of a matrix whose axes are exchanged.

    >>> transposed({"tensor": "0.weight"}), transposed({"transposed": "0.weight"})
    ({'transposed': '0.weight'}, {'tensor': '0.weight'})
    """
    other = {"tensor": "transposed", "transposed": "tensor"}
    return {other[kind]: name for kind, name in (of or {}).items() if kind in other} or None


def product(a: Origin | None, b: Origin | None) -> Origin | None:
    """That of the product of two tensors."""
    names = [(of or {}).get("tensor") for of in (a, b)]
    return None if None in names else {"product": names}


def quotient(x: Origin | None, by: Origin | None) -> Origin | None:
    """That of whole numbers: a tensor divided by a product."""
    return {"quotient": [x["tensor"], *by["product"]]} if x and by and "tensor" in x else None


def packed(of: Origin | None, bits: int) -> Origin | None:
    """That of codes of so many bits, packed into bytes.

    >>> packed({"tensor": "0.weight_encoded.codes"}, 4)
    {'packed': [{'tensor': '0.weight_encoded.codes'}, 4]}
    """
    return None if of is None else {"packed": [of, bits]}


def begin(model: ir.Model, root: nn.Module) -> None:
    """Note which initializers of a graph, fresh from torch's exporter, are tensors of `root`: those of its memory."""
    names: dict[tuple[Any, ...], str] = {}
    for name, x in named(root).items():
        names.setdefault(_memory(x), name)
    for value in model.graph.initializers.values():
        held = getattr(value.const_value, "raw", None)
        if isinstance(held, Tensor) and _memory(held) in names:
            note(value, {"tensor": names[_memory(held)]})


def _memory(x: Tensor) -> tuple[Any, ...]:
    return (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype)


def followed(model: ir.Model) -> dict[str, Origin]:
    """By name, the origins of all values that have the elements of an initializer: what they are once folded."""
    found: dict[str, Origin] = {}
    for name, value in model.graph.initializers.items():
        if (known := origin(value)) is not None:
            found[name] = known
    for node in model.graph:
        of = found.get((node.inputs[0].name or "") if node.inputs and node.inputs[0] is not None else "")
        if of is not None and node.domain == "" and node.outputs[0].name:
            passed = of if node.op_type in _SAME else transposed(of) if node.op_type == "Transpose" else None
            found.update({} if passed is None else {node.outputs[0].name: passed})
    return found


def keep(model: ir.Model, known: Mapping[str, Origin]) -> None:
    """Note the origins of initializers by their names; what is folded has the name of what gave it."""
    for name, value in model.graph.initializers.items():
        note(value, known.get(name))


def write(model: ir.Model, path: str | Path) -> None:
    """Write the origins of all initializers beside the file at `path`, but for tensors that go by their own names."""
    found = {name: of for name, value in model.graph.initializers.items() if (of := origin(value)) is not None}
    told = {name: of for name, of in found.items() if of != {"tensor": name}}
    with whole_file(origins_of(Path(path))) as file:
        file.write(json.dumps(told, sort_keys=True).encode())
