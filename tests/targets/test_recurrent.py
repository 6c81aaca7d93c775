"""Recurrent layers: what is exported computes what the module computes, an LSTM on integers where its ranges are
found at run time, for any number of steps.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from compared import close
from subjects import AT_RUN_TIME, DYNAMIC, EXACT, built, fused
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import ExportError
from lilliput.file.container import Reader
from lilliput.measure import DistanceSoFar, furthest
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.model.views.signature import Signature
from lilliput.model.views.values import value_encodings
from lilliput.report.layers import layers
from lilliput.techniques.encode import encode

AXES = {0: {0: "batch", 1: "steps"}}


class Net(nn.Module):
    """A recurrent layer with all that it returns, begun with a state of its own if wanted."""

    def __init__(self, kind: type[nn.RNNBase], begun: bool = False, **settings: Any) -> None:
        super().__init__()
        self.cell, self.begun = kind(16, 8, **settings), begun

    def forward(self, x: Tensor) -> Any:
        if not self.begun:
            return self.cell(x)
        count = self.cell.num_layers * (2 if self.cell.bidirectional else 1)
        batch = x.shape[0 if self.cell.batch_first else 1]
        h = x.mean() + torch.linspace(-1, 1, count * 8).reshape(count, 1, 8).expand(-1, batch, -1)
        return self.cell(x, (h, 2 * h) if isinstance(self.cell, nn.LSTM) else h)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(8, 3)
        self.lstm = nn.LSTM(16, 8, batch_first=True)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(words))[0][:, -1])  # type: ignore[no-any-return]


def sequences(steps: int = 5) -> Tensor:
    return torch.randn(3, steps, 16)


def outputs(run: Any, x: Tensor) -> list[Tensor]:
    out, states = run(x)
    return [out, *(states if isinstance(states, tuple) else [states])]


def runner(tmp_path: Path, net: nn.Module, step: lp.Quantize | None, x: Tensor) -> Any:
    driver, path = built(tmp_path, net, [x], [step] if step else [], AXES)
    return driver, driver.target.runs.open(path, Signature.of(Inputs.of(x), driver.model(x)))


KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "LSTM": (nn.LSTM, {"batch_first": True}),
    "LSTM, both ways, two levels": (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    "LSTM, without biases": (nn.LSTM, {"bias": False}),
    "LSTM, begun": (nn.LSTM, {"begun": True, "num_layers": 2, "batch_first": True}),
    "LSTM, projected": (nn.LSTM, {"proj_size": 4, "bidirectional": True, "num_layers": 2}),
    "GRU, both ways, two levels": (nn.GRU, {"bidirectional": True, "num_layers": 2}),
    "GRU, begun": (nn.GRU, {"begun": True, "bidirectional": True}),
    "RNN": (nn.RNN, {"batch_first": True, "num_layers": 2}),
    "RNN, relu": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


class Every(nn.Module):
    """One layer of every kind, beside one another."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Net(kind, **settings) for kind, settings in KINDS.values())

    def forward(self, x: Tensor) -> list[Tensor]:
        return [part for net in self.nets for part in outputs(net, x)]


