"""Faults that an exporter could have, made in the file that it wrote: each changes one place in the middle of it.

with exporting(mutant): lp.compress(…)   what is built has the fault, and must be refused
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from lilliput.targets import onnx as onnx_files

Mutant = Callable[[onnx.ModelProto], None]
_PRODUCTS = ("Conv", "Gemm", "MatMul", "MatMulInteger", "DynamicQuantizeLSTM", "LSTM")


class NoPlace(Exception):
    """The file has no place for this fault."""


@contextmanager
def exporting(mutant: Mutant) -> Iterator[None]:
    """Inside, every file that is built for a target has the fault, but for those of the original."""
    export = onnx_files.export

    def faulty(path: Any, *given: Any, **named: Any) -> None:
        export(path, *given, **named)
        if not Path(path).name.startswith("original"):
            model = onnx.load(path)
            mutant(model)
            Path(path).write_bytes(model.SerializeToString())

    onnx_files.export = faulty
    try:
        yield
    finally:
        onnx_files.export = export


def _arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def _put(model: onnx.ModelProto, name: str, array: np.ndarray, users: list[Any]) -> None:
    """Give `users`, and nobody else, other numbers in place of the initializer called `name`."""
    fresh = f"{name}_mutated"
    model.graph.initializer.append(numpy_helper.from_array(array, fresh))
    for user in users:
        user.input[:] = [fresh if given == name else given for given in user.input]


def _middle(found: list[Any]) -> Any:
    if not found:
        raise NoPlace
    return found[len(found) // 2]


def _by_output(model: onnx.ModelProto) -> dict[str, Any]:
    return {name: node for node in model.graph.node for name in node.output}


def _decoding(model: onnx.ModelProto) -> list[tuple[Any, int]]:
    """The nodes that decode weights, ``DequantizeLinear``, ``MatMulNBits`` or ``Mul`` by a scale; and where that is."""
    held, made = _arrays(model), _by_output(model)
    found = []
    for node in model.graph.node:
        codes = held.get(node.input[0]) if node.input else None
        if node.op_type == "DequantizeLinear" and codes is not None and codes.ndim >= 2:
            found.append((node, 1))
        elif node.op_type == "MatMulNBits" and node.input[2] in held:
            found.append((node, 2))
        elif node.op_type == "Mul" and node.input[1] in held:
            before = made.get(node.input[0])
            if before is not None and before.op_type == "Cast" and before.input[0] in held:
                found.append((node, 1))
    return found


def _pairs(model: onnx.ModelProto) -> list[tuple[Any, Any]]:
    """Each ``QuantizeLinear`` with the ``DequantizeLinear`` behind it."""
    made = _by_output(model)
    return [
        (made[node.input[0]], node)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and getattr(made.get(node.input[0]), "op_type", "") == "QuantizeLinear"
    ]


def output_scaled(model: onnx.ModelProto) -> None:
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["as_it_was" if given == name else given for given in node.output]
        node.input[:] = ["as_it_was" if given == name else given for given in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.3, np.float32), "by"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["as_it_was", "by"], [name]))


def scale(model: onnx.ModelProto) -> None:
    held = _arrays(model)
    lstms = [node for node in model.graph.node if node.op_type == "DynamicQuantizeLSTM"]
    lstms = [node for node in lstms if node.input[8] in held]
    node, place = (lstms[0], 8) if lstms else _middle(_decoding(model))
    _put(
        model,
        node.input[place],
        held[node.input[place]] * np.float32(1.3).astype(held[node.input[place]].dtype),
        [node],
    )


def zero_point(model: onnx.ModelProto) -> None:
    _, decode = _middle(_pairs(model))
    _put(model, decode.input[2], _arrays(model)[decode.input[2]] + 1, [decode])


def axis_swapped(model: onnx.ModelProto) -> None:
    """The scales of channels in the order of other channels."""
    held = _arrays(model)
    found = [(node, place) for node, place in _decoding(model) if held[node.input[place]].size > 1]
    node, place = _middle([(node, place) for node, place in found if np.ptp(held[node.input[place]]) > 0])
    flat = held[node.input[place]]
    _put(model, node.input[place], np.roll(flat.reshape(-1), 1).reshape(flat.shape), [node])


def bias_dropped(model: onnx.ModelProto) -> None:
    held, made = _arrays(model), _by_output(model)
    found = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            name, reader = node.input[2], node
            if name not in held:
                reader = made[name]
                name = reader.input[0]
            if name in held and np.abs(held[name]).max() > 0:
                found.append((reader, name))
        if node.op_type == "Add" and node.input[1] in held and held[node.input[1]].size > 1:
            found.append((node, node.input[1]))
        if node.op_type in ("LSTM", "DynamicQuantizeLSTM") and len(node.input) > 3 and node.input[3] in held:
            found.append((node, node.input[3]))
        if node.op_type == "MatMulNBits" and len(node.input) > 5:
            found.append((node, node.input[5]))
    reader, name = _middle(found)
    _put(model, name, np.zeros_like(held[name]), [reader])


def kernel_transposed(model: onnx.ModelProto) -> None:
    held, made = _arrays(model), _by_output(model)
    found = []
    for node in model.graph.node:
        for place in (1, 2) if "LSTM" in node.op_type else (1,):
            if node.op_type in _PRODUCTS and len(node.input) > place:
                name, reader = node.input[place], node
                while name not in held and name in made and made[name].op_type != "Mul":
                    reader = made[name]
                    name = reader.input[0]
                if name not in held and name in made:  # Cast, Mul
                    reader = made[made[name].input[0]]
                    name = reader.input[0]
                if name in held and held[name].shape[-1] == held[name].shape[-2] > 1:
                    found.append((reader, name))
    reader, name = _middle(found)
    _put(model, name, np.ascontiguousarray(np.swapaxes(held[name], -1, -2)), [reader])


def range_clipped(model: onnx.ModelProto) -> None:
    encode, decode = _middle(_pairs(model))
    _put(model, encode.input[1], _arrays(model)[encode.input[1]] * np.float32(0.5), [encode, decode])


def codes_rounded_down(model: onnx.ModelProto) -> None:
    held, made = _arrays(model), _by_output(model)
    lstms = [node for node in model.graph.node if node.op_type == "DynamicQuantizeLSTM"]
    products = [n for n in model.graph.node if n.op_type in ("MatMulInteger", "MatMulNBits") and n.input[1] in held]
    readers = [*lstms, *products] or [
        node if node.op_type == "DequantizeLinear" else made[node.input[0]] for node, _ in _decoding(model)
    ]
    reader = _middle(readers)
    name = reader.input[1 if reader in products else 0] if reader not in lstms else reader.input[1]
    if name not in held:
        raise NoPlace
    codes = held[name]
    _put(
        model,
        name,
        np.where(np.indices(codes.shape).sum(0) % 2 == 0, np.maximum(codes.astype(np.int16), -100) - 1, codes).astype(
            codes.dtype
        ),
        [reader],
    )


def codes_exchanged(model: onnx.ModelProto) -> None:
    """The two codes of each byte in the other order."""
    held = _arrays(model)
    node = _middle([node for node in model.graph.node if node.op_type == "MatMulNBits"])
    codes = held[node.input[1]]
    _put(model, node.input[1], codes >> 4 | codes << 4, [node])


MUTANTS: dict[str, Mutant] = {
    "outputs times 1.3": output_scaled,
    "a scale times 1.3": scale,
    "a zero point too high": zero_point,
    "scales of other channels": axis_swapped,
    "a bias dropped": bias_dropped,
    "a kernel transposed": kernel_transposed,
    "a range cut to half": range_clipped,
    "codes rounded down": codes_rounded_down,
    "codes of a byte exchanged": codes_exchanged,
}
