"""`lilliput inspect`, `verify` and `export`: everything in a file is told, and its bytes add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import lilliput as lp
from lilliput.cli.app import app
from lilliput.file.checkpoint import pack
from lilliput.file.container import Reader
from lilliput.targets.kernels import exact_here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16 * 36, 5)).eval()
    task = lp.Task(net, calibrate=[torch.randn(4, 3, 8, 8)], assets={"words.txt": b"one two"})
    out = tmp_path_factory.mktemp("out")
    lp.compress(task, target=lp.targets.OnnxRuntime(threads=1, seconds=1), folder=out)
    return out


def run(*args: Any) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_everything_inside_is_told_and_adds_up(folder: Path) -> None:
    done = run("inspect", folder / "net.lil", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert sum(found["sizes"].values()) == found["bytes"] == (folder / "net.lil").stat().st_size
    rows = {row["path"]: row for row in found["weights"]}
    assert rows["3.weight"]["encoding"].startswith(f"Int(bits={exact_here().bits}")
    assert 4 < rows["3.weight"]["bits_per_weight"] < 9
    assert rows["3.weight"]["shape"] == [5, 576] and rows["0.bias"]["encoding"] == "float32"
    assert found["assets"] == {"words.txt": 7} and found["graph"]["target"] == "onnxruntime"
    assert found["provenance"]["recipe"][0]["kind"] == "Quantize"
    kinds = [entry["edit"]["kind"] for entry in found["edits"]]
    assert kinds[:2] == ["SetTensor", "Replace"] and "EncodeValue" in kinds


def test_people_read_it_too(folder: Path) -> None:
    done = run("inspect", folder / "net.lil")
    assert done.exit_code == 0
    for told in ("3.weight", "5×576", "1 gives way to Identity", "0.bias was added", "words.txt, 7 bytes", "in all"):
        assert told in done.stdout


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


def test_a_network_that_shrank_is_told_and_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(Block() for _ in range(4)), nn.Linear(32, 5)).eval()
    steps = [lp.Prune("layers", 0.25), lp.Prune("blocks", 0.34), lp.Prune("channels", 0.5)]
    target = lp.targets.OnnxRuntime(threads=1, seconds=1)
    lp.compress(lp.Task(net, example=torch.randn(2, 32)), lp.Recipe(steps), target=target, folder=tmp_path)
    told = run("inspect", tmp_path / "net.lil")
    assert told.exit_code == 0, told.output
    assert "the model keeps modules" in told.stdout and "body is left out" in told.stdout
    assert run("verify", tmp_path / "net.lil").exit_code == 0


def test_a_whole_file_is_whole(folder: Path) -> None:
    done = run("verify", folder / "net.lil")
    assert done.exit_code == 0, done.output
    for told in ("index: ", "tensors: ", "graph: ", "second decoder: reads the same in", "net.lil is whole"):
        assert told in done.stdout
    checked = json.loads(run("verify", folder / "net.lil", "--json", "--thorough").stdout)
    assert checked["whole"] and set(checked["checked"]) == {"index", "header", "tensors", "graph", "second decoder"}


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_damaged_file_is_not(share: float, folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "net.lil").read_bytes())
    data[int(share * len(data))] ^= 4
    (tmp_path / "net.lil").write_bytes(data)
    done = run("verify", tmp_path / "net.lil")
    assert done.exit_code == 2 and "error: " in done.output and "get it again" in done.output


def test_a_graph_that_does_not_load_is_found(folder: Path, tmp_path: Path) -> None:
    from lilliput.file.container import Part, write

    reader = Reader(folder / "net.lil")
    arrays = {name: reader.read(name) for name in reader.names()}
    model = onnx.load_from_string(arrays[":graph"].tobytes())
    model.graph.node[0].op_type = "NoSuchOperator"
    arrays[":graph"] = torch.frombuffer(bytearray(model.SerializeToString()), dtype=torch.uint8).numpy()
    write(tmp_path / "net.lil", reader.header, [Part.of(name, x) for name, x in arrays.items()])
    done = run("verify", tmp_path / "net.lil")
    assert done.exit_code == 2 and "graph: does not load" in done.output


def test_the_graph_leaves_as_the_file_that_runs(folder: Path, tmp_path: Path) -> None:
    done = run("export", folder / "net.lil", "-o", tmp_path / "net.onnx")
    assert done.exit_code == 0
    written, built = onnx.load(tmp_path / "net.onnx"), onnx.load(folder / "net.onnx")
    assert [x.raw_data for x in written.graph.initializer] == [x.raw_data for x in built.graph.initializer]
    lp.save(tmp_path / "bare.lil", nn.Linear(2, 2))
    done = run("export", tmp_path / "bare.lil", "-o", tmp_path / "bare.onnx")
    assert done.exit_code == 2 and "has no graph" in done.output and not (tmp_path / "bare.onnx").exists()


def test_a_checkpoint_is_told_and_checked(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "in").mkdir()
    save_file({"a": torch.randn(40, 40), "b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "in" / "m.safetensors")
    (tmp_path / "in" / "config.json").write_text("{}")
    pack(tmp_path / "in", tmp_path / "m.lil")
    found = json.loads(run("inspect", tmp_path / "m.lil", "--json").stdout)
    assert found["kind"] == "checkpoint" and found["files"] == ["m.safetensors"]
    assert sum(found["sizes"].values()) == found["bytes"]
    assert [row["path"] for row in found["weights"]] == ["a", "b"]
    assert run("verify", tmp_path / "m.lil").exit_code == 0
    assert "needs" not in run("inspect", tmp_path / "m.lil").output


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_what_is_no_such_file(command: str, tmp_path: Path) -> None:
    (tmp_path / "x.lil").write_bytes(b"PK\x03\x04" + bytes(200))
    for path in (tmp_path / "x.lil", tmp_path / "none.lil", tmp_path):
        done = run(command, path)
        assert done.exit_code == 2 and "error: " in done.output


def test_torch_is_not_loaded_for_it(folder: Path) -> None:
    code = (
        "import sys; from lilliput.file.inspect import inside, verify\n"
        f"inside({str(folder / 'net.lil')!r}); verify({str(folder / 'net.lil')!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
