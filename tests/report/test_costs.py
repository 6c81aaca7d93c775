from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import lilliput as lp
from lilliput.engine.costs import Costs, Throughput
from lilliput.measure import Latencies
from lilliput.measure.loading import Loading
from lilliput.report.costs import batch_figures, cost_figures
from lilliput.report.weights import counts


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """The report of a network of which half of the weights were zeroed and all put on a grid of 4 bits."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64, bias=False), nn.ReLU(), nn.Linear(64, 8, bias=False)).eval()
    recipe = lp.Recipe([lp.Prune("weights", 0.5), lp.Quantize(weights=lp.Int(4, per="tensor"))])
    task = lp.Task(net, calibrate=[torch.randn(16, 32)])
    small = lp.compress(task, recipe, target=lp.targets.OnnxRuntime(threads=1, seconds=1))
    exact = torch.cat([x.detach().flatten() for x in net.parameters()])
    now = torch.cat([x.detach().flatten() for x in lp.formats.to_dense(small.model).parameters()])
    return {**small.data, "exact": exact, "now": now, "page": (small.folder / "report.html").read_text()}


def test_what_is_left_shared_and_moved_is_told(data: dict[str, Any]) -> None:
    exact, now = data["exact"], data["now"]
    assert data["before"]["parameters"] == data["before"]["nonzero"] == len(exact)
    assert data["after"]["nonzero"] == int((now != 0).sum())
    ratio, left = data["ratio"], now[now != 0]
    assert ratio["nonzero"] == pytest.approx(len(left) / len(exact)) and 0.3 < ratio["nonzero"] <= 0.5
    first, second = now[: 32 * 64], now[32 * 64 :]
    values = sum(len(x[x != 0].unique()) for x in (first, second))
    assert data["after"]["distinct"] == values <= 2 * 15
    assert ratio["shared"] == pytest.approx(1 - values / len(left))
    assert ratio["weight_error"] == pytest.approx(float((now - exact).norm() / exact.norm()), rel=1e-5)
    for told in ("(r_p)", "(r_w)", "(ε_q)", "Parameters that are not zero".lower()):
        assert told in data["page"]


def test_calls_and_batches_are_told(data: dict[str, Any]) -> None:
    for side in ("before", "after"):
        calls = data[side]["calls"]
        assert calls["count"] >= 3
        if "p50_ms" in calls:  # else something disturbed them
            assert 0 < calls["p50_ms"] <= calls.get("p95_ms", math.inf)
        assert data[side]["joules"] is None or data[side]["joules"] > 0
    batches = data["batches"]
    assert batches["samples"] == 16 and batches["threads"] >= 1
    assert (data["after"]["throughput"] is None) is bool(batches["untold"])  # others were at work on the cores
    if not batches["untold"]:
        rates = [data[side]["throughput"]["value"] for side in ("before", "after")]
        assert batches["faster"]["value"] == pytest.approx(rates[1] / rates[0], rel=0.5)


def test_samples_a_second_are_those_of_a_call() -> None:
    taken = Latencies({"before": (20.0, 20.0, 22.0), "after": (10.0, 10.0, 10.0)}, threads=2, cores=2)
    found = Throughput(16, 2, taken)
    assert found.a_second("after").value == pytest.approx(1600)
    before = found.a_second("before")
    assert before.value == pytest.approx(800) and before.low < 800 < before.high
    assert not found.untold
    busy = Throughput(16, 2, replace(taken, others_cores=1.5))
    assert busy.untold == "other work kept 1.5 of 2 cores busy while they were timed"
    assert Throughput(16, 2, Latencies({}, untimed="seconds=0")).untold == "seconds=0"
    assert batch_figures(Costs(taken, busy, {})) == {"samples": 16, "threads": 2, "faster": None, "untold": busy.untold}
    open_ended = Throughput(16, 2, Latencies({"before": (20.0,), "after": (10.0,)}, threads=2, cores=2))
    assert open_ended.a_second("before").value == pytest.approx(800) and open_ended.a_second("before").open


def test_what_was_not_measured_is_null() -> None:
    spent = Costs(Latencies({}, untimed="seconds=0"), None, {"before": None, "after": Loading(0.5, 10, 0.1, None)})
    assert batch_figures(spent) is None
    assert cost_figures(spent, "before") == {
        "latency_ms": None,
        "calls": {"count": 0},
        "joules": None,
        "throughput": None,
        "loading": None,
    }
    told = cost_figures(spent, "after")["loading"]
    assert told == {"seconds": 0.5, "peak_bytes": 10, "call_s": 0.1, "call_peak_bytes": None}


def test_counts_see_through_encodings_and_shared_tensors() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    nn.init.constant_(net[0].weight, 0.5)
    net[0].weight.data[0] = 0
    assert counts(net) == {"parameters": 16, "nonzero": 12, "distinct": 1}
