"""ExecuTorch and LiteRT: what is written for them, by torch alone, and what they answer where they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import BertConfig, BertModel

import lilliput as lp
from lilliput.encodings import Encoding
from lilliput.engine.begin import begin
from lilliput.engine.fidelity import told_of_kernels
from lilliput.engine.store import Store
from lilliput.errors import ExportError, InputError
from lilliput.exporters import written
from lilliput.exporters.quantized import quantized
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.values import unrounded, value_encodings, without_values
from lilliput.progress import silent
from lilliput.targets import ExecuTorch, LiteRt
from lilliput.targets.edge import Fixed
from lilliput.techniques.run import Wanted

KINDS = {"executorch": ExecuTorch, "litert": LiteRt}
VARIABLES = {"executorch": "EXECUTORCH_PYTHON", "litert": "LITERT_PYTHON"}


class AnyExecuTorch(ExecuTorch):
    """Where the package need not be installed, for what torch alone computes."""

    def check(self) -> None:
        pass


class AnyLiteRt(LiteRt):
    """As `AnyExecuTorch`."""

    def check(self) -> None:
        pass


ANYWHERE = {"executorch": AnyExecuTorch, "litert": AnyLiteRt}
STATIC = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.Int(8))])
RUN_TIME = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.Int(8, dynamic=True))])


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(count))


class Images(nn.Module):
    """A depthwise layer, an addition, pooling, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depth, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.drop, self.last = nn.Dropout(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = x + self.point(nn.functional.relu6(self.depth(x)))
        return self.last(self.drop(x.mean((2, 3))))


@cache
def small(kind: str, recipe: lp.Recipe = STATIC) -> nn.Module:
    torch.manual_seed(0)
    target = ANYWHERE[kind](threads=1, seconds=0)
    return lp.apply(Images().eval(), recipe, calibrate=[images()], target=target)


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=60, num_hidden_layers=1, **sizes)).eval()


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(0, 60, (1, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def operators(captured: ExportedProgram) -> list[str]:
    return [str(node.target).partition(".")[2] for node in captured.graph.nodes if node.op == "call_function"]


# what is written


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_computes_what_the_module_computes_to_the_bit(kind: str) -> None:
    net = small(kind)
    captured = quantized(net, Inputs.of(images(1)))
    x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(9))
    (found,) = captured.module()(x)
    close(found, net(x))
    assert not [node for node in captured.graph.nodes if "lilliput" in str(node.target)]


def test_each_reader_has_a_dequantize_of_its_own_and_codes_lie_around_zero() -> None:
    net = small("executorch")
    captured = quantized(net, Inputs.of(images(1)))
    read = [node for node in captured.graph.nodes if "dequantize_per_tensor" in str(node.target)]
    written_once = [
        node
        for node in captured.graph.nodes
        if "dequant" not in str(node.target) and "quantize_per_tensor" in str(node.target)
    ]
    assert all(len(node.users) == 1 for node in read)
    assert len(written_once) == len(value_encodings(net)) < len(read)
    assert {node.args[3:] for node in read} == {(-128, 127, torch.int8)}


def test_a_layer_keeps_its_codes_only_where_what_it_reads_and_gives_has_codes() -> None:
    net = small("executorch")
    held = quantized(net, Inputs.of(images(1)))
    assert operators(held).count("dequantize_per_channel.default") == 4
    alone = lp.apply(Images().eval(), lp.Recipe([lp.Quantize(weights=lp.Int(8))]), calibrate=[images()])
    floats = quantized(alone, Inputs.of(images(1)))
    assert operators(floats).count("dequantize_per_channel.default") == 0
    close(floats.module()(images(1))[0], alone(images(1)))


@pytest.mark.parametrize("values", [lp.Int(4), lp.Int(6), lp.Int(8, symmetric=True)])
def test_values_of_fewer_bits_are_cut_before_they_are_rounded(values: lp.Int) -> None:
    net = lp.apply(
        Images().eval(),
        lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=values)]),
        calibrate=[0.1 * images()],  # so that what is asked afterwards lies outside of the ranges
        target=AnyExecuTorch(threads=1),
    )
    captured = quantized(net, Inputs.of(images(1)))
    share = None if values.bits < 8 else 0.02  # around zero one code more is there than the module has
    close(captured.module()(images(1))[0], net(images(1)), share=share)


