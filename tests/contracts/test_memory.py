"""What a run holds of the weights: none that is encoded stays as it was, and the original is read where it is."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput import external
from lilliput.blame.exact import before_encoding
from lilliput.engine.begin import begin, follow
from lilliput.engine.room import make_room
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import InputError
from lilliput.progress import silent

RECIPE = lp.Recipe([lp.Quantize(weights=lp.Int(8))])


class Counting(nn.Module):
    """A network that writes into a parameter at each call, on which no answer depends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(32, 8), nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


def begun(net: nn.Module) -> Driver:
    task = lp.Task(net, calibrate=[torch.randn(4, 32)])
    return begin(task, lp.targets.OnnxRuntime(threads=1, seconds=0), Store(), silent, RECIPE)[0]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def test_weights_that_were_encoded_are_let_go() -> None:
    driver = begun(network())
    held = weakref.ref(driver.model.get_parameter("0.weight"))
    follow(RECIPE, driver)
    gc.collect()
    assert held() is None


def test_an_original_of_large_weights_is_read_in_the_memory_of_the_users_model(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    driver = begun(net)
    assert driver.afresh(net, reads=True).model.get_parameter("0.weight").data_ptr() != net[0].weight.data_ptr()
    monkeypatch.setattr(external, "MOST", 0)
    driver = begun(net)
    follow(RECIPE, driver)
    here = net[0].weight.data_ptr()
    for other in (driver.afresh(net, reads=True).model, before_encoding(driver, net)):
        assert other.get_parameter("0.weight").data_ptr() == here
        assert other.get_parameter("0.weight") is not net[0].weight
    assert driver.afresh(net).model.get_parameter("0.weight").data_ptr() != here  # may be changed
    assert driver.afresh(network(), reads=True).model.get_parameter("0.weight").data_ptr() != here


def test_another_network_has_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "MOST", 0)
    driver, other = begun(network()), network()
    other[0].weight.data += 1
    assert driver.afresh(other, reads=True).model.get_parameter("0.weight").data_ptr() != other[0].weight.data_ptr()


def test_one_that_writes_into_its_parameters_is_refused() -> None:
    net = Counting().eval()
    with pytest.raises(InputError, match="changes a parameter"):
        begun(net)
    assert float(net.calls) == 0


def test_a_run_leaves_the_users_model_as_it_was() -> None:
    net = network()
    before = {name: (x.clone(), x.data_ptr(), x._version) for name, x in net.state_dict().items()}
    lp.compress(
        net, RECIPE, calibrate=[torch.randn(4, 32)], target=lp.targets.OnnxRuntime(threads=1, seconds=0), measure=False
    )
    for name, x in net.state_dict().items():
        was, place, version = before[name]
        assert torch.equal(x, was) and x.data_ptr() == place and x._version == version


def test_room_is_made_where_weights_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.weights, self.itself = torch.ones(4), self

    gc.disable()
    try:
        for most, stays in ((1 << 20, True), (0, False)):
            monkeypatch.setattr(external, "MOST", most)
            held = weakref.ref(Cycle())
            make_room(network())
            assert (held() is not None) is stays
            gc.collect()
    finally:
        gc.enable()
