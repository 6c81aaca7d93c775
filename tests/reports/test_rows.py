"""Rows of a report that tell of another layer than they name.

Reported: after ``Prune("layers")`` rows are compared with the layer that stood at that number before (a weight nothing
was done to has -2.7 dB), layers that are still there stand under *skipped*, and those that are gone nowhere. Right: a
row is compared with what it was made of; what is gone is listed with what it held; *skipped* is what was wanted and not
done.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.delivery import exact_tensors
from lilliput.engine.begin import begin, follow
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.model.carrier.parameters import read
from lilliput.model.surgery.depth import Dispensable
from lilliput.progress import silent
from lilliput.report.layers import layers
from lilliput.techniques import surgery
from lilliput.techniques.surgery import drop

Rows = dict[str, dict[str, Any]]


class Layer(nn.Module):
    """x + a small change, by a block of two linear layers."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.block[2].weight.data *= size

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(size) for size in (3.0, 0.001, 2.0, 0.002, 1.0))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)  # type: ignore[no-any-return]


def driven(model: nn.Module, *steps: Any, x: tuple[int, ...] = (16, 8)) -> tuple[Driver, Rows]:
    batch = torch.randn(x, generator=torch.Generator().manual_seed(1))
    driver, _ = begin(lp.Task(model, calibrate=[batch]), lp.targets.OnnxRuntime(threads=1), Store(), silent)
    follow(lp.Recipe(list(steps)), driver)
    found = layers(driver, exact_tensors(driver.afresh(model), driver), None)
    return driver, {row["path"]: row for row in found}


def sqnr(exact: Tensor, now: Tensor) -> float | None:
    noise = float((exact - now).double().square().sum())
    return None if noise == 0 else 10 * math.log10(float(exact.double().square().sum()) / noise)


WAS = {0: 0, 1: 2, 2: 4}  # the layers that are left, by the numbers that they had


def test_rows_are_compared_with_the_layers_that_they_were() -> None:
    net = Net().eval()
    driver, rows = driven(net, lp.Prune("layers", 0.4))
    for now, was in WAS.items():
        for part in ("block.0.weight", "block.2.weight"):
            row = rows[f"layers.{now}.{part}"]
            assert row["sqnr_db"] is None  # nothing was done to it
            assert row["was"] == (None if now == was else f"layers.{was}.{part}")
    assert driver.told.skipped == {}
    assert [gone["path"] for gone in driver.told.facts["removed"]] == ["layers.1", "layers.3"]
    assert all(gone["parameters"] == 8 * 16 + 16 + 16 * 8 + 8 for gone in driver.told.facts["removed"])
    assert 0 < driver.told.facts["removed"][0]["score"] < driver.told.facts["removed"][1]["score"] < 0.05


def test_and_with_what_they_lost_to_an_encoding() -> None:
    net = Net().eval()
    driver, rows = driven(net, lp.Prune("layers", 0.4), lp.Quantize(weights=lp.Int(4)))
    for now, was in WAS.items():
        exact = net.layers[was].block[0].weight.detach()
        expected = sqnr(exact, read(driver.model, f"layers.{now}.block.0.weight"))
        assert expected is not None and expected > 10
        assert rows[f"layers.{now}.block.0.weight"]["sqnr_db"] == pytest.approx(expected)
    assert rows["head.weight"]["was"] is None


def test_what_was_told_of_a_layer_moves_with_it() -> None:
    steps = [lp.Quantize(weights=lp.Int(4, group=12), where="layers.4*"), lp.Prune("layers", 0.4)]
    driver, rows = driven(Net().eval(), *steps)
    assert rows["layers.2.block.0.weight"]["note"] == "groups of 8: 12 do not divide its inputs"
    assert not rows["layers.0.block.0.weight"]["note"]
    left = {"layers.0.block.0.weight", "layers.1.block.0.weight", "layers.0.block.2.weight", "layers.1.block.2.weight"}
    assert driver.told.skipped == dict.fromkeys(left | {"head.weight"}, "left out by where='layers.4*'")