def test_rows_of_a_table_are_looked_up_as_codes_and_ranges_found_at_run_time() -> None:
    net = lp.apply(lp.Task(bert(), example=tokens()), RUN_TIME, target=AnyExecuTorch(threads=1))
    captured = quantized(net, Inputs.of(tokens()))
    assert "choose_qparams.tensor" in operators(captured)
    tables = {x.dtype for name, x in captured.state_dict.items() if "embeddings.weight" in name.replace("_encoded", "")}
    assert tables in ({torch.int8}, set()) and any(x.dtype == torch.int8 for x in captured.state_dict.values())
    assert sum(x.nbytes for x in captured.state_dict.values()) < 0.4 * sum(4 * x.numel() for x in bert().parameters())
    found = captured.module()(**tokens())[0]
    close(found, net(**tokens()).last_hidden_state, share=0.02)


@pytest.mark.parametrize("mode", ["sum", "mean", "max", "weighted"])
def test_bags_of_one_length_are_rows_that_are_looked_up_as_codes(mode: str) -> None:
    torch.manual_seed(0)

    class Bags(nn.Module):
        def __init__(self, **given: Any) -> None:
            super().__init__()
            self.bag, self.last = nn.EmbeddingBag(60, 16, **given), nn.Linear(16, 4)

        def forward(self, ids: Tensor) -> Any:
            return self.last(self.bag(ids, per_sample_weights=ids / 60 if mode == "weighted" else None))

    ids = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    own = "sum" if mode == "weighted" else mode
    weights = lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=None, where="bag")])
    net = lp.apply(lp.Task(Bags(mode=own).eval(), calibrate=[ids]), weights, target=AnyExecuTorch(threads=1))
    captured = quantized(net, Inputs.of(ids))
    assert any(x.dtype == torch.int8 for x in captured.state_dict.values())
    close(captured.module()(ids)[0], net(ids))
    padded = Bags(mode=own, padding_idx=3).eval()
    with pytest.raises(ExportError, match="without padding_idx"):
        quantized(padded, Inputs.of(ids))


def test_an_lstm_is_torchs_own_again() -> None:
    torch.manual_seed(0)

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.last = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.lstm(x)[0])

    net, x = Steps().eval(), torch.randn(1, 6, 8)
    captured = quantized(net, Inputs.of(x))
    assert "lstm.input" in operators(captured)
    close(captured.module()(x)[0], net(x))


def test_values_in_a_grid_of_other_numbers_are_refused_with_the_operator() -> None:
    net = lp.apply(
        Images().eval(),
        lp.Recipe([lp.Quantize(weights=lp.Int(8), activations=lp.formats.MiniFloat("e4m3"))]),
        calibrate=[images()],
    )
    with pytest.raises(ExportError, match="project_grid"):
        quantized(net, Inputs.of(images(1)))


# what the guard reads


@pytest.mark.parametrize("rounded", [True, False])
def test_the_program_beside_a_file_says_what_the_file_says(tmp_path: Path, rounded: bool) -> None:
    net, example = small("executorch"), Inputs.of(images(1))
    built = tmp_path / "net.pte"
    written.keep(quantized(net, example), built)
    with torch.no_grad():
        signature = Signature.of(example, net(images(1)), net.forward)
        run = ExecuTorch(threads=1).writes.reference(built, signature, rounded=rounded)
        assert run is not None
        if rounded:
            close(run(images(7)), net(images(7)))
        else:
            with unrounded(net):
                close(run(images(7)), net(images(7)))
    assert ExecuTorch(threads=1).writes.reference(tmp_path / "other.pte", signature, rounded=True) is None


@pytest.mark.parametrize(("share", "said"), [(0.001, False), (2.0, True)])
def test_kernels_are_told_where_they_move_answers_otherwise_than_the_file_says(
    share: float, said: bool, tmp_path: Path
) -> None:
    net, example = small("executorch"), Inputs.of(images(1))
    driver, _ = begin(lp.Task(Images().eval(), example=images(1)), AnyExecuTorch(threads=1), Store(), silent)
    built = tmp_path / "net.pte"
    written.keep(quantized(net, example), built)
    with torch.no_grad():
        signature = Signature.of(example, net(images(1)), net.forward)
        rounding = net(images(1)) - without_values(duplicate(net))(images(1))

        def run(x: Tensor) -> Tensor:
            return net(x) + share * rounding

        told = told_of_kernels(driver, net, built, signature, run)
    assert ("round more than the file says" in told) == said


def test_any_number_of_samples_runs_in_pieces_of_the_files() -> None:
    seen: list[int] = []

    def call(given: Any) -> list[np.ndarray]:
        seen.append(len(given[0]))
        return [given[0] * 2]

    example = torch.ones(2, 3)
    run = Fixed([(2, 3)], Signature.of(Inputs.of(example), example), call)
    x = torch.randn(5, 3)
    close(run(x), 2 * x)
    assert seen == [2, 2, 2]
    with pytest.raises(InputError, match="file takes"):
        run(torch.ones(2, 4))


