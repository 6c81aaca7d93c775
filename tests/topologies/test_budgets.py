"""How much is removed when a budget is given: of multiply-accumulates, of parameters, of time on the target."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from shrunken import driven
from torch import nn
from zoo import subject

import lilliput as lp
from lilliput.errors import InputError
from lilliput.measure import Latencies, macs, parameters
from lilliput.model.views.inputs import Dynamic, Inputs

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE = """
import os, sys
print(1e-6 * os.path.getsize(sys.argv[1]))
"""


@pytest.mark.parametrize(("name", "what"), [("resnet-20", "macs"), ("bert", "parameters"), ("mlp", "parameters")])
def test_a_budget_is_met_and_not_by_far(name: str, what: str) -> None:
    model, inputs = subject(name).build()
    small = driven(model, inputs, lp.Prune("channels", **{what: 0.5}, multiple=1)).model
    large = [macs(net, inputs).total if what == "macs" else parameters(net) for net in (model, small)]
    assert 0.4 * large[0] <= large[1] <= 0.5 * large[0]


@pytest.mark.parametrize("unit", ["layers", "blocks"])
def test_layers_and_blocks_go_until_a_budget_is_met(unit: str) -> None:
    model, inputs = subject("llama").build()
    small = driven(model, inputs, lp.Prune(unit, parameters=0.8)).model
    assert 0.4 * parameters(model) <= parameters(small) <= 0.8 * parameters(model)


def test_a_budget_is_made_up_of_layers_that_can_go() -> None:
    """T5's first layers make what all others read; a layer that only its place tells of can neither."""
    model, inputs = subject("t5").build()
    driver = driven(model, inputs, lp.Prune("layers", macs=0.9))
    assert macs(driver.model, inputs).total <= 0.9 * macs(model, inputs).total
    assert any("cannot be left out" in why for why in driver.told.skipped.values())


def test_a_budget_of_time_is_met_on_a_device(tmp_path: Path) -> None:
    """A device that takes as long as the file is large."""
    script = tmp_path / "size.py"
    script.write_text(SIZE)
    target = lp.targets.Device(
        command=f"{sys.executable} {script} {{model}} {{inputs}}", builds=lp.targets.OnnxRuntime(), seconds=0.01
    )
    model, inputs = subject("mlp").build()
    small = driven(model, inputs, lp.Prune("channels", latency=0.6, multiple=1), target=target).model
    for name, net in (("large", model), ("small", small)):
        lp.export(tmp_path / f"{name}.onnx", net, inputs, target=lp.targets.OnnxRuntime())
    large, found = ((tmp_path / f"{name}.onnx").stat().st_size for name in ("large", "small"))
    assert 0.45 * large <= found <= 0.6 * large


def test_a_budget_of_time_is_measured_on_the_runtime() -> None:
    model, inputs = subject("vgg").build()
    driver = driven(
        model, inputs, lp.Prune("channels", latency=0.9), target=lp.targets.OnnxRuntime(threads=1, seconds=0.5)
    )
    assert macs(driver.model, inputs).total < macs(model, inputs).total


@dataclass(frozen=True)
class Wide(lp.targets.OnnxRuntime):
    """ONNX Runtime on a machine whose kernels take 16 channels at once, whatever this one is: time goes by blocks."""

    @property
    def multiple_here(self) -> int:
        return 16

    def timed(self, networks: Mapping[str, nn.Module], example: Inputs, dynamic: Dynamic) -> Latencies:
        return Latencies({name: (float(-(-net[0].out_features // 16)),) * 9 for name, net in networks.items()})


def two_layers() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 80), nn.ReLU(), nn.Linear(80, 4)).eval(), (torch.randn(2, 12),)


@pytest.mark.parametrize(("share", "left"), [(0.5, 40), (0.3, 56)])
def test_numbers_of_channels_are_the_same_on_any_machine(share: float, left: int) -> None:
    model, inputs = two_layers()
    step = lp.Prune("channels", share)
    small = [
        driven(model, inputs, step, target=target) for target in (lp.targets.OnnxRuntime(), Wide(), lp.targets.Eager())
    ]
    assert [driver.model[0].out_features for driver in small] == [left] * 3
    assert small[1].told.facts["multiples"] == [{"of": 8, "here": 16}]


def test_a_budget_of_time_goes_by_what_this_machine_takes_at_once() -> None:
    model, inputs = two_layers()
    driver = driven(model, inputs, lp.Prune("channels", latency=0.7), target=Wide())
    assert driver.model[0].out_features == 48  # three blocks of five
    assert driver.told.facts["multiples"] == [{"of": 16, "here": 16}]


@pytest.mark.parametrize(("target", "told"), [(Wide(seconds=0), True), (lp.targets.Eager(seconds=0), False)])
def test_the_report_says_what_this_machine_likes_where_it_differs(target: lp.targets.OnnxRuntime, told: bool) -> None:
    model, (x,) = two_layers()
    for step, differs in ((lp.Prune("channels", 0.5), told), (lp.Prune("channels", 0.5, multiple=8), False)):
        small = lp.compress(model, lp.Recipe([step]), calibrate=[x], target=target)
        page = (small.folder / "report.html").read_text()
        assert ("multiples of 8, so on any machine; kernels of this one take 16 at once" in page) == differs


def test_a_budget_that_cannot_be_met_is_refused() -> None:
    model, inputs = subject("hard view").build()
    with pytest.raises(InputError, match="cannot come down to 1% of its parameters"):
        driven(model, inputs, lp.Prune("channels", parameters=0.01))


def test_half_of_the_channels_is_half_of_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    small = driven(model, (torch.randn(4, 5),), lp.Prune("channels", 0.5, multiple=1)).model
    sizes = [tuple(x.shape) for x in small.state_dict().values()]
    assert sizes == [(12, 5), (12,), (6, 12), (6,), (3, 6), (3,)]