@pytest.mark.parametrize(
    "weights",
    [
        None,
        lp.Int(8, symmetric=False),
        lp.Int(4, group=4, scale=lp.formats.Float16()),
        lp.formats.NF4(group=4),
        lp.formats.Codebook(16),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_weights_alone_compute_what_the_module_does_for_any_number_of_steps(weights: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    driver, run = runner(tmp_path, Every(), lp.Quantize(weights=weights) if weights else None, sequences())
    assert not driver.told.skipped
    for x in (sequences(), torch.randn(2, 9, 16)):
        for ours, theirs in zip(run(x), driver.model(x), strict=True):
            close(ours, theirs.detach(), atol=1e-5, rtol=0)


def rounded(x: Tensor) -> Tensor:
    """To unsigned 8-bit integers over its own range and back."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255 if high > low else torch.ones(())
    offset = torch.round(-low / scale)
    return (torch.clamp(torch.round(x / scale) + offset, 0, 255) - offset) * scale


def slow_lstm(cell: nn.LSTM, x: Tensor) -> Tensor:
    """One level, one direction, [batch, steps, inputs], with its input and each hidden state rounded."""
    h, c = torch.zeros(2, len(x), cell.hidden_size).unbind(0)
    given, out = rounded(x), []
    for step in given.unbind(1):
        gates = step @ cell.weight_ih_l0.T + cell.bias_ih_l0 + rounded(h) @ cell.weight_hh_l0.T + cell.bias_hh_l0
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize(
    "weights", [EXACT, replace(EXACT, per="tensor"), lp.Int(6, scale=lp.formats.Float16())], ids=repr
)
def test_an_lstm_with_ranges_found_at_run_time_runs_on_integers(weights: lp.Int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net(nn.LSTM, batch_first=True), sequences()
    driver, path = built(tmp_path, net, [x], [lp.Quantize(weights=weights, activations=DYNAMIC)], AXES)
    assert fused(path)["DynamicQuantizeLSTM"] == 1 and not fused(path)["LSTM"]
    run = driver.target.runs.open(path, Signature.of(Inputs.of(x), driver.model(x)))
    long = torch.randn(3, 40, 16)
    with torch.no_grad():
        expected = slow_lstm(driver.model.cell, long)
    close(run(long)[0], expected, atol=2e-3, rtol=0)
    assert {row["runs_as"] for row in layers(driver, {}, {})} == {
        "int8 kernel, ranges of inputs and hidden states found at each run"
    }


def test_both_directions_and_all_levels_run_on_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net(nn.LSTM, begun=True, bidirectional=True, num_layers=2), sequences(20)
    driver, run = runner(tmp_path, net, AT_RUN_TIME, x)
    assert fused(tmp_path / "net.onnx")["DynamicQuantizeLSTM"] == 2
    assert list(value_encodings(driver.model)) == ["cell:lstm#0@0"]
    so_far = DistanceSoFar()
    so_far.add(run(x), driver.model(x))
    assert furthest(so_far.distances()).sqnr_db > 35


def test_what_has_no_integer_kernel_is_said(tmp_path: Path) -> None:
    for kind, settings, why in (
        (nn.GRU, {}, "no integer kernel for gru"),
        (nn.RNN, {}, "no integer kernel for rnn"),
    ):
        driver, path = built(tmp_path, Net(kind, **settings), [sequences()], [AT_RUN_TIME], AXES)
        assert not value_encodings(driver.model) and not fused(path)["DynamicQuantizeLinear"]
        assert all(row["runs_as"].endswith(f"({why})") for row in layers(driver, {}, {}))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projections_are_size_only_and_begin_with_zeros(tmp_path: Path) -> None:
    driver, path = built(tmp_path, Net(nn.LSTM, proj_size=4), [sequences()], [AT_RUN_TIME], AXES)
    assert fused(path)["LSTM"] == 1
    assert all("no integer kernel with projections" in row["runs_as"] for row in layers(driver, {}, {}))

    class Begun(Net):
        def forward(self, x: Tensor) -> Any:
            h = x[0, :, :4][None]
            return self.cell(x, (h, torch.cat([h, h], 2)))

    with pytest.raises(ExportError, match="projection that begins with states of its own"):
        built(tmp_path, Begun(nn.LSTM, proj_size=4), [sequences()], [], AXES)


def test_one_weight_left_out_leaves_the_layer_in_float(tmp_path: Path) -> None:
    step = lp.Quantize(weights=EXACT, activations=DYNAMIC, where=("*", "!cell.weight_hh_l0"))
    driver, path = built(tmp_path, Net(nn.LSTM), [sequences()], [step], AXES)
    assert fused(path)["LSTM"] == 1 and not value_encodings(driver.model)
    rows = {row["path"]: row["runs_as"] for row in layers(driver, {}, {})}
    assert rows["cell.weight_hh_l0"] == "float" and rows["cell.weight_ih_l0"].startswith("size only")


def test_one_weight_encoded_otherwise_later_leaves_the_layer_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net(nn.LSTM, batch_first=True), sequences()
    driver, path = built(tmp_path, net, [x], [AT_RUN_TIME], AXES)
    encode(driver, "cell.weight_hh_l0", lp.Int(8, symmetric=False))
    driver.target.writes.build(path, driver.model, Inputs.of(x), driver.dynamic)
    assert fused(path)["LSTM"] == 1
    assert all(row["runs_as"].startswith("simulated in float") for row in layers(driver, {}, {}))
    run = driver.target.runs.open(path, Signature.of(Inputs.of(x), driver.model(x)))
    close(run(x)[0], driver.model(x)[0].detach(), atol=1e-5, rtol=0)


def test_static_ranges_leave_an_lstm_in_float(tmp_path: Path) -> None:
    driver, path = built(tmp_path, Net(nn.LSTM), [sequences()], [lp.Quantize(activations=lp.Int(8))], AXES)
    assert fused(path)["LSTM"] == 1 and not value_encodings(driver.model)


def test_the_default_recipe_encodes_a_classifier_and_the_file_holds_it_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = [torch.randint(0, 50, (4, 6)) for _ in range(2)]
    task = lp.Task(Classifier().eval(), example=words[0], evaluate=words, dynamic=AXES)
    small = lp.compress(task, target=lp.targets.OnnxRuntime(threads=1, seconds=1), folder=tmp_path / "out")
    assert not small.data["skipped"]
    assert {row["path"] for row in small.data["layers"] if "int8 kernel" in row["runs_as"]} == {
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "head.weight",
    }
    assert small.data["export"]["after"]["sqnr_db"] > 27
    path = small.save(tmp_path / "net.lil")
    references = Reader(path.read_bytes()).header["graph"]["initializers"].values()
    shared = {str(reference.get("tensor", "")) for reference in references}
    assert {"lstm.weight_ih_l0_encoded.codes", "lstm.weight_hh_l0_encoded.codes"} <= shared
    assert not any(name.startswith(":graph:") for name in shared)
    other = torch.randint(0, 50, (2, 11))
    loaded = lp.load(path, into=Classifier())
    close(loaded(other), small.model(other), rtol=0, atol=0)
    close(lp.open(path)(other), loaded(other).detach(), share=0.02)


def test_bytes_are_the_same_when_built_again(tmp_path: Path) -> None:
    files = []
    for _ in range(2):
        torch.manual_seed(0)
        net = Net(nn.LSTM, bidirectional=True, num_layers=2)
        files.append(built(tmp_path, net, [sequences()], [AT_RUN_TIME], AXES)[1].read_bytes())
    assert files[0] == files[1]
    onnx.checker.check_model(onnx.load_from_string(files[0]))


class Mixed(nn.Module):
    """A convolution over steps, an LSTM, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(16, 16, 5, padding=2), nn.LSTM(16, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.relu(self.conv(x)).transpose(1, 2)
        return self.head(self.lstm(steps)[0][:, -1])  # type: ignore[no-any-return]


def test_the_default_recipe_gives_each_of_both_its_own_ranges(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Mixed().eval(), [torch.randn(4, 16, 12) for _ in range(2)]
    inputs = Inputs.of(x[0])
    target = lp.targets.OnnxRuntime(threads=1)
    recipe = target.prefers.recipe(capture(net, inputs, dynamic_axes(inputs, None)), calibrated=True)
    driver, path = built(tmp_path, net, x, recipe.steps)
    ops = fused(path)
    assert (ops["QLinearConv"], ops["DynamicQuantizeLSTM"], ops["QGemm"]) == (1, 1, 1)
    assert driver.told.skipped == {}
