"""A module whose name holds a colon, or ends in ``_encoded``, was refused with a false reason or left in float in
silence: our own notation uses both.

Right: any name that torch takes does.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import LilliputError

RECIPE = lp.Recipe([lp.Quantize(weights=lp.Int(7), activations=lp.Int(8))])
QUICK = lp.targets.OnnxRuntime(threads=1, seconds=1)
NAMES = (
    "a:b",
    ":c",
    ":graph",
    "d_encoded",
    "e f",
    "é/g",
    "~h",
    "*i[0]",
    "!j",
    "k|l",
    "keys",
    "m@0",
    "n#1",
)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            self.add_module(name, nn.Linear(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x).relu() + x
        return x


def test_every_layer_is_encoded_saved_and_opened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, batches = Named().eval(), [torch.randn(8, 32) for _ in range(2)]
    small = lp.compress(
        net, lp.Recipe([lp.Quantize(weights=lp.Int(7), activations=lp.Int(8))]), calibrate=batches, target=QUICK
    )
    rows = {row["path"]: (row["encoding"], row["activations"]) for row in small.data["layers"]}
    assert set(rows) == {f"{name}.weight" for name in NAMES}
    assert all(
        encoding.startswith("int7") and flowing.endswith("int8 per tensor") for encoding, flowing in rows.values()
    )
    small.save(tmp_path / "net.lil")
    again = lp.load(tmp_path / "net.lil", into=Named())
    assert torch.equal(again(batches[0]), small.model(batches[0]))
    expected = net(batches[0])
    assert (small.model(batches[0]) - expected).norm() < 0.05 * expected.norm()
    assert lp.open(tmp_path / "net.lil")(batches[0]).shape == expected.shape


class Beside(nn.Module):
    """A module under the very name at which the encoded weight beside it would lie."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.weight_encoded = nn.Parameter(torch.randn(16, 16)), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight_encoded(nn.functional.linear(x, self.weight))


class Taken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value_encodings = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.value_encodings(x)


@pytest.mark.parametrize("net", [Beside(), Taken()])
def test_a_name_of_ours_that_is_taken_is_told(net: nn.Module) -> None:
    with pytest.raises(LilliputError, match=r"give (that module|it) another name"):
        lp.compress(
            net,
            lp.Recipe([lp.Quantize(weights=lp.Int(7), activations=lp.Int(8))]),
            calibrate=[torch.randn(8, 16)],
            target=QUICK,
        )
