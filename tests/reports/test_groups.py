"""One layer that a group does not divide refused the whole run.

Reported: ``Int(4, group=64)`` on a network of which one layer has 72 inputs (nncf#2374 is of that kind) gives an error
in place of a result. Right: that layer gets the nearest groups that divide its inputs, and its row says so; where the
format knows one length alone it is left out, and told.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compared import close
from torch import nn

import lilliput as lp
from lilliput.encodings import Encoding
from lilliput.engine.begin import begin, follow
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import InputError
from lilliput.model.carrier.parameters import encoding_of, read
from lilliput.model.views.values import value_encodings
from lilliput.progress import silent
from lilliput.techniques.ranges import MinMax


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(128, 72), nn.Linear(72, 131), nn.Linear(131, 9), nn.Linear(9, 6))
    return nn.Sequential(*layers, nn.Unflatten(1, (6, 1, 1)), nn.ConvTranspose2d(6, 5, 3)).eval()


def driven(model: nn.Module, *steps: Any, x: tuple[int, ...] = (4, 128)) -> Driver:
    batch = torch.randn(x, generator=torch.Generator().manual_seed(1))
    driver, _ = begin(lp.Task(model, calibrate=[batch]), lp.targets.OnnxRuntime(threads=1), Store(), silent)
    follow(lp.Recipe(list(steps)), driver)
    return driver


GROUPED = [
    *(
        lp.Int(4, group=64),
        lp.formats.Codebook(4, group=64),
        lp.formats.PowerOfTwo(4, group=64),
        lp.formats.NF4(group=64),
        lp.formats.Signs(3, group=64),
    ),
    *(lp.formats.MiniFloat("e2m1", group=64), lp.formats.Blockwise(4, group=64)),
]


@pytest.mark.parametrize("weights", GROUPED, ids=repr)
def test_the_nearest_group_that_divides_is_taken_and_told(weights: Encoding) -> None:
    driver = driven(net(), lp.Quantize(weights=weights, fit=lp.ranges.MSE(), bias_correction=False))
    groups = [encoding_of(driver.model, f"{i}.weight").group for i in (0, 1, 2, 3, 5)]  # type: ignore[union-attr]
    assert groups == [64, 72, 131, 9, 54]
    notes = driver.told.notes
    assert "0.weight" not in notes and notes["1.weight"] == "groups of 72: 64 do not divide its inputs"
    assert all(f"groups of {n}" in notes[f"{i}.weight"] for i, n in ((2, 131), (3, 9), (5, 54)))
    assert not driver.told.skipped
    x, encoding = net()[1].weight.detach(), encoding_of(driver.model, "1.weight")
    assert encoding is not None
    expected = encoding.represent(x, lp.ranges.MSE().fit(x, encoding)).decode()
    close(read(driver.model, "1.weight"), expected)


def test_groups_of_72_are_those_computed_by_hand() -> None:
    driver = driven(net(), lp.Quantize(weights=lp.Int(4, group=64), fit=MinMax(), bias_correction=False), x=(4, 128))
    x = net()[1].weight.detach()
    scale = x.abs().amax(1, keepdim=True) / 7
    close(read(driver.model, "1.weight"), (x / scale).round().clamp(-7, 7) * scale)


def test_tiles_of_channels_that_do_not_divide() -> None:
    weights = lp.formats.Blockwise(4, channels=8, group=64)
    driver = driven(net(), lp.Quantize(weights=weights, bias_correction=False))
    found = [encoding_of(driver.model, f"{i}.weight") for i in (0, 1, 2, 3, 5)]
    assert [(one.channels, one.group) for one in found] == [(8, 64), (131, 72), (9, 131), (6, 9), (5, 54)]  # type: ignore[union-attr]
    assert "tiles of 9 channels" in driver.told.notes["2.weight"]


def test_what_was_pruned_keeps_its_zeros_in_other_groups() -> None:
    driver = driven(net(), lp.Prune("weights", 0.5), lp.Quantize(weights=lp.Int(4, group=64), bias_correction=False))
    assert float((read(driver.model, "1.weight") == 0).float().mean()) >= 0.5
    assert encoding_of(driver.model, "1.weight").values.group == 72  # type: ignore[union-attr]
    assert "groups of 72" in driver.told.notes["1.weight"]


def test_a_format_with_one_length_of_groups_leaves_the_layer_out() -> None:
    driver = driven(net(), lp.Quantize(weights=lp.formats.mxfp4(), bias_correction=False))
    assert encoding_of(driver.model, "0.weight") is not None
    for path in ("1.weight", "2.weight", "3.weight", "5.weight"):
        assert encoding_of(driver.model, path) is None and "do not divide its inputs" in driver.told.skipped[path]
    with pytest.raises(InputError, match=r"changed no layer.*do not divide"):
        driven(net(), lp.Quantize(weights=lp.formats.mxfp4(), where="1"))


@pytest.mark.parametrize("where", ["1", "1.weight"])
def test_a_layer_that_is_named_gets_them_too(where: str) -> None:
    driver = driven(net(), lp.Quantize(weights=lp.Int(4, group=64), where=where))
    assert encoding_of(driver.model, "1.weight").group == 72  # type: ignore[union-attr]


@pytest.mark.parametrize("rounding", [lp.rounding.GPTQ(), lp.rounding.AdaRound(steps=5)], ids=repr)
def test_rounding_by_what_flows_takes_them(rounding: Any) -> None:
    driver = driven(net()[:4], lp.Quantize(weights=lp.Int(4, group=64), rounding=rounding))
    assert encoding_of(driver.model, "1.weight").group == 72  # type: ignore[union-attr]
    assert "groups of 72" in driver.told.notes["1.weight"]


@pytest.mark.parametrize(
    "values", [lp.formats.PowerOfTwo(4, group=32, dynamic=True), lp.formats.Blockwise(4, group=32)], ids=repr
)
def test_groups_of_values_that_do_not_divide(values: Encoding) -> None:
    driver = driven(net(), lp.Quantize(weights=lp.Int(8), activations=values))
    found = {name.partition(":")[0]: one.encoding for name, one in value_encodings(driver.model).items()}
    assert [found[f"{i}"].group for i in (0, 1, 2, 3, 5)] == [32, 36, 131, 9, 6]
    assert "what it reads in groups of 36" in driver.told.notes["1.weight"]
    with torch.no_grad():
        assert torch.isfinite(driver.model(torch.randn(2, 128))).all()
