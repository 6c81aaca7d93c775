"""A second ``compress`` takes the first's result for the original.

Reported: the figures of a network that was compressed in two runs are those beside the half-finished one. Right: what
is compared with can be given (``baseline=``), and where it is not the sentence says what was.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import InputError, LilliputError

T = lp.targets.OnnxRuntime(threads=1, seconds=5)


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 8)).eval()


def batches() -> list[Tensor]:
    return [torch.randn(8, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@pytest.fixture(scope="module")
def first() -> lp.results.Result:
    return lp.compress(lp.Task(make(), calibrate=batches()), lp.Recipe([lp.Quantize(weights=lp.Int(3))]), target=T)


AGAIN = lp.Recipe([lp.Prune("weights", 0.5, where="2")])


def agreement(one: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        return float(torch.stack([one(x).argmax(1) == other(x).argmax(1) for x in batches()]).float().mean())


def test_the_result_is_compared_with_the_baseline(first: lp.results.Result) -> None:
    net = make()
    metric = lp.metrics.squared_error([(x, net(x).detach()) for x in batches()])
    task = lp.Task(first.model, calibrate=batches(), baseline=net, metric=metric, output="classes")
    second = lp.compress(task, AGAIN, target=T)
    data = second.data
    assert data["before"]["artifacts"][1]["bytes"] == sum(4 * x.numel() for x in net.parameters())
    [same] = data["agreement"]["outputs"]
    assert same["figures"]["same_answer"]["value"] == pytest.approx(agreement(net, second.model))
    assert data["before"]["metric"]["value"] == pytest.approx(0, abs=1e-9)
    assert "compressed model that was given" not in data["sentence"]
    for row in data["layers"]:
        exact = net.get_parameter(row["path"]).detach()
        now = second.model.get_submodule(row["path"].partition(".")[0]).weight.detach()
        noise = (exact - now).double().square().sum()
        assert row["sqnr_db"] == pytest.approx(float(10 * (exact.double().square().sum() / noise).log10()))
    assert agreement(net, second.model) != 1.0  # or it could be compared with anything


def test_without_one_the_sentence_says_what_it_is_compared_with(first: lp.results.Result) -> None:
    told = "All beside the compressed model that was given."
    second = lp.compress(first.model, AGAIN, calibrate=batches(), target=T)
    assert second.data["sentence"].endswith(told) and told not in first.data["sentence"]
    row = next(row for row in second.data["layers"] if row["path"] == "0.weight")
    assert row["sqnr_db"] is None  # the second run did nothing to it
    third = lp.compress(first.model, AGAIN, calibrate=batches(), target=T, baseline=make())
    assert told not in third.data["sentence"]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Any:
        return self.a(x), x


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 9)).eval()


def other_inputs() -> nn.Module:
    return nn.Sequential(nn.Linear(31, 8)).eval()


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if float(x.sum()) < 1e9 else self.a(-x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("baseline", "what"),
    [
        ("net.pth", "is a str"),
        (nn.Linear, "is a type"),
        (wider(), "answers otherwise than the model"),
        (Two().eval(), "answers otherwise than the model"),
        (make().double(), "fails on this input"),
        (other_inputs(), "fails on this input"),
        (Branches().eval(), "could be captured only by"),
    ],
    ids=repr,
)
def test_a_baseline_that_cannot_be_compared_with_is_refused_before_any_work(
    baseline: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lilliput.verbs.follow", lambda *given: pytest.fail("work was done"))
    with pytest.raises(InputError, match=what) as caught:
        lp.compress(make(), calibrate=batches(), baseline=baseline, target=T)
    assert "baseline" in str(caught.value) and caught.value.next


def test_a_baseline_goes_into_the_task() -> None:
    with pytest.raises(LilliputError, match=r"Task\(…, baseline=…\)"):
        lp.compress(lp.Task(make(), calibrate=batches()), baseline=make(), target=T)


def test_layers_left_out_by_the_first_run_are_known_in_the_baseline() -> None:
    class Layer(nn.Module):
        def __init__(self, size: float) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(32, 8), nn.Linear(8, 32)
            self.down.weight.data *= size

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net = nn.Sequential(Layer(1.0), Layer(0.001), Layer(2.0)).eval()
    shorter = lp.compress(net, lp.Recipe([lp.Prune("layers", 0.34)]), calibrate=batches(), target=T)
    task = lp.Task(shorter.model, calibrate=batches(), baseline=net)
    small = lp.compress(task, lp.Recipe([lp.Quantize(weights=lp.Int(6))]), target=T).data
    rows = {row["path"]: row for row in small["layers"]}
    assert {row["was"] for row in rows.values()} == {None, "2.up.weight", "2.down.weight"}
    assert all(row["sqnr_db"] > 25 for row in rows.values())
