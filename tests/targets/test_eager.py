"""PyTorch as a target: any network that it runs, and the one file that is stored is what runs."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import CaptureError, FormatError, InputError, MeasureError
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.values import value_encodings

QUICK = lp.targets.Eager(seconds=0)
VALUES = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.Int(8))])


class Branching(nn.Module):
    """What it computes depends on what it is given, so that no graph holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        if x.sum() > 0:
            h = 3 * h
        return self.second(h)


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))


def convolutions() -> nn.Module:
    body = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU())
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1, enable_nested_tensor=False)


KINDS = {
    "mlp": (mlp, (8, 32)),
    "convolutions": (convolutions, (4, 3, 12, 12)),
    "encoder": (encoder, (2, 6, 32)),
    "lstm": (Reading, (3, 7, 16)),
    "branching": (Branching, (8, 32)),
}


def subject(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = KINDS[name]
    torch.manual_seed(0)
    return make().eval(), torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", list(KINDS))
def test_without_a_recipe_weights_are_stored_in_eight_bits(name: str, tmp_path: Path) -> None:
    net, x = subject(name)
    small = lp.compress(lp.Task(net, calibrate=[x]), target=QUICK, folder=tmp_path)
    assert small.built == tmp_path / "net.lil" and not value_encodings(small.model)
    loaded = lp.load(small.built, into=copy.deepcopy(net))
    for given in (x, -x):
        assert torch.equal(loaded(given), small.model(given))
        close(small.model(given), net(given), share=0.05)
    assert not torch.equal(small.model(x), net(x))
    rows = small.data["layers"]
    assert rows and all(row["runs_as"] == "size only: decoded to float at each call" for row in rows)


def test_the_file_that_runs_is_told_once(tmp_path: Path) -> None:
    net, x = subject("mlp")
    small = lp.compress(net, calibrate=[x], target="eager", folder=tmp_path)
    (was,), (now,) = (small.data[side]["artifacts"] for side in ("before", "after"))
    assert now["bytes"] == small.built.stat().st_size and was["bytes"] == 4 * (33 * 64 + 65 * 8)
    assert small.data["ratio"]["smaller"] == small.data["ratio"]["smaller_file"] == was["bytes"] / now["bytes"]
    assert str(small).count("file is") == 1 and "graph" not in str(small)
    page = (tmp_path / "report.html").read_text()
    assert "None" not in page and page.count("smaller</") == 1
    assert json.loads((tmp_path / "report.json").read_text())["target"] == "eager"


def test_what_no_graph_holds_has_its_weights_encoded_and_says_so() -> None:
    net, x = subject("branching")
    small = lp.compress(net, calibrate=[x], target=QUICK)
    assert str(small).endswith("; no graph holds the whole network, so its weights alone were changed.")
    assert small.data["capture"]["rung"] == "module-local" and small.data["capture"]["problems"]
    assert [row["encoding"] for row in small.data["layers"]] == ["int8 per channel"] * 2
    assert small.data["ratio"]["smaller"] > 2.5
    with pytest.raises(CaptureError, match=r"onnxruntime cannot run it.*target=\"eager\""):
        lp.compress(net, calibrate=[x])


@pytest.mark.parametrize(
    "step",
    [
        lp.Prune("weights", 0.5),
        lp.Quantize(weights=lp.Int(4, group=16), rounding=lp.rounding.GPTQ()),
        lp.Quantize(weights=lp.Int(4), fit=lp.ranges.HQQ()),
        lp.techniques.Share(16),
    ],
    ids=["sparse", "GPTQ", "HQQ", "shared"],
)
def test_techniques_for_weights_need_no_whole_graph(step: lp.Quantize) -> None:
    net, x = subject("branching")
    small = lp.compress(net, lp.Recipe([step]), calibrate=[x], target=QUICK)
    applied = lp.apply(net, lp.Recipe([step]), calibrate=[x], target=QUICK)
    assert torch.equal(small.model(x), applied(x)) and not torch.equal(small.model(x), net(x))
    assert torch.equal(lp.load(small.built, into=Branching())(x), small.model(x))


def test_what_needs_the_whole_graph_is_refused_where_there_is_none() -> None:
    net, x = subject("branching")
    dynamic = lp.Recipe([lp.Quantize(activations=lp.Int(8, dynamic=True))])
    for recipe in (VALUES, dynamic):
        with pytest.raises(CaptureError, match=r"in parts alone.*data-dependent.*activations=None"):
            lp.compress(net, recipe, calibrate=[x], target=QUICK)
    with pytest.raises(InputError, match=r"cannot be captured whole.*or prune weights"):
        lp.compress(net, lp.Recipe([lp.Prune("channels", 0.5)]), calibrate=[x], target=QUICK)


@pytest.mark.parametrize("name", ["mlp", "convolutions", "encoder", "lstm"])
def test_values_that_flow_are_rounded_in_float(name: str) -> None:
    net, x = subject(name)
    alone, both = (lp.compress(net, recipe, calibrate=[x], target=QUICK) for recipe in (None, VALUES))
    assert value_encodings(both.model) and not torch.equal(both.model(x), alone.model(x))
    close(both.model(x), net(x), share=0.05)
    loaded = lp.load(both.built, into=copy.deepcopy(net))
    assert torch.equal(loaded(x), both.model(x))
    told = {row["runs_as"] for row in both.data["layers"]}
    assert "simulated in float: shows accuracy, gains nothing" in told and not any("kernel" in one for one in told)


def test_channels_go_and_what_is_left_is_what_runs() -> None:
    net, x = subject("convolutions")
    small = lp.compress(net, lp.Recipe([lp.Prune("channels", 0.5), lp.Quantize()]), calibrate=[x], target=QUICK)
    assert 0 < small.model[0].out_channels < 16
    assert torch.equal(lp.load(small.built, into=convolutions())(x), small.model(x))


def test_what_is_opened_has_the_tensors_of_the_file(tmp_path: Path) -> None:
    net, x = subject("mlp")
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    signature, path = Signature.of(Inputs.of(x), net(x)), tmp_path / "net.lil"
    QUICK.writes.build(path, net, Inputs.of(x), {})
    run = QUICK.runs.open(path, signature, other)
    assert torch.equal(run(x), net(x)) and not other(x).any()
    assert not run(x).requires_grad
    with pytest.raises(InputError, match=re.escape("lilliput.load(path, into=…)")):
        QUICK.runs.open(path, signature)
    lp.save(path, net, example=x, target="eager")
    with pytest.raises(FormatError, match="made for eager, which runs the module itself"):
        lp.open(path)


def test_a_run_goes_on_and_what_was_compressed_is_compressed_again(tmp_path: Path) -> None:
    net, x = subject("mlp")
    first = lp.compress(net, calibrate=[x], target=QUICK, folder=tmp_path)
    again = lp.compress(net, calibrate=[x], target=QUICK, folder=tmp_path)
    assert again.data["ratio"] == first.data["ratio"] and torch.equal(again.model(x), first.model(x))
    sparse = lp.compress(first.model, lp.Recipe([lp.Prune("weights", 0.3)]), calibrate=[x], target=QUICK)
    assert torch.equal(lp.load(sparse.built, into=mlp())(x), sparse.model(x))
    copied = lp.export(tmp_path / "copy.lil", first.model, x, target="eager")
    assert torch.equal(lp.load(copied, into=mlp())(x), first.model(x))


def test_where_it_loses_is_seen_inside_what_runs() -> None:
    net, x = subject("mlp")
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.Int(4))])
    found = lp.diagnose(net, recipe, calibrate=[x], target="eager", worst=1)
    assert found.on == "target" and {row.values for row in found.rows} == {"uint4 per tensor"}
    partial = lp.diagnose(
        subject("branching")[0], lp.Recipe([lp.Quantize(weights=lp.Int(3))]), calibrate=[x], target="eager"
    )
    assert {row.name for row in partial.rows} == {"first.weight", "second.weight"}


