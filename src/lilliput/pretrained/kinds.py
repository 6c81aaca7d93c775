"""Tasks by the names that transformers gives them: each is a line of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError, nearest
from lilliput.metrics import squared_error, top1
from lilliput.pretrained import inputs
from lilliput.pretrained.folder import Held
from lilliput.pretrained.past import with_past
from lilliput.pretrained.rows import Row
from lilliput.pretrained.sentences import encoder

_TEXT, _SOUND = ("batch", "sequence"), ("batch", "time")
_TEXTS = (128, 512), _TEXT


@dataclass(frozen=True)
class Kind:
    """What a task is made of."""

    auto: tuple[str, ...]  # classes of transformers that make its network
    reads: tuple[str, ...]  # columns of its data, the one that is needed first
    makes: Callable[[Held, Sequence[Row], int | None], dict[str, Any]]  # rows as a batch, with labels where they are
    output: str  # what an answer is, as `Task.output` says it
    most: tuple[int, int]  # samples to calibrate with, and to judge by
    varies: tuple[str, ...] = ("batch",)  # axes of its inputs that do
    score: str = ""  # how answers are judged by labels
    cut: Callable[[Held, Sequence[Row], int | None], list[Row]] | None = None  # rows of another kind, made first
    around: Callable[[Any, Path | None], nn.Module] | None = None  # what is put around the network, and its folder


KINDS = {
    "text-classification": Kind(
        ("AutoModelForSequenceClassification",), ("text", "second", "label"), inputs.texts, "classes", *_TEXTS, "top1"
    ),
    "token-classification": Kind(
        ("AutoModelForTokenClassification",), ("text", "words", "label"), inputs.words, "tokens", *_TEXTS, "words"
    ),
    "fill-mask": Kind(("AutoModelForMaskedLM",), ("text",), inputs.texts, "tokens", (64, 128), _TEXT),
    "feature-extraction": Kind(("AutoModel",), ("text", "second"), inputs.texts, "embedding", *_TEXTS),
    "sentence-similarity": Kind(("AutoModel",), ("text",), inputs.texts, "embedding", *_TEXTS, around=encoder),
    "text-generation": Kind(
        ("AutoModelForCausalLM",), ("text",), inputs.passages, "tokens", (32, 32), _TEXT, "next", inputs.windows
    ),
    "text-generation-with-past": Kind(
        ("AutoModelForCausalLM",), ("text",), inputs.steps, "tokens", (32, 32), _TEXT, "next", inputs.windows, with_past
    ),
    "image-classification": Kind(
        ("AutoModelForImageClassification",), ("image", "label"), inputs.images, "classes", (64, 512), score="top1"
    ),
    "image-segmentation": Kind(
        ("AutoModelForSemanticSegmentation",), ("image",), inputs.images, "classes", (32, 64)
    ),
    "audio-classification": Kind(
        ("AutoModelForAudioClassification",), ("sound", "label"), inputs.sounds, "classes", (32, 128), _SOUND, "top1"
    ),
    "automatic-speech-recognition": Kind(
        ("AutoModelForCTC", "AutoModelForSpeechSeq2Seq"), ("sound", "said"), inputs.sounds, "tokens", (16, 64), _SOUND
    ),
}  # fmt: skip
_ALSO = {"sentiment-analysis": "text-classification", "ner": "token-classification"}


def kind_called(name: str) -> Kind:
    """The task of that name; raises InputError naming the nearest."""
    found = KINDS.get(_ALSO.get(name, name))
    if found is None:
        raise InputError(f"no task is called {name!r}", where="task", next=nearest(str(name), [*KINDS, *_ALSO]))
    return found


def metric(kind: Kind, config: Any, batches: Any) -> Any:
    """How right answers are, one score a sample; None where the task has no such judge."""
    from lilliput.metrics import Metric

    many = getattr(config, "problem_type", None) == "multi_label_classification"
    if kind.score == "top1" and not many:
        return squared_error(batches) if config.num_labels == 1 else top1(batches)
    if kind.score == "words":
        return Metric("words right", True, batches, _words_right, None, "tokens")
    return Metric("loss a token", False, batches, _loss, None, "tokens") if kind.score == "next" else None


def _words_right(output: Tensor, labels: Tensor) -> Tensor:
    """The share of the labelled tokens [samples, tokens] whose largest class is right."""
    judged = labels != inputs.IGNORED
    return ((output.argmax(-1) == labels) & judged).sum(1) / judged.sum(1).clamp(min=1)


def _loss(output: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log p of each next token."""
    losses = nn.functional.cross_entropy(output[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return torch.as_tensor(losses.mean(1))