# preferences


def placed(kind: str, net: nn.Module, x: Tensor, activation: Encoding) -> tuple[set[str], dict[str, str]]:
    view = capture(net, Inputs.of(x), {})
    paths = [path for path in view.weights]
    found = KINDS[kind]().prefers.place(view, Wanted(dict.fromkeys(paths, activation), dict.fromkeys(paths, lp.Int(8))))
    return {value.value for value in found.values}, dict(found.left)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_gives_is_encoded_as_well(kind: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5)).eval()
    values, left = placed(kind, net, images(1), lp.Int(8).for_value())
    assert {"0:conv2d#0@0", "1:relu#0", "2:flatten#0", "3:linear#0"} <= values and not left


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_kernel_is_left_with_the_reason(kind: str) -> None:
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 3)).eval()
    values, left = placed(kind, net, images(1), lp.Int(8).for_value())
    assert not values and "no integer kernel for conv_transpose2d" in left["0.weight"]


@pytest.mark.parametrize("kind", KINDS)
def test_networks_with_convolutions_get_calibrated_ranges(kind: str) -> None:
    prefers = KINDS[kind]().prefers
    view = capture(Images().eval(), Inputs.of(images(1)), {})
    assert prefers.recipe(view, True).steps[0].activations == lp.Int(8)
    assert prefers.recipe(view, False).steps[0].activations == lp.Int(8, dynamic=True)


def test_a_recurrent_layer_stays_as_it_is_by_default() -> None:
    net = nn.Sequential(nn.LSTM(8, 8)).eval()
    (step,) = ExecuTorch().prefers.recipe(capture(net, Inputs.of(torch.randn(3, 1, 8)), {}), True).steps
    assert step.where == ("*", "!0")


# what is refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_python_without_the_package_is_named_with_the_command(kind: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    with pytest.raises(InputError, match=r"is not installed.*-m pip install"):
        KINDS[kind](python=python).check()
    with pytest.raises(InputError, match="cannot be run"):
        KINDS[kind](python=str(tmp_path / "none")).check()


def test_an_open_axis_beside_the_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"axis 1 of input 0 is open \(tokens\).*pad to one length"):
        ExecuTorch().writes.build(tmp_path / "net.pte", small("executorch"), Inputs.of(images(1)), {0: {1: "tokens"}})


# where they are installed


@pytest.fixture(params=KINDS)
def installed(request: pytest.FixtureRequest) -> ExecuTorch | LiteRt:
    kind = request.param
    if VARIABLES[kind] not in os.environ:
        pytest.skip(f"{VARIABLES[kind]} names no Python: the package lives in an environment of its own")
    return KINDS[kind](threads=1, seconds=0)


def test_the_file_answers_within_two_steps_of_the_last_rounding(installed: ExecuTorch | LiteRt, tmp_path: Path) -> None:
    net, example = small(installed.name), Inputs.of(images(1))
    built = tmp_path / f"net.{installed.writes.format}"
    installed.writes.build(built, net, example, {0: {0: "batch"}})
    with torch.no_grad():
        run = installed.runs.open(built, Signature.of(example, net(images(1)), net.forward))
        expected = net(images(7))
    last = value_encodings(net)["last:linear#0"]  # what the file rounds last
    assert float((run(images(7)) - expected).abs().max()) <= 2.01 * float(last.scale)  # type: ignore[arg-type]
    close(run(images(7)), expected, share=0.05)
    assert built.stat().st_size < 40_000


def test_layers_with_ranges_found_at_run_time_are_codes_and_others_are_not(
    installed: ExecuTorch | LiteRt, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 8)).eval()
    x = torch.randn(1, 64)
    step = lp.Quantize(weights=lp.Int(8), activations=lp.Int(8, dynamic=True), where=("0", "4"))
    coded = lp.apply(lp.Task(net, example=x), lp.Recipe([step]), target=installed)
    built = tmp_path / f"net.{installed.writes.format}"
    installed.writes.build(built, coded, Inputs.of(x), {})
    with torch.no_grad():
        run = installed.runs.open(built, Signature.of(Inputs.of(x), net(x), net.forward))
        close(run(x), coded(x), share=0.05)
    assert 4 * 65_536 + 18_432 < built.stat().st_size < 4 * 84_488


def test_what_the_package_does_not_lower_is_named(installed: ExecuTorch | LiteRt, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(ExportError, match="bessel_j0"):
        installed.writes.build(tmp_path / f"net.{installed.writes.format}", Odd(), Inputs.of(images(1)), {})
