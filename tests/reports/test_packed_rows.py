"""Tables of rows on disk, and in memory.

Found in use (issue 15): `Int(4)` embeddings lay in the `.onnx` as INT8, where docs and report say two codes a byte;
with groups the whole table was decoded to float when it was loaded. Right: codes of four bits and fewer are stored two
to a byte, whatever stands for them, rows are picked before they are decoded, and the numbers are the module's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import Encoding
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.file.container import Reader
from lilliput.measure.loading import Loading, loading
from lilliput.progress import silent
from lilliput.report.costs import worse

ROWS, WIDTH = 320, 64
FOUR = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
UNPACKING = ("Cast", "BitwiseAnd", "BitShift", "Unsqueeze", "Concat", "Reshape")
ENCODINGS: list[Encoding] = [
    *(lp.Int(4), lp.Int(2), lp.Int(4, per="tensor"), lp.Int(3, group=16), lp.Int(4, group=32, symmetric=False)),
    *(
        lp.Int(4, group=32, scale=lp.formats.Float16()),
        lp.formats.Codebook(16),
        lp.formats.NF4(group=32),
        lp.formats.Signs(3),
        lp.Int(8, group=32),
    ),
    *(
        lp.Int(4, symmetric=False, minimum=lp.formats.Float16()),
        lp.Int(4, group=8, symmetric=False, minimum=lp.formats.BFloat16()),
    ),
]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.tied = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return (self.table(x) + self.tied(x)) @ self.tied.weight.T


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_rows_are_packed_picked_and_right(encoding: Encoding, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randint(ROWS, (3, 7))
    driver, _ = begin(lp.Task(Words().eval(), example=x), lp.targets.OnnxRuntime(threads=1), Store(None), silent)
    follow(lp.Recipe([lp.Quantize(weights=encoding)]), driver)
    lp.save(tmp_path / "net.lil", driver.model, example=x)
    with torch.no_grad():
        expected = driver.model(x)
    close(lp.open(tmp_path / "net.lil", threads=1)(x), expected, atol=1e-4, rtol=1e-5)
    assert not [name for name in Reader(tmp_path / "net.lil").entries if name.startswith(":graph:")]

    graph = onnx.load(lp.export(tmp_path / "net.onnx", driver.model, x)).graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    packed = {n.input[1] for n in graph.node if n.op_type == "MatMulNBits"}  # as bytes, for who multiplies by them
    tables = {t.name: t for t in graph.initializer if shapes[t.name] == [ROWS, WIDTH] or t.name in packed}
    assert len(tables) == 2, "codes once for each table"
    assert encoding.code_bits is not None
    assert (encoding.code_bits <= 4) == all(t.data_type in FOUR or n in packed for n, t in tables.items())
    each = 0.5 if encoding.code_bits <= 4 else 1
    assert all(len(t.raw_data) == each * ROWS * WIDTH for t in tables.values())
    codes = set(tables)
    for node in graph.node:
        codes |= set(node.output) if node.op_type in UNPACKING and codes & set(node.input) else set()
    picked = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in codes]
    assert len(picked) == 2, "rows are picked from codes"


@pytest.mark.parametrize("profile", [None, "ort-cpu"], ids=["packed", "decoded"])
def test_what_loading_costs_is_measured_and_told(profile: str | None) -> None:
    """`Int(4, group=64)` of MiniLM took three times the memory to run, untold; packed it takes less than floats."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1024, 3072), nn.ReLU(), nn.Linear(3072, 1024))
    held = 4 * sum(x.numel() for x in net.parameters())
    recipe = lp.Recipe([lp.Quantize(weights=lp.Int(4, group=16))])
    small = lp.compress(
        lp.Task(net.eval(), calibrate=[torch.randn(2, 1024)]),
        recipe,
        target=lp.targets.OnnxRuntime(threads=1, seconds=1, profile=profile),
    )
    before, after = (small.data[side]["loading"] for side in ("before", "after"))
    assert held < before["peak_bytes"] < 4 * held  # the file as it is read, and the tensors
    assert (after["peak_bytes"] > held) == (profile is not None)  # all weights decoded
    assert (after["call_peak_bytes"] > held) == (profile is not None)
    assert held < before["call_peak_bytes"] < 3 * held  # the tensors alone, but for what the runtime adds
    assert 0 < before["call_s"] < before["seconds"] + 10
    most = [max(side["peak_bytes"], side["call_peak_bytes"]) for side in (before, after)]
    ratio = most[1] / most[0]
    told = f"{ratio:.2f}× the memory to load and run" in small.data["sentence"]
    assert told == (ratio > 1.25) == (profile is not None)
    assert small.data["loading"] in small.data["sentence"]


def test_a_file_that_does_not_load_costs_nothing_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no network")
    assert loading("onnxruntime", tmp_path / "net.onnx", [np.zeros(2, np.float32)], 1) is None
    mb = 1 << 20
    was = Loading(1.0, 100 * mb, 0.1, 90 * mb)
    assert worse(None, was) == "" and worse(was, Loading(1.2, 120 * mb, 0.1, 100 * mb)) == ""
    assert "2.00× the memory" in worse(was, Loading(1.0, 200 * mb, 0.1, 90 * mb))
    assert "3.00× the memory" in worse(was, Loading(1.0, 100 * mb, 0.1, 300 * mb))
    assert "3.00× the time" in worse(Loading(1.0, None, 0.1, None), Loading(3.0, None, 0.1, None))
