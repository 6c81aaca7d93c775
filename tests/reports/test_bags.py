"""Bags of embeddings leave as rows that are looked up and reduced, with no loop in the file.

Reported of PyTorch and AIMET: what exports to loops is refused by tools, or run slowly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=0)


class Bags(nn.Module):
    def __init__(self, weighted: bool = False, **given: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag, self.last, self.weighted = nn.EmbeddingBag(200, 64, **given), nn.Linear(64, 4), weighted

    def forward(self, ids: Tensor) -> Tensor:
        weights = ids.float() / 200 if self.weighted else None
        out: Tensor = self.last(self.bag(ids, per_sample_weights=weights))
        return out


def _ids(bags: int, length: int) -> Tensor:
    ids = torch.randint(4, 200, (bags, length), generator=torch.Generator().manual_seed(length))
    ids[0], ids[1, : length // 2] = 3, 3  # a bag of padding alone, and one with some
    return ids


@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "weighted"])
def test_bags_are_exported_without_a_loop(mode: str, padding_idx: int | None, tmp_path: Path) -> None:
    given = {"mode": "sum" if mode == "weighted" else mode, "padding_idx": padding_idx}
    net = Bags(mode == "weighted", **given).eval()
    axes = {0: {0: "batch", 1: "numbers"}}
    lp.export(tmp_path / "net.onnx", net, _ids(4, 8), dynamic=axes, target=QUICK)
    operators = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert "Gather" in operators and not operators & {"Loop", "If", "Scan"}
    lp.save(tmp_path / "net.lil", net, example=_ids(4, 8), dynamic=axes, target=QUICK)
    opened = lp.open(tmp_path / "net.lil")
    for shape in ((4, 8), (7, 3)):
        with torch.no_grad():
            close(opened(_ids(*shape)), net(_ids(*shape)), rtol=1e-4, atol=1e-5)


def test_bags_are_compressed_and_shrunk() -> None:
    net, batches = Bags().eval(), [_ids(8, 10), _ids(8, 11)]
    task = lp.Task(net, calibrate=batches, dynamic={0: {0: "batch", 1: "numbers"}})
    result = lp.compress(task, target=QUICK, measure=False)
    assert {row["path"]: row["encoding"] for row in result.data["layers"]}["bag.weight"] == "int8 per channel"
    assert result.data["ratio"]["smaller"] > 3
    small: Any = lp.apply(task, lp.Recipe([lp.Prune("channels", 0.5)]))
    assert (small.bag.embedding_dim, small.last.in_features) == (32, 32)


class Runs(nn.Module):
    def __init__(self, **given: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = nn.EmbeddingBag(200, 16, **given)

    def forward(self, ids: Tensor, offsets: Tensor) -> Any:
        return self.bag(ids, offsets)


@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "last"])
def test_bags_of_several_lengths(mode: str, padding_idx: int | None, tmp_path: Path) -> None:
    """One run of numbers and where bags begin, of which two are empty; as many numbers and bags as there are."""
    last = mode == "last"
    net = Runs(mode="mean" if last else mode, padding_idx=padding_idx, include_last_offset=last).eval()

    def batch(numbers: int, *starts: int) -> tuple[Tensor, Tensor]:
        return _ids(2, numbers // 2).flatten(), torch.tensor([*starts, *([numbers] if last else [])])

    lp.save(
        tmp_path / "net.lil",
        net,
        example=batch(20, 0, 4, 4, 9),
        dynamic={0: {0: "numbers"}, 1: {0: "bags"}},
        target=QUICK,
    )
    opened = lp.open(tmp_path / "net.lil")
    for given in (batch(20, 0, 4, 4, 9), batch(30, 0, 1, 2, 17, 30), batch(6, 0)):
        with torch.no_grad():
            close(opened(*given), net(*given), rtol=1e-4, atol=1e-5)


def test_bags_of_several_lengths_are_compressed() -> None:
    net, batches = Runs().eval(), [(_ids(2, 10).flatten(), torch.tensor([0, 4, 9]))] * 2
    task = lp.Task(net, calibrate=batches, dynamic={0: {0: "numbers"}, 1: {0: "bags"}})
    result = lp.compress(task, target=QUICK, measure=False)
    assert [row["encoding"] for row in result.data["layers"]] == ["int8 per channel"]
    with torch.no_grad():
        close(result.model(*batches[0]), net(*batches[0]), share=0.05)