class Routed(nn.Module):
    """Rows of small numbers go one way, of large ones another, of larger ones a third."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far, self.beyond = (nn.Linear(32, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        size = float(x.abs().mean())
        return self.near(x) if size < 1 else self.far(x) if size < 10 else self.beyond(x)


def test_parts_that_any_of_the_first_batches_reaches_are_encoded_and_others_told() -> None:
    torch.manual_seed(0)
    x, net = torch.randn(8, 32), Routed().eval()
    small = lp.compress(lp.Task(net, calibrate=[x, 3 * x]), target=QUICK)
    assert [row["path"] for row in small.data["layers"]] == ["near.weight", "far.weight"]
    assert small.data["skipped"] == [{"path": "beyond.weight", "reason": "no captured call reads it"}]
    for times in (1, 3):
        close(small.model(times * x), net(times * x), share=0.05)
        assert not torch.equal(small.model(times * x), net(times * x))
    assert torch.equal(small.model(99 * x), net(99 * x))


def test_it_is_timed_on_its_threads_and_the_program_keeps_its_own() -> None:
    threads, seen = torch.get_num_threads(), set[int]()
    x = torch.zeros(1)
    target = lp.targets.Eager(threads=threads + 1, seconds=1e-9)
    with pytest.raises(MeasureError, match="no round of timing"):
        target.runs.latencies({"net": lambda x: seen.add(torch.get_num_threads())}, Inputs.of(x), 1e-9)
    assert seen == {threads + 1} and torch.get_num_threads() == threads


def test_a_device_is_given_no_file_that_only_a_module_reads() -> None:
    net, x = subject("mlp")
    device = lp.targets.Device(command="true {model} {inputs}", builds=lp.targets.Eager())
    with pytest.raises(InputError, match=r"eager builds \.lil"):
        lp.compress(net, calibrate=[x], target=device)
