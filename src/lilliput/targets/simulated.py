"""Values in formats that no kernel of a runtime computes with: rounded in float, so that their loss can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lilliput.encodings import Blockwise, Encoding
from lilliput.encodings.blocks import divisor
from lilliput.encodings.grids import Grid
from lilliput.model.views.view import LOOKS_UP, RECURRENT, Call, View
from lilliput.targets.kernels import beyond_kernels, hidden, reading, two_products
from lilliput.techniques.run import Placed, Placement

REMARK = "simulated in float: shows accuracy, gains nothing"


def told_alike(call: Call, weight: Encoding | None, activation: Encoding | None) -> str:
    """What is to be said of a layer whatever reads the ONNX file; empty where kernels differ in it."""
    if call.op in LOOKS_UP:
        return "size only: rows are decoded as they are looked up"
    if told := two_products(call, weight, activation):
        return told
    return REMARK if activation is not None and beyond_kernels(weight, activation) else ""


def operands(view: View, activations: Mapping[str, Encoding]) -> Placed:
    """What each layer multiplies its weight by, as that layer alone reads it, in the format given by the weight.

    Groups lie along the channels: axis 1 of a convolution's input, the last of a linear layer's. Where theirs do not
    divide those, the nearest that do are taken, and told.
    """
    places: list[Placement] = []
    left: dict[str, str] = {}
    told: dict[str, str] = {}
    for call, paths in reading(view, activations):
        encoding = activations[paths[0]]
        group = encoding.group if isinstance(encoding, Grid | Blockwise) else None
        why = hidden(call) or ("how wide it is is not known before it runs" if group and call.op in RECURRENT else "")
        if why:
            left |= dict.fromkeys(paths, f"what it reads stays float: {why}")
            continue
        mine = encoding
        if group:
            assert isinstance(encoding, Grid | Blockwise)
            channels = _channels(call)
            near = divisor(channels, group) if channels % group else group
            mine = replace(encoding, axis=len(call.shape) + 1 - len(call.weight_shape), group=near)
            if near != group:
                told |= dict.fromkeys(
                    paths, f"what it reads in groups of {near}: {group} do not divide {channels} channels"
                )
        places.append(Placement(f"{call.value}@0", mine))
    return Placed(places, left, told)


def _channels(call: Call) -> int:
    """How many channels a convolution or linear layer reads."""
    if call.op.startswith("conv_transpose"):
        return call.weight_shape[0]
    return call.weight_shape[1] * (1 if call.window is None else call.window.groups)
