"""What the training loop costs beside a bare loop, what saved teacher outputs gain, and what a second process gains."""

from __future__ import annotations

import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from table import write
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lilliput as lp

ROUNDS = 5
TOGETHER = "--one-of-several"  # started by torchrun


class Net(nn.Module):
    """A small convolutional network; its cost grows with the square of `width`."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        sizes = (1, width, 2 * width, 4 * width)
        blocks = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), norm(b), nn.ReLU()) for a, b in pairwise(sizes)]
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x).mean((2, 3)))  # type: ignore[no-any-return]


def loss(model: Any, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def batches() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4096, 1, 28, 28, generator=generator), torch.randint(10, (4096,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)


def main() -> None:
    torch.set_num_threads(1)  # steadier than two, on machines with other work
    if sys.argv[1:2] == [TOGETHER]:
        return one_of_several(Path(sys.argv[2]))
    rows = [overhead(int(width)) for width in sys.argv[1:] or (24, 64)]
    rows += [saved(), processes()]
    write("training", rows, 1)


class Noted:
    """Batches, and when each was asked for: the time between two is that of a step, reading included."""

    def __init__(self) -> None:
        self.loader, self.epochs = batches(), list[list[float]]()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        asked = [time.perf_counter()]
        self.epochs.append(asked)
        for batch in self.loader:
            yield batch
            asked.append(time.perf_counter())

    def step_s(self, epochs: int) -> float:
        """The median step of the last `epochs`: what else the machine does disturbs it least."""
        return statistics.median(b - a for asked in self.epochs[-epochs:] for a, b in pairwise(asked))


def overhead(width: int) -> dict[str, Any]:
    """Seconds of a step in the loop and in a bare loop; a bare loop beside itself tells what that can resolve."""
    torch.manual_seed(0)
    epochs = 2
    net, step = Net(width), lp.Finetune(epochs=epochs, optimizer="SGD", lr=0.01, momentum=0.9)

    def bare() -> float:
        model, data = copy.deepcopy(net).train(), Noted()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        for _ in range(epochs):
            for batch in data:
                value = loss(model, batch)
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
        return data.step_s(epochs)

    def ours() -> float:
        data = Noted()
        lp.train(lp.Task(net, train=data, loss=loss), step)
        return data.step_s(epochs)

    subjects = {"bare": bare, "again": bare, "ours": ours}
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for i in range(2 * ROUNDS + 1):
        for name in list(subjects) if i % 2 else list(subjects)[::-1]:
            seconds = subjects[name]()
            if i:
                taken[name].append(seconds)
    over = {name: [a / b for a, b in zip(taken[name], taken["bare"], strict=True)] for name in ("ours", "again")}
    control = {f"bare_{key}": value for key, value in told_of(over["again"]).items()}
    return {"figure": f"a step over a bare loop's, width {width}", **told_of(over["ours"]), **control, **medians(taken)}


def saved() -> dict[str, Any]:
    """Seconds with a live teacher of about four times the student's cost, and with its saved outputs."""
    torch.manual_seed(0)
    student, teacher = Net(24), Net(50)
    term = (lp.distill.LogitKD(temperature=4.0),)

    def train(folder: Path, save: bool) -> None:
        lr = 0.01 + 1e-6 * (time.time() % 10)  # another training each time, or the folder would answer
        step = lp.Finetune(epochs=3, optimizer="SGD", lr=lr, distill=term, save_teacher=save)
        lp.train(lp.Task(student, train=batches(), loss=loss, teacher=teacher), step, folder=folder)

    with tempfile.TemporaryDirectory() as place:
        train(Path(place), True)  # asks the teacher once
        cost = forward_s(teacher) / forward_s(student)
        taken = in_turns({"live": lambda: train(Path(place), False), "saved": lambda: train(Path(place), True)})
    ratios = [a / b for a, b in zip(taken["live"], taken["saved"], strict=True)]
    return {"figure": "live teacher over saved outputs", "teacher_cost": cost, **told_of(ratios), **medians(taken)}


def processes() -> dict[str, Any]:
    """Seconds of an epoch in one process and in two of one thread each, which share every batch."""
    taken: dict[str, list[float]] = {"one": [], "two": []}
    weights = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(ROUNDS + 1):
            for name in list(taken) if i % 2 else list(taken)[::-1]:
                out = Path(folder) / name
                count = 1 + (name == "two")
                command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                subprocess.run([*command, __file__, TOGETHER, out], check=True, env=environment, capture_output=True)
                told = torch.load(out, weights_only=True)
                weights[name] = told["weights"]
                if i:
                    taken[name].append(told["seconds"])
    ratios = [a / b for a, b in zip(taken["one"], taken["two"], strict=True)]
    apart = float((weights["one"] - weights["two"]).abs().max() / weights["one"].abs().max())
    return {"figure": "one process over two", "weights_apart": apart, **told_of(ratios), **medians(taken)}


def one_of_several(out: Path) -> None:
    """Train as one of the processes that torchrun starts; a normalisation that sees no batch keeps results equal."""
    torch.manual_seed(0)
    net, step = Net(48, lambda width: nn.GroupNorm(4, width)), lp.Finetune(epochs=2, optimizer="SGD", lr=0.01)
    ends: list[float] = []

    def note(stage: str, done: int, total: int) -> None:
        if stage == "training":
            ends.append(time.perf_counter())

    model = lp.train(lp.Task(net, train=batches(), loss=loss), step, progress=note).model
    if os.environ["RANK"] == "0":
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        seconds = (ends[-1] - ends[0]) / (len(ends) - 1) * len(ends) / 2
        torch.save({"weights": weights, "seconds": seconds}, out)


def forward_s(net: nn.Module) -> float:
    x = torch.randn(128, 1, 28, 28)
    with torch.no_grad():
        taken = []
        for _ in range(15):
            began = time.perf_counter()
            net.eval()(x)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def in_turns(subjects: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each, a round at a time, the first round thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for i in range(ROUNDS + 1):
        for name in list(subjects) if i % 2 else list(subjects)[::-1]:
            began = time.perf_counter()
            subjects[name]()
            if i:
                taken[name].append(time.perf_counter() - began)
    return taken


def told_of(ratios: list[float]) -> dict[str, float]:
    return {"ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}


def medians(taken: dict[str, list[float]]) -> dict[str, float]:
    return {f"{name}_s": statistics.median(seconds) for name, seconds in taken.items()}


if __name__ == "__main__":
    main()