def test_layers_go_twice() -> None:
    net = Net().eval()
    driver, rows = driven(net, lp.Prune("layers", 0.2), lp.Prune("layers", 0.25), lp.Quantize(weights=lp.Int(4)))
    assert [gone["path"] for gone in driver.told.facts["removed"]] == ["layers.1", "layers.3"]
    path, was = (f"layers.{i}.block.2.weight" for i in (2, 4))
    assert rows[path]["was"] == was
    expected = sqnr(net.get_parameter(was).detach(), read(driver.model, path))
    assert rows[path]["sqnr_db"] == pytest.approx(expected)


def test_of_a_result_the_given_numbers_count() -> None:
    first, _ = driven(Net().eval(), lp.Prune("layers", 0.2))
    driver, rows = driven(first.model, lp.Prune("layers", 0.25))
    assert [gone["path"] for gone in driver.told.facts["removed"]] == ["layers.2"]  # 3 in the network at first
    assert rows["layers.2.block.0.weight"]["was"] == "layers.3.block.0.weight"
    assert all(row["sqnr_db"] is None for row in rows.values())


def test_named_layers_of_a_sequence() -> None:
    torch.manual_seed(0)
    net = nn.Sequential()
    for name, size in (("a", 1.0), ("b", 0.001), ("c", 2.0)):
        net.add_module(name, Layer(size))
    driver, rows = driven(net.eval(), lp.Prune("layers", 0.34), lp.Quantize(weights=lp.Int(4)))
    assert [gone["path"] for gone in driver.told.facts["removed"]] == ["b"]
    assert {path: row["was"] for path, row in rows.items() if "0.weight" in path} == {
        "0.block.0.weight": "a.block.0.weight",
        "1.block.0.weight": "c.block.0.weight",
    }
    exact = net.c.block[0].weight.detach()
    assert rows["1.block.0.weight"]["sqnr_db"] == pytest.approx(sqnr(exact, read(driver.model, "1.block.0.weight")))


def test_blocks_that_are_left_out_are_listed() -> None:
    driver, rows = driven(Net().eval(), lp.Prune("blocks", 0.4))
    assert {gone["path"] for gone in driver.told.facts["removed"]} == {"layers.1.block", "layers.3.block"}
    assert "layers.1.block.0.weight" not in rows and all(row["sqnr_db"] is None for row in rows.values())
    assert driver.told.skipped == {} and all("the answers" in gone["told"] for gone in driver.told.facts["removed"])


def test_a_layer_that_cannot_go_is_skipped_by_the_name_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, _ = begin(
        lp.Task(Net().eval(), example=torch.randn(2, 8)), lp.targets.OnnxRuntime(threads=1), Store(), silent
    )
    monkeypatch.setattr(surgery, "undroppable", lambda run, gone: {"layers.3": "others need it"})
    drop(driver, [Dispensable("layers.1", 0.1), Dispensable("layers.3", 0.2)])
    assert driver.told.skipped == {"layers.2": "changes its input by 0.200, but cannot be left out: others need it"}


def test_tensors_that_two_layers_shared_are_counted_once() -> None:
    net = Net().eval()
    net.layers[3].block[0].weight = net.layers[1].block[0].weight
    net.layers[1].block[2].weight = net.layers[0].block[2].weight  # which stays
    driver, _ = begin(lp.Task(net, example=torch.randn(2, 8)), lp.targets.OnnxRuntime(threads=1), Store(), silent)
    drop(driver, [Dispensable("layers.1", 0.1), Dispensable("layers.3", 0.2)])
    assert [gone["parameters"] for gone in driver.told.facts["removed"]] == [128 + 16 + 8, 16 + 128 + 8]


def test_a_weight_that_was_only_pruned_is_compared_with_what_it_was() -> None:
    """No norm is folded in a recipe that encodes nothing, so none is in what it is compared with."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
    net[1].running_var.fill_(0.01)
    driver, rows = driven(net, lp.Prune("weights", 0.5), x=(2, 3, 6, 6))
    expected = sqnr(net[0].weight.detach(), read(driver.model, "0.weight"))
    assert rows["0.weight"]["sqnr_db"] == pytest.approx(expected)
