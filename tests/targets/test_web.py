"""The browser as a target: what it prefers, what runs it in Node.js, and where each is missing, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import LACKS, RUNTIME
from compared import close
from onnx import TensorProto, helper, numpy_helper
from subjects import Convolutions, Tokens, images
from torch import Tensor, nn

import lilliput as lp
from lilliput import external
from lilliput.encodings import Int
from lilliput.errors import ExportError, InputError
from lilliput.model.views.capture import capture
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.recipe import Recipe
from lilliput.targets import Web
from lilliput.web.node import Node
from lilliput.web.package import NAME, package

runs = pytest.mark.skipif(RUNTIME is None, reason=LACKS)


def stand_in(folder: Path, name: str = NAME) -> Path:
    """A folder that holds what a page takes of the package, and runs nothing."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": "1.30.0"}))
    (folder / "dist" / "ort.wasm.bundle.min.mjs").write_text("export const script = 1;")
    (folder / "dist" / "ort-wasm-simd-threaded.wasm").write_bytes(bytes(range(256)) * 8)
    return folder


def recipe(net: nn.Module, example: Any, calibrated: bool) -> Recipe:
    return Web().prefers.recipe(capture(net.eval(), Inputs.of(example), {}), calibrated)


class Dense(nn.Module):
    """Convolutions over all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.classes = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def test_integers_where_webassembly_multiplies_them_faster() -> None:
    def flowing(found: Recipe) -> Any:
        assert {step.weights for step in found.steps} == {Int(8)}  # on any processor
        return [step.activations for step in found.steps]

    assert flowing(recipe(Dense(), torch.zeros(1, 3, 16, 16), True)) == [Int(8)]
    assert flowing(recipe(Tokens(), torch.zeros(2, 5, dtype=torch.int64), True)) == [Int(8, dynamic=True)]
    assert flowing(recipe(Convolutions(), torch.zeros(1, 3, 16, 16), True)) == [None]  # it has a depthwise layer


def test_depthwise_layers_are_told_to_be_slower_on_integers() -> None:
    view, prefers = capture(Convolutions().eval(), Inputs.of(torch.zeros(1, 3, 16, 16)), {}), Web().prefers
    told = {call.weights[0]: prefers.remark(call, Int(8), Int(8)) for call in view.calls if call.weights}
    assert told.pop("depthwise.weight") == "int8 kernel, slower than float"
    assert set(told.values()) == {"int8 kernel"}


def test_a_page_has_one_thread() -> None:
    assert Web().threads_used == Web(threads=1).threads_used == 1
    with pytest.raises(InputError, match="threads: is 2; leave it out"):
        Web(threads=2).check()


def test_the_package_is_found_where_node_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, below = stand_in(tmp_path / "node_modules" / NAME), tmp_path / "a" / "folder"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert package().folder == held.resolve() and package().version == "1.30.0"
    for given in (held, held / "dist", tmp_path, str(held)):
        assert package(given) == package()
    assert package().binary.stat().st_size == 2048


def test_where_the_package_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there is no such folder; npm install onnxruntime-web"):
        package(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no onnxruntime-web"):
        package(stand_in(tmp_path / "other", "left-pad"))
    (stand_in(tmp_path / "old") / "dist" / "ort.wasm.bundle.min.mjs").unlink()
    with pytest.raises(InputError, match=r"has no ort.wasm.bundle.min.mjs \(it is version 1.30.0"):
        package(tmp_path / "old")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "package.json").write_text("[")
    with pytest.raises(InputError, match=r"package.json: cannot be read"):
        package(tmp_path / "odd")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"onnxruntime-web is not here .*nothing is fetched unasked"):
        Web().check()


def test_without_node_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"Node\.js is not installed"):
        lp.compress(Dense(), calibrate=[torch.zeros(1, 3, 16, 16)], target=Web(runtime=stand_in(tmp_path / "held")))


@runs
def test_a_network_is_compressed_for_a_browser(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = lp.compress(Dense(), calibrate=images(), target=Web(seconds=0), folder=tmp_path / "out")
    assert small.data["target"] == "web" and small.data["agreement"]["outputs"][0]["sqnr_db"] > 20
    assert {row["runs_as"] for row in small.data["layers"]} >= {"int8 kernel"}
    assert not lp.targets.check(small.built, "ort-web")["ort-web"]
    x = images()[0]
    close(lp.open(tmp_path / "out" / "net.lil")(x), small.model(x), share=0.03)  # by ONNX Runtime, without Node.js


@runs
def test_networks_are_timed_in_turns_on_one_thread() -> None:
    nets = {"small": nn.Linear(8, 8).eval(), "large": nn.Linear(8, 8).eval()}
    taken = Web(seconds=0.2).timed(nets, Inputs.of(torch.zeros(1, 8)), {})
    assert taken.rounds >= 1 and taken.threads == 1 and set(taken.rounds_ms) == set(nets) == set(taken.processor_ms)
    assert all(count > 0 for count in taken.calls.values())
    assert all(0 < ms < 1000 for rounds in taken.rounds_ms.values() for ms in rounds)


@runs
def test_node_answers_as_the_module_does(tmp_path: Path) -> None:
    target, x = Web(), images()[0]
    torch.manual_seed(0)
    net, example = Convolutions().eval(), Inputs.of(x)
    target.writes.build(tmp_path / "net.onnx", net, example, {})
    with torch.no_grad():
        signature = Signature.of(example, right := net(x))
    for built in (tmp_path / "net.onnx", (tmp_path / "net.onnx").read_bytes()):
        run = target.runs.open(built, signature)
        close(run(x), right)
        close(run(x.flip(0)), right.flip(0))  # nothing is kept from one call to the next
    with pytest.raises(InputError, match=r"onnxruntime-web fails on this input.*give inputs as the example's"):
        run(x[:, :2])
    close(run(x), right)  # which does not end it


@runs
def test_tensors_beside_the_file_are_given_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "MOST", 0)
    target, x = Web(), torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net, example = nn.Linear(64, 64).eval(), Inputs.of(x)
    target.writes.build(tmp_path / "net.onnx", net, example, {})
    assert external.data_of(tmp_path / "net.onnx").exists()
    with torch.no_grad():
        signature = Signature.of(example, right := net(x))
    close(target.runs.open(tmp_path / "net.onnx", signature)(x), right)


class Types(nn.Module):
    """An answer of each type that tells what was given in it."""

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(x[..., 1:] for x in given)


@runs
def test_numbers_of_every_type_go_both_ways(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)
    given = [(torch.arange(6).reshape(2, 3) - (2 if kind.is_signed else 0)).to(kind) for kind in kinds]
    target, example = Web(), Inputs.of(tuple(given))
    target.writes.build(tmp_path / "net.onnx", Types().eval(), example, {})
    node = Node(package(), tmp_path / "net.onnx")
    for found, x in zip(node([x.numpy() for x in given]), given, strict=True):
        assert found.dtype == x.numpy().dtype
        np.testing.assert_array_equal(found, x.numpy()[:, 1:])


@runs
def test_pairs_of_products_do_not_overflow() -> None:
    """On x86 without VNNI, native kernels cut 2 · 255 · 127 to 16 bits; a page computes alike on all processors."""
    held = {"w": np.full((64, 16), 127, np.int8)}
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, (3, 64))
    y = helper.make_tensor_value_info("y", TensorProto.INT32, (3, 16))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(w, name) for name, w in held.items()])
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
    node, given = Node(package(), built), np.array([255, 254, 1], np.uint8)
    right = given.astype(np.int32)[:, None] * 127 * 64 * np.ones((1, 16), np.int32)
    np.testing.assert_array_equal(node([np.repeat(given[:, None], 64, 1)])[0], right)


@runs
def test_what_the_runtime_does_not_load_is_told(tmp_path: Path) -> None:
    signature = Signature.of(Inputs.of(torch.zeros(1)), torch.zeros(1))
    with pytest.raises(ExportError, match="onnxruntime-web does not load the export"):
        Web().runs.open(b"not a network", signature)


@runs
def test_its_account_names_the_layers(tmp_path: Path) -> None:
    target, x = Web(), images()[0]
    net, example = Dense().eval(), Inputs.of(x)
    target.writes.build(tmp_path / "net.onnx", net, example, {})
    signature = Signature.of(example, net(x))
    found = target.runs.operators(tmp_path / "net.onnx", signature, example, 0.1)
    assert [one.layer for one in found if one.multiplies] == ["first.weight", "second.weight", "classes.weight"]
    assert all(one.ms > 0 for one in found if one.multiplies) and not any(one.gives_integers for one in found)
