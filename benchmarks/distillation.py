"""What each distillation term adds to training alone: ResNets on Fashion-MNIST, taught by a ResNet-8 twice as wide.

The full training set, without random changes; bfloat16 autocast on one thread; the same seeds for every term, so that
differences are paired. Settings are those of the papers. The test set is read once a training, at its end.

    make bench NAME=distillation                                    every training that is not done yet, then the table
    make bench NAME=distillation ARGS='--student ResNet-8 --seeds 0 1 --only KD DKD'   some of them; several such
                                commands may run beside one another, and one that was killed goes on
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import fashion
import scipy.stats
import torch
from table import write
from torch import Tensor, nn

import lilliput as lp
from lilliput.measure import mean

OUT = Path("out") / "bench" / "distillation"
STUDENTS = {"ResNet-8": 1, "ResNet-20": 3}  # blocks a stage
EPOCHS = {"ResNet-8": 4, "ResNet-20": 3}
TEACHER_EPOCHS, SEEDS = 8, 5
STAGES = ("stages.0", "stages.1", "stages.2")
PLAIN = lp.Finetune(
    epochs=EPOCHS["ResNet-8"],
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="cosine",
    warmup=0.1,
    precision="bf16",
)


def taught(*terms: Any, labels: float = 1.0, saved: bool = False) -> lp.Finetune:
    return replace(PLAIN, distill=terms, task_loss=labels, save_teacher=saved)


METHODS = {
    "alone": PLAIN,
    "KD": taught(lp.distill.LogitKD(temperature=4.0, weight=0.9), labels=0.1, saved=True),
    "DKD": taught(lp.distill.DKD(alpha=1.0, beta=8.0, temperature=4.0), saved=True),
    "DIST": taught(lp.distill.DIST(beta=2.0, gamma=2.0, temperature=4.0), saved=True),
    "self": taught(lp.distill.LogitKD(temperature=4.0, weight=0.9), labels=0.1, saved=True),
    "no labels": taught(lp.distill.LogitKD(temperature=4.0), labels=0.0, saved=True),
    "hints": taught(lp.distill.FitNet(STAGES)),
    # the paper's 1,000 / 2 over the positions of a map, over which the term is a sum
    "attention": taught(
        *(
            lp.distill.AttentionTransfer(stage, weight=500 / side**2)
            for stage, side in zip(STAGES, (28, 14, 7), strict=True)
        )
    ),
    "distances, angles": taught(
        lp.distill.RelationalKD("stages.2", by="distances", weight=25.0),
        lp.distill.RelationalKD("stages.2", by="angles", weight=50.0),
    ),
    "similarities": taught(lp.distill.RelationalKD("stages.2", by="similarities", weight=3000.0)),
}


def network(blocks: int = 1, width: int = 16) -> nn.Module:
    return fashion.ResNet(blocks, width).to(memory_format=torch.channels_last)


def trained(
    net: nn.Module, step: lp.Finetune, data: tuple[Tensor, Tensor], teacher: nn.Module | None = None
) -> nn.Module:
    """`net` after training, which goes on where it was killed."""
    task = lp.Task(net, train=fashion.batches(*data), loss=fashion.loss, teacher=teacher)
    return lp.train(task, step, folder=OUT).model.eval()


def teacher_of(name: str, data: tuple[Tensor, Tensor]) -> nn.Module:
    """A network twice as wide, four times the cost of a ResNet-8; of self-distillation: one like the student."""
    torch.manual_seed(1000)
    path = OUT / ("itself.lil" if name == "self" else "teacher.lil")
    net = network() if name == "self" else network(width=32)
    if path.exists():
        return lp.load(path, into=net).eval()
    model = trained(net, replace(PLAIN, seed=1000, epochs=PLAIN.epochs if name == "self" else TEACHER_EPOCHS), data)
    lp.save(path, model)
    return model


def study(student: str, name: str, seed: int, data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    """One training, told in a file."""
    told = OUT / f"{student} {name}-{seed}.json"
    if told.exists():
        return
    step = replace(METHODS[name], seed=seed, epochs=EPOCHS[student])
    teacher = teacher_of(name, data) if step.distill else None
    torch.manual_seed(seed)
    net = network(STUDENTS[student])
    accuracy = float(fashion.right(trained(net, step, data, teacher), *test).mean())
    told.write_text(json.dumps({"accuracy": accuracy}))
    print(f"{student}, {name}, seed {seed}: {accuracy:.4f}", flush=True)


def found(student: str, name: str) -> dict[int, dict[str, float]]:
    """Finished trainings by seed."""
    files = [OUT / f"{student} {name}-{seed}.json" for seed in range(SEEDS)]
    return {seed: json.loads(path.read_text()) for seed, path in enumerate(files) if path.exists()}


def row_of(student: str, name: str, step: lp.Finetune) -> dict[str, Any]:
    done, alone = found(student, name), found(student, "alone")
    accuracies = [100 * run["accuracy"] for run in done.values()]
    row = {
        "student": student,
        "method": name,
        "distill": " ".join(map(str, step.distill)),
        "labels": step.task_loss,
        "epochs": EPOCHS[student],
        "seeds": len(done),
        "accuracy_percent": statistics.mean(accuracies),
        "accuracies": " ".join(f"{accuracy:.2f}" for accuracy in accuracies),
    }
    both = sorted(set(done) & set(alone))
    if name != "alone" and len(both) > 1:
        gain = [100 * (done[seed]["accuracy"] - alone[seed]["accuracy"]) for seed in both]
        low, high = scipy.stats.ttest_1samp(gain, 0).confidence_interval(0.95)  # of Student's t: seeds are few
        row |= {"gain": statistics.mean(gain), "gain_low": float(low), "gain_high": float(high)}
    return row


def table(data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    rows = [
        row_of(student, name, step) for student in STUDENTS for name, step in METHODS.items() if found(student, name)
    ]
    for name in ("KD", "self"):
        right = mean(fashion.right(teacher_of(name, data), *test).numpy())
        who = "teacher of the same width" if name == "self" else "teacher"
        rows.append({"student": "ResNet-8", "method": who, "accuracy_percent": 100 * right.value})
    write("distillation", rows, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", choices=list(STUDENTS), default="ResNet-8")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data, test = fashion.read("train"), fashion.read("t10k")
    for seed in asked.seeds:
        for name in asked.only:
            study(asked.student, name, seed, data, test)
    table(data, test)


if __name__ == "__main__":
    main()
