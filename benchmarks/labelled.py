"""Five networks whose inputs have labels, so that what is made of them is judged by accuracy as well.

The batches of `metric` are those of `evaluate`, in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fashion
import networks
import recurrent
import torch
from torch import Tensor, nn

import lilliput as lp


def lite0() -> lp.Task:
    """EfficientNet-Lite0 on 500 crops of 20 photographs; a crop has the class of its photograph."""
    task = networks.lite0()
    classes = torch.tensor([int(name.rsplit("_", 1)[1]) for name in networks.data.evaluation_photographs()])
    batches, photographs = list(task.evaluate or ()), torch.as_tensor(task.clusters)
    labels = classes[photographs].split([len(batch) for batch in batches])
    labelled = list(zip(batches, labels, strict=True))
    return replace(task, metric=lp.metrics.top1(labelled, clusters=photographs.tolist()))


class Sentences(nn.Module):
    """An encoder's mean over the tokens that are there, [texts, 384]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        there = attention_mask.unsqueeze(2).to(tokens.dtype)
        return (tokens * there).sum(1) / there.sum(1)


def minilm() -> lp.Task:
    """MiniLM as it is used: what it makes of padding is of no account, and by sentences a linear layer tells spam.

    It is calibrated with messages one by one, without padding, and timed on 128 tokens.
    """
    task, messages = networks.minilm(), networks.data.sms()
    net = Sentences(task.model).eval()
    rows = [{k: x[i : i + 1] for k, x in batch.items()} for batch in task.calibrate or () for i in range(16)]
    alone = [{k: x[:, : int(row["attention_mask"].sum())] for k, x in row.items()} for row in rows]
    head = _head(net, networks.texts(messages.train.texts[:1024], 32, 64), messages.train.labels[:1024])

    def right(sentences: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return head(sentences).argmax(1) == labels

    test = networks.texts(messages.test.texts[:512], 32, 64)
    labels = messages.test.labels[:512].split(32)
    labelled = [batch | {"labels": y} for batch, y in zip(test, labels, strict=True)]
    metric = lp.metrics.Metric("spam", True, labelled, right)
    return replace(task, model=net, calibrate=alone, evaluate=test, metric=metric, name="minilm-spam")


def _head(net: nn.Module, batches: list[dict[str, Tensor]], labels: Tensor) -> nn.Linear:
    """Logistic regression on sentences (kept in out/, made again when it is not there)."""
    torch.manual_seed(0)
    head, kept = nn.Linear(384, 2), networks.OUT / "minilm-spam.pt"
    if not kept.exists():
        with torch.no_grad():
            x = torch.cat([net(**batch) for batch in batches])
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(head(x), labels) + 1e-4 * head.weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        networks.OUT.mkdir(parents=True, exist_ok=True)
        torch.save(head.state_dict(), kept)
    head.load_state_dict(torch.load(kept, weights_only=True))
    return head


def clothes(make: Callable[[], nn.Module], name: str) -> lp.Task:
    """A network on 28 × 28 pictures of Fashion-MNIST: 128 of training to calibrate, 2,000 of the test set to judge."""
    (known, _), (pictures, labels) = fashion.read("train"), fashion.read("t10k")
    labelled = list(zip(pictures[:2000].split(100), labels[:2000].split(100), strict=True))
    return lp.Task(
        make(),
        example=pictures[:1],
        calibrate=list(known[:128].split(32)),
        evaluate=[x for x, _ in labelled],
        metric=lp.metrics.top1(labelled),
        name=name,
    )


LABELLED: dict[str, Callable[[], lp.Task]] = {
    "lite0": lite0,
    "minilm-spam": minilm,
    "resnet20-fashion": lambda: clothes(fashion.resnet20, "resnet20-fashion"),
    "mobilenet-fashion": lambda: clothes(fashion.mobilenet, "mobilenet-fashion"),
    "lstm-spam": recurrent.classifier,
}


class Answers:
    """What a network has answered to each batch, given out again in that order, for a metric to judge."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = iter(answers)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return next(self._answers)
