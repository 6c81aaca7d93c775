"""Every kind of network: trained, pruned to about half its width, trained again, saved, loaded, exported and run.

Each kind learns something real (kinds_data.py) and is judged by what belongs to it, as trained, right after pruning,
and after the training that follows, on samples that it was not trained with. Then it is saved, loaded by a process
that has never seen it, exported, and run by ONNX Runtime; largest differences are those of any output, as a share of
the largest. The dense network is put through the same second training, too: what is missing then, pruning has cost.
One training each, one thread: intervals are over test samples (for the generator over draws of noise), not over
trainings. Optimizers and epochs were set by hand, on other samples than those that the figures are of (SGD for ResNet,
MobileNet, DenseNet and CNN; a longer second training for the graph network; reviews, since the encoder had 99 % of the
text messages right at any width); the dense network's second training has the same settings.

    make bench NAME=kinds                    every kind that is not done yet, then the table
    make bench NAME=kinds ARGS='MLP GRU'     these, again (but for the dense networks, kept in out/), then the table
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kinds_data as data
import kinds_models as models
import torch
from shrunk import departure, figures, flat, in_onnxruntime
from table import write
from torch import Tensor, nn

import lilliput as lp
from lilliput.measure import mean, paired_difference

OUT = Path("out") / "bench" / "kinds"
FASHION, SPAM, REVIEWS = "Fashion-MNIST", "text messages: spam or not", "film reviews: praise or blame"
PROSE = "documentation of Python, by characters"
ACCURACY = "accuracy, %"
HALF = (lp.Prune("channels", 0.5, multiple=16),)
HEADS = (lp.Prune("heads", 0.5), *HALF)
STEP = lp.Finetune(lr=2e-3, schedule="cosine", warmup=0.1, weight_decay=0.01)
SGD = lp.Finetune(optimizer="SGD", lr=0.1, momentum=0.9, schedule="cosine", warmup=0.1, weight_decay=5e-4)
HALVES = replace(SGD, precision="bf16")  # faster for convolutions, on processors that have it
TARGET = lp.targets.OnnxRuntime(threads=1, seconds=1)


@dataclass(frozen=True)
class Kind:
    """A network, its lesson, what is pruned, and for how many epochs it learns, before and after."""

    name: str
    make: Callable[[], nn.Module]
    lesson: Callable[[], data.Lesson]
    data: str
    metric: str
    epochs: tuple[int, int]
    higher: bool = True
    prune: tuple[lp.Prune, ...] = HALF
    step: lp.Finetune = STEP


def rivals() -> data.Lesson:
    return data.rivals(trained(kind("CNN"), data.clothes())[0])


ADVERSARIAL = replace(STEP, lr=5e-4)
KINDS = (
    Kind("MLP", models.mlp, data.clothes, FASHION, ACCURACY, (6, 3)),
    Kind("CNN", models.cnn, data.clothes, FASHION, ACCURACY, (4, 2), step=HALVES),
    Kind("ResNet", models.resnet, data.clothes, FASHION, ACCURACY, (4, 2), step=HALVES),
    Kind("MobileNet", models.mobilenet, data.clothes, FASHION, ACCURACY, (4, 2), step=SGD),
    Kind("DenseNet", models.densenet, data.clothes, FASHION, ACCURACY, (4, 2), step=HALVES),
    Kind(
        "U-Net",
        models.unet,
        data.noisy,
        f"{FASHION} under noise",
        "PSNR, dB",
        (2, 2),
        step=replace(STEP, precision="bf16"),
    ),
    Kind("LSTM", models.lstm, data.messages, SPAM, ACCURACY, (4, 4)),
    Kind("GRU", models.GRU, data.prose, PROSE, "bits a character", (4, 4), higher=False),
    Kind("BERT-style encoder", models.bert, data.reviews, REVIEWS, ACCURACY, (4, 2), prune=HEADS),
    Kind("Llama-style decoder", models.llama, data.prose, PROSE, "bits a character", (4, 4), False, HEADS),
    Kind("ViT", models.ViT, data.clothes, FASHION, ACCURACY, (6, 3), prune=HEADS),
    Kind("VAE", models.VAE, data.drawn, FASHION, "bound on -log p, nats", (4, 4), higher=False),
    Kind("GAN", models.generator, rivals, FASHION, "Fréchet distance", (10, 5), False, step=ADVERSARIAL),
    Kind("graph network", models.graph, data.likeness, "digits joined to those alike", ACCURACY, (20, 20)),
)


def kind(name: str) -> Kind:
    return next(known for known in KINDS if known.name == name)


def trained(known: Kind, lesson: data.Lesson) -> tuple[nn.Module, Path]:
    """The dense network and its file (kept in out/, made again when it is not there), and what learnt beside it."""
    path, beside = OUT / known.name / "dense.lil", OUT / known.name / "beside.lil"
    if path.exists() and lesson.beside is not None:
        lp.load(beside, into=lesson.beside)
    elif not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        dense = lesson.fit(known.make(), replace(known.step, epochs=known.epochs[0]))
        if lesson.beside is not None:
            lp.save(beside, lesson.beside.eval())
        lp.save(path, dense)
    return lp.load(path, into=known.make()).eval(), path


def row(known: Kind) -> dict[str, Any]:
    lesson = known.lesson()
    dense, before = trained(known, lesson)
    example = lesson.example or tuple(x[:1] for x in lesson.inputs)
    task = lp.Task(dense, example=example, dynamic=lesson.dynamic, name=known.name)
    pruned = lp.compress(task, lp.Recipe(list(known.prune)), target=TARGET)
    at_once = lesson.score(pruned.model)
    again, kept = replace(known.step, epochs=known.epochs[1], seed=1), copy.deepcopy(lesson.beside)
    small = lesson.fit(pruned.model, again)
    was, at_last = lesson.score(dense), lesson.score(small)
    last, change = mean(at_last.numpy()), paired_difference(was.numpy(), at_last.numpy())
    unit = 100 if known.metric == ACCURACY else 1
    return {
        "kind": known.name,
        "data": known.data,
        "metric": known.metric,
        "better": "higher" if known.higher else "lower",
        "dense": unit * float(was.mean()),
        "pruned": unit * float(at_once.mean()),
        "trained_again": unit * last.value,
        "trained_again_low": unit * last.low,
        "trained_again_high": unit * last.high,
        "change": unit * change.value,
        "change_low": unit * change.low,
        "change_high": unit * change.high,
        **alike(replace(lesson, beside=kept), dense, again, at_last, unit),
        "test_samples": len(was),
        "epochs": known.epochs[0],
        "epochs_again": known.epochs[1],
        "pruning": " ".join(f"{step.unit} {step.amount:g}" for step in known.prune),
        **figures(dense, example, "before"),
        **figures(small, example, "after"),
        "lil_bytes_before": before.stat().st_size,
        **files(known, lesson, small, example),
        "tensors_narrower": sum(x.shape != y.shape for x, y in pairs(dense, small)),
        "tensors_as_they_were": sum(x.shape == y.shape for x, y in pairs(dense, small)),
        "skipped": pruned.data["skipped"],
    }


def alike(lesson: data.Lesson, dense: nn.Module, again: lp.Finetune, at_last: Tensor, unit: int) -> dict[str, float]:
    """What the dense network makes of the second training, and how far the pruned one is from that."""
    reached = lesson.score(lesson.fit(dense, again))
    change = paired_difference(reached.numpy(), at_last.numpy())
    return {
        "dense_trained_again": unit * float(reached.mean()),
        "change_from_that": unit * change.value,
        "change_from_that_low": unit * change.low,
        "change_from_that_high": unit * change.high,
    }


def pairs(dense: nn.Module, small: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return list(zip(dense.parameters(), small.parameters(), strict=True))


def files(known: Kind, lesson: data.Lesson, small: nn.Module, example: data.Tensors) -> dict[str, Any]:
    """What comes back from a file by another process, and from ONNX Runtime."""
    path = OUT / known.name / "small.lil"
    lp.save(path, small)
    with torch.no_grad():
        wanted = flat(small(*lesson.inputs))
    afresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, afresh) as pool:
        loaded = pool.submit(told, known.name, str(path), [x.numpy() for x in lesson.inputs]).result()
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder, "net.onnx")
        lp.export(onnx, small, example, dynamic=lesson.dynamic, target=TARGET)
        ran = in_onnxruntime(onnx, lesson.inputs)
    return {
        "lil_bytes_after": path.stat().st_size,
        "loaded_differs": departure([torch.from_numpy(x) for x in loaded], wanted),
        "onnxruntime_differs": departure(ran, wanted),
    }


def told(name: str, path: str, inputs: list[Any]) -> list[Any]:
    """What the network in a file answers, in a process that has only the constructor."""
    torch.set_num_threads(1)
    net = lp.load(path, into=kind(name).make()).eval()
    with torch.no_grad():
        return [x.numpy() for x in flat(net(*map(torch.from_numpy, inputs)))]


def main() -> None:
    torch.set_num_threads(1)
    asked = [kind(name) for name in sys.argv[1:]]
    for known in asked or KINDS:
        path = OUT / known.name / "row.json"
        if asked or not path.exists():
            found = row(known)
            path.write_text(json.dumps(found))
            print(json.dumps(found), flush=True)
    done = [path for path in (OUT / known.name / "row.json" for known in KINDS) if path.exists()]
    rows = [json.loads(path.read_text()) for path in done]
    write("kinds", [{key: value for key, value in row.items() if key != "skipped"} for row in rows], threads=1)


if __name__ == "__main__":
    main()
