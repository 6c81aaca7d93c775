"""Values in formats that no kernel of a runtime computes with: rounded in float, so that their loss can be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lilliput.encodings import Encoding, Tiles
from lilliput.encodings.blocks import divisor
from lilliput.encodings.grids import Grid
from lilliput.errors import EncodingError
from lilliput.model.view import MULTIPLIES, View
from lilliput.techniques.technique import Placement

REMARK = "simulated in float: shows accuracy, gains nothing"


def operands(view: View, encoding: Encoding, weights: Mapping[str, Encoding]) -> Sequence[Placement]:
    """What each layer multiplies its encoded weight by, as that layer alone reads it.

    Groups lie along the channels: axis 1 of a convolution's input, the last of a linear layer's.
    """
    places = []
    for call in view.calls:
        if call.op not in MULTIPLIES or call.value is None or not any(path in weights for path in call.weights):
            continue
        mine = encoding
        if isinstance(encoding, Grid | Tiles) and encoding.group:
            axis = len(call.shape) + 1 - len(call.weight_shape)
            mine = replace(encoding, axis=axis)
            _check_groups(view, call.reads[0], axis, call.weight_shape, encoding.group, call.weights[0])
        places.append(Placement(f"{call.value}@0", mine))
    return places


def _check_groups(
    view: View, source: str | None, axis: int, weight_shape: tuple[int, ...], group: int, path: str
) -> None:
    """Refuse groups that do not divide the channels of the value at `source`."""
    call = view.by_id.get(source or "")
    channels = call.shape[axis] if call is not None and len(call.shape) > axis else weight_shape[1]
    if isinstance(channels, int) and channels % group:
        module = path.rpartition(".")[0] or path
        raise EncodingError(
            f"groups of {group} do not divide {channels} channels that flow",
            where=path,
            next=f'use group={divisor(channels, group)}, or where="!{module}"',
        )
