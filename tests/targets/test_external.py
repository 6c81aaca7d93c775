"""Networks whose ONNX file does not hold its tensors: they lie beside it, wherever it is built, opened and moved.

Beyond 64 MB they do, since no protobuf holds over 2 GB; here the limit is lowered, and small networks stand for large.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from compared import close
from onnx import TensorProto
from torch import Tensor, nn
from typer.testing import CliRunner

import lilliput as lp
from lilliput import external
from lilliput.cli.app import app
from lilliput.errors import ExportError, FormatError, InputError, LilliputError
from lilliput.exporters.unrounded import unrounded
from lilliput.file.container import Reader
from lilliput.file.graph import restored
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.runtimes.session import session

ORT = lp.targets.OnnxRuntime(threads=1, seconds=0)


@pytest.fixture(scope="module", autouse=True)
def lowered() -> Iterator[None]:
    """No tensor over 1,024 bytes lies in its file."""
    before, external.MOST = external.MOST, 0
    yield
    external.MOST = before


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 300), nn.ReLU(), nn.Linear(300, 60, bias=False), nn.Tanh()).eval()


def batches() -> list[Tensor]:
    return [torch.randn(8, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@dataclass(frozen=True)
class Ran:
    small: lp.results.Result
    folder: Path


def compressed(folder: Path) -> lp.results.Result:
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(7), activations=lp.Int(8))])
    return lp.compress(network(), recipe, calibrate=batches(), target=ORT, folder=folder, measure=False)


@pytest.fixture(scope="module")
def ran(lowered: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("out")
    return Ran(compressed(folder), folder)


def moved(path: Path, folder: Path) -> Path:
    """What was written, alone in another folder."""
    folder.mkdir()
    for part in external.files_of(path):
        shutil.copy(part, folder / part.name)
    return folder / path.name


def answer(path: Path, x: Tensor) -> Tensor:
    """What ONNX Runtime answers, with nothing of ours."""
    (out,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {onnx.load(path, load_external_data=False).graph.input[0].name: x.numpy()}
    )
    return torch.from_numpy(np.asarray(out))


def test_a_run_delivers_both_files_and_weighs_both(ran: Ran) -> None:
    names = ("net.onnx", "net.onnx.data")
    assert all((ran.folder / name).is_file() for name in names)
    assert not list(ran.folder.glob("*.origins"))
    delivered = ran.small.data["after"]["artifacts"][0]
    assert delivered["bytes"] == sum((ran.folder / name).stat().st_size for name in names)
    held = onnx.load(ran.folder / "net.onnx", load_external_data=False).graph.initializer
    elsewhere = {one.name for one in held if one.data_location == TensorProto.EXTERNAL}
    assert elsewhere == {one.name for one in held if external.size_of(one) > external.SMALL}
    assert elsewhere and ran.small.data["after"]["artifacts"][0]["bytes"] > 300 * 32 + 300 * 60


def test_the_result_is_exported_under_another_name_and_opened_there(ran: Ran, tmp_path: Path) -> None:
    path = moved(ran.small.export(tmp_path / "deploy.onnx"), tmp_path / "elsewhere")
    assert [part.name for part in external.files_of(path)] == ["deploy.onnx", "deploy.onnx.data"]
    x = batches()[0]
    close(answer(path, x), ran.small.model(x).detach(), share=2e-2)


def test_the_file_to_send_is_the_same_and_opens(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, x = lp.open(ran.folder / "net.lil", threads=1), batches()[0]
    close(run(x), ran.small.model(x).detach(), share=2e-2)
    lp.save(tmp_path / "beside.lil", ran.small.model, example=x)
    monkeypatch.setattr(external, "MOST", 64 << 20)
    lp.save(tmp_path / "whole.lil", ran.small.model, example=x)
    assert (tmp_path / "beside.lil").read_bytes() == (tmp_path / "whole.lil").read_bytes()
    assert torch.equal(lp.open(tmp_path / "whole.lil", threads=1)(x), run(x))


def test_what_is_built_inside_one_file_has_the_same_tensors(ran: Ran) -> None:
    within = onnx.load_from_string(restored(Reader(ran.folder / "net.lil")))
    beside = onnx.load(ran.folder / "net.onnx")
    for one, other in zip(within.graph.initializer, beside.graph.initializer, strict=True):
        assert onnx.numpy_helper.to_array(one).tobytes() == onnx.numpy_helper.to_array(other).tobytes()


def test_a_run_that_is_begun_again_builds_anew_what_lost_its_tensors(ran: Ran, tmp_path: Path) -> None:
    shutil.copytree(ran.folder, tmp_path / "out")
    before = (ran.folder / "net.onnx.data").read_bytes()
    for path in (tmp_path / "out" / "net.onnx.data", tmp_path / "out" / "work" / "net.onnx.data"):
        path.unlink()
    again = compressed(tmp_path / "out")
    assert (again.folder / "net.onnx.data").read_bytes() == before
    assert again.data["after"]["artifacts"] == ran.small.data["after"]["artifacts"]


def test_the_guard_reads_it_without_rounding(ran: Ran) -> None:
    path, x = ran.folder / "net.onnx", batches()[1]
    given = unrounded(path)
    assert given is not None and len(given) < external.data_of(path).stat().st_size
    held = session(given, as_written=True, folder=path.parent)
    out = torch.from_numpy(held.run(None, {held.get_inputs()[0].name: x.numpy()})[0])
    rounded = answer(path, x)
    assert float((out - rounded).abs().max()) > 0
    close(out, rounded, share=4e-2)


@pytest.mark.parametrize("target", [ORT, lp.targets.OpenVino(threads=1, seconds=0)], ids=lambda one: one.name)
def test_a_module_is_exported_and_opened(target: lp.Target, tmp_path: Path) -> None:
    net, x = network(), batches()[0]
    path = lp.export(tmp_path / "net.onnx", net, x, target=target)
    assert external.data_of(path).stat().st_size >= 4 * (32 * 300 + 300 * 60)
    close(answer(moved(path, tmp_path / "elsewhere"), x), net(x).detach())
    lp.save(tmp_path / "net.lil", net, example=x, target=target)
    close(lp.open(tmp_path / "net.lil", threads=1)(x), net(x).detach())


def test_tensors_of_four_bits_lie_beside_too(tmp_path: Path) -> None:
    recipe, x = lp.Recipe([lp.Quantize(weights=lp.Int(4))]), batches()[0]
    net = lp.apply(network(), recipe, calibrate=batches())
    path = lp.export(tmp_path / "net.onnx", net, x)
    assert external.data_of(path).stat().st_size < 32 * 300 + 300 * 60  # a byte each
    close(answer(path, x), net(x).detach())
    lp.save(tmp_path / "net.lil", net, example=x)
    close(lp.open(tmp_path / "net.lil", threads=1)(x), net(x).detach())


def test_the_commands_take_it(ran: Ran, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    assert "net.onnx.data: " in run("export", ran.folder / "net.lil", "--out", tmp_path / "net.onnx").replace("\n", "")
    x = batches()[0]
    assert torch.equal(answer(tmp_path / "net.onnx", x), answer(ran.folder / "net.onnx", x))
    assert "ort-cpu: takes it" in run("check", ran.folder / "net.onnx")
    assert "ort-cpu: takes it" in run("check", ran.folder / "net.lil")
    assert "ONNX Runtime loads it" in run("verify", ran.folder / "net.lil")


def test_operators_are_timed(ran: Ran) -> None:
    from lilliput.targets.onnxruntime_operators import operators

    found = operators(ran.folder / "net.onnx", [batches()[0].numpy()], 1, 0.0)
    assert {one.layer for one in found} >= {"0.weight", "2.weight"}


def test_one_file_in_place_of_two_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lp.export(tmp_path / "net.onnx", network(), batches()[0])
    assert external.data_of(path).exists()
    monkeypatch.setattr(external, "MOST", 64 << 20)
    lp.export(path, network(), batches()[0])
    assert [part.name for part in tmp_path.iterdir()] == ["net.onnx"]
    close(answer(path, batches()[0]), network()(batches()[0]).detach())


@pytest.mark.parametrize("left", [None, 0, 5000], ids=["missing", "empty", "cut short"])
def test_a_file_without_its_tensors_is_refused(left: int | None, ran: Ran, tmp_path: Path) -> None:
    path = moved(ran.folder / "net.onnx", tmp_path / "there")
    data = external.data_of(path)
    whole = data.read_bytes()
    data.unlink()
    if left is not None:
        data.write_bytes(whole[:left])

    def refused(kind: type[LilliputError], act: object) -> None:
        with pytest.raises(kind) as told:
            act()  # type: ignore[operator]
        assert ("missing" if left is None else "cut short") in told.value.what
        assert "net.onnx.data" in told.value.why and "together" in told.value.next

    refused(FormatError, lambda: external.read(path))
    x = batches()[0]
    with pytest.raises(ExportError, match="missing" if left is None else "cut short"):
        ORT.runs.open(path, Signature.of(Inputs.of(x), ran.small.model(x).detach()))
    refused(FormatError, lambda: unrounded(path))
    refused(InputError, lambda: lp.targets.check(path))


def test_tensors_that_lie_in_other_folders_are_refused(ran: Ran, tmp_path: Path) -> None:
    path = moved(ran.folder / "net.onnx", tmp_path / "there")
    model = onnx.load(path, load_external_data=False)
    tensor = next(one for one in model.graph.initializer if external.is_beside(one))
    tensor.external_data[0].value = "../net.onnx.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FormatError, match="lies where none can"):
        external.read(path)
