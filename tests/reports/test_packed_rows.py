"""Tables of rows on disk, and in memory.

Found in use (issue 15): `Int(4)` embeddings lay in the `.onnx` as INT8, where docs and report say two codes a byte;
with groups the whole table was decoded to float when it was loaded. Right: codes of four bits and fewer are stored two to a
byte, whatever stands for them, rows are picked before they are decoded, and the numbers are the module's.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import Encoding
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.file.container import Reader
from lilliput.progress import silent

ROWS, WIDTH = 320, 64
FOUR = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
ENCODINGS: list[Encoding] = [
    *(lp.Int(4), lp.Int(2), lp.Int(4, per="tensor"), lp.Int(3, group=16), lp.Int(4, group=32, symmetric=False)),
    *(lp.Int(4, group=32, scale=lp.Float16()), lp.Levels(16), lp.NF4(group=32), lp.Signs(3), lp.Int(8, group=32)),
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
    driver, _ = begin(lp.Task(Words().eval(), example=x), lp.OnnxRuntime(threads=1), Store(None), silent)
    follow(lp.Recipe([lp.Quantize(weights=encoding)]), driver)
    lp.save(tmp_path / "net.lil", driver.model, example=x)
    with torch.no_grad():
        expected = driver.model(x)
    torch.testing.assert_close(lp.open(tmp_path / "net.lil", threads=1)(x), expected, atol=1e-4, rtol=1e-5)
    assert not [name for name in Reader(tmp_path / "net.lil").entries if name.startswith(":graph:")]

    graph = onnx.load(lp.export(tmp_path / "net.onnx", driver.model, x)).graph
    tables = {t.name: t for t in graph.initializer if list(t.dims) == [ROWS, WIDTH]}
    assert len(tables) == 2, "codes once for each table"
    assert encoding.code_bits is not None
    assert (encoding.code_bits <= 4) == all(t.data_type in FOUR for t in tables.values())
    each = 0.5 if encoding.code_bits <= 4 else 1
    assert all(len(t.raw_data) == each * ROWS * WIDTH for t in tables.values())
    unpacked = {node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in tables}
    picked = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in {*tables, *unpacked}]
    assert len(picked) == 2, "rows are picked from codes"
