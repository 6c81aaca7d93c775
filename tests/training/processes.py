"""Run by test_processes.py under torchrun: train in several processes, and save what came of it.

One kind of training is ended on the way, begun again in its folder, and asked for once more when it is done.
"""

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import lilliput as lp
import lilliput.training.loop
from lilliput.techniques.distill import FitNet, LogitKD
from lilliput.techniques.finetune import Finetune

KINDS = ("plain", "compressed", "norms", "spoilt", "failing")
JOBS = [("copies", kind) for kind in (*KINDS, "kept")] + [("shards", kind) for kind in KINDS]


class Net(nn.Module):
    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), norm(32), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def task(kind: str) -> lp.Task:
    torch.manual_seed(0)
    net = Net(nn.BatchNorm1d) if kind == "norms" else Net()
    x = torch.randn(64, 20)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    if kind == "compressed":
        for layer in (0, 3):
            encode(net, f"layers.{layer}.weight")
    batches = list(zip(x.split(16), y.split(16), strict=True))
    teacher = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))
    return lp.Task(net, train=batches, loss=loss, validate=batches[:2], teacher=teacher)


def encode(net: nn.Module, path: str) -> None:
    from lilliput.model.edits.edits import EncodeTensor

    x = net.get_parameter(path)
    encoding = lp.formats.Sparse(lp.Int(6))
    parts = encoding.represent((x * (x.abs() > 0.1)).detach()).tensors()
    EncodeTensor((path,), encoding, tuple(x.shape), "float32").apply(net, parts)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Spoilt:
    """A loss that is no number, or fails, for the second process alone: at batch 2 of epoch 2."""

    def __init__(self, fails: bool) -> None:
        self.fails, self.calls = fails, 0

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        found = loss(model, batch)
        self.calls += torch.is_grad_enabled()  # not in validation
        if self.calls == 6 and torch.distributed.get_rank() == 1:
            if self.fails:
                raise ValueError("no such label")
            return found * torch.nan
        return found


def stopped(kind: str, step: Finetune, out: Path) -> None:
    """Note what a training is stopped by, and where its weights are."""
    rank = torch.distributed.get_rank()
    given = replace(task("plain"), loss=Spoilt(kind == "failing"))
    try:
        lp.train(given, step, folder=out / f"kept{rank}")
    except lp.errors.LilliputError as error:
        (out / f"{rank}.txt").write_text(str(error))


def step(shard: bool = False) -> Finetune:
    return Finetune(
        epochs=3,
        optimizer="SGD",
        lr=0.1,
        momentum=0.9,
        schedule="cosine",
        clip=1.0,
        accumulate=2,
        ema=0.8,
        distill=(LogitKD(temperature=2.0), FitNet("layers.1", teacher_layers="1")),
        shard=shard,
    )


class Ended(BaseException):
    """As if the processes were killed."""


def kept(task: lp.Task, step: Finetune, folder: Path) -> lp.verbs.Trained:
    """What is trained in a folder by processes that are ended at batch 8 of 12, and begun again."""
    lilliput.training.loop.SAVE_S = 0.0
    trained: list[int] = []

    def note(stage: str, done: int, total: int) -> None:
        if stage == "training":
            trained.append(done)
            if len(trained) == 8:
                raise Ended

    with suppress(Ended):
        lp.train(task, step, folder=folder, progress=note)
    first = lp.train(task, step, folder=folder, progress=note)
    again = lp.train(task, step, folder=folder, progress=note)
    assert trained == [*range(1, 9), *range(7, 13)], trained
    assert all(map(torch.equal, first.model.parameters(), again.model.parameters()))
    return again


def job(sharing: str, kind: str, out: Path) -> None:
    """One training, in folders below `out`."""
    out = out / f"{sharing}-{kind}"
    out.mkdir(exist_ok=True)
    how = step(shard=sharing == "shards")
    if kind in ("spoilt", "failing"):
        return stopped(kind, how, out)
    held: set[str] = set()

    def look(stage: str, done: int, total: int) -> None:
        nets = [x for x in gc.get_objects() if issubclass(type(x), Net)]
        held.update(type(p).__name__ for net in nets for p in net.parameters())

    trained = kept(task("plain"), how, out / "kept") if kind == "kept" else lp.train(task(kind), how, progress=look)
    assert torch.distributed.get_world_size() == 2 and ("DTensor" in held) == (sharing == "shards"), held
    lp.save(out / f"{torch.distributed.get_rank()}.lil", trained.model)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    for sharing, kind in JOBS:  # one after another, for to begin takes longer than to train
        job(sharing, kind, out)
        gc.collect()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
