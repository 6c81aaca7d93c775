"""``bits_per_weight`` that is not what a weight takes.

Reported: 4.0 bits a weight are told of a pruned layer of which the file holds 0.56 a weight. Right: what is told is
what is on disk, in the ``.lil`` file; what the format alone would take has a name of its own.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.file.container import Reader
from lilliput.report.page import page


class Tied(nn.Module):
    """A table whose rows are looked up, and multiplied by in the end; and a layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(128, 64), nn.Linear(64, 64), nn.Linear(64, 128, bias=False)
        self.head.weight = self.words.weight

    def forward(self, word: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.words(word))))  # type: ignore[no-any-return]


def test_bits_are_those_on_disk() -> None:
    torch.manual_seed(0)
    net, words = Tied().eval(), [torch.randint(128, (4, 6)) for _ in range(2)]
    steps = [lp.Prune("weights", 0.95, where="body"), lp.Quantize(weights=lp.Int(4), where="body")]
    task = lp.Task(net, example=words[0], evaluate=words)
    small = lp.compress(task, lp.Recipe(steps), target=lp.targets.OnnxRuntime(threads=1, seconds=5))
    rows = {row["path"]: row for row in small.data["layers"]}
    assert set(rows) == {"words.weight", "body.weight"} and rows["words.weight"]["ties"] == ["head.weight"]

    held: dict[str, int] = {}
    for name, entry in Reader(small.folder / "net.lil").entries.items():
        owner = next((path for path in (*rows, "head.weight") if name.startswith(path.removesuffix("weight"))), name)
        if "bias" not in name:
            held[owner] = held.get(owner, 0) + entry.stored_bytes
    for path, row in rows.items():
        assert row["bytes"] == held[path] and row["bits_per_weight"] == pytest.approx(
            8 * held[path] / 64 / row["shape"][0]
        )
    assert rows["body.weight"]["nominal_bits"] == pytest.approx(4 + 32 / 64)
    assert 0.2 < rows["body.weight"]["bits_per_weight"] < 2.0
    assert rows["words.weight"]["nominal_bits"] == 32 and 20 < rows["words.weight"]["bits_per_weight"] < 32.5
    assert held.get("head.weight", 0) == 0  # what is tied is held, and counted, once
    shown = page(small.data)
    assert "4.50 nominal" in shown and f"{rows['body.weight']['bits_per_weight']:.2f}<small>" in shown
