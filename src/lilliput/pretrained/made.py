"""The fields of a `Task`, made of a network of transformers, the name of its task, and data as people have them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.errors import InputError, nearest
from lilliput.feeding.rows import BATCH
from lilliput.pretrained.folder import Held, maker, network
from lilliput.pretrained.kinds import Kind, kind_called, metric
from lilliput.pretrained.rows import Row, rows_of

_MAKES = {"text": "AutoTokenizer", "image": "AutoImageProcessor", "sound": "AutoFeatureExtractor"}


def fields_of(
    given: str | Path | nn.Module,
    name: str,
    data: Any,
    evaluate: Any = None,
    processor: Any = None,
    length: int | None = None,
    samples: int | None = None,
) -> dict[str, Any]:
    """Model, calibration and evaluation batches, axes that vary, metric, output and name."""
    kind = kind_called(name)
    held = _held(given, kind, processor)
    rows = _rows(held, kind, data, "data", length)
    judging = None if evaluate is None else _rows(held, kind, evaluate, "evaluate", length)
    most = kind.most[0] if judging is not None else min(kind.most[0], max(1, len(rows) // 2))
    calibrating, rest = rows[:most], rows[most:]
    unread = len(rest) if judging is not None else 0
    judging = rest if judging is None else judging
    unread += max(0, len(judging) - (samples or kind.most[1]))
    judging = judging[: samples or kind.most[1]]
    batches = Made(held, kind, calibrating, length)
    labelled = judging and (kind.score == "next" or "label" in judging[0])
    said = f"{len(calibrating)} samples calibrate and {len(judging)} judge, {unread} are not read: see samples="
    return {
        "model": held.model,
        "calibrate": batches,
        "evaluate": Made(held, kind, judging, length, cut=said if unread else "") if judging else None,
        "dynamic": _varying(next(iter(batches)), kind),
        "metric": metric(kind, held.config, Made(held, kind, judging, length, labels=True)) if labelled else None,
        "output": "values" if kind.score == "top1" and _without_classes(held.config) else kind.output,
        "name": Path(given).name if not isinstance(given, nn.Module) else type(given).__name__,
    }


def _rows(held: Held, kind: Kind, data: Any, where: str, length: int | None) -> list[Row]:
    """What data hold, as the task takes it: in an order that chance draws once, or in windows of one run."""
    rows = _labelled(rows_of(data, kind.reads, where), kind, held.config, where)
    if kind.cut is not None:
        return kind.cut(held, rows, length)
    random.Random(0).shuffle(rows)
    return rows


@dataclass(frozen=True, eq=False)
class Made:
    """Batches of rows, made anew each time they are read: dicts of tensors."""

    held: Held
    kind: Kind
    rows: Sequence[Row]
    length: int | None = None
    labels: bool = False
    cut: str = ""  # why not all that was given is read

    def __len__(self) -> int:
        return -(-len(self.rows) // BATCH)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(0, len(self.rows), BATCH):
            rows = self.rows[i : i + BATCH]
            batch = dict(self.kind.makes(self.held, rows, self.length))
            if self.labels and "labels" not in batch:
                batch["labels"] = _labels(rows, self.held.config)
            elif not self.labels:
                batch.pop("labels", None)
            yield batch


def _labels(rows: Sequence[Row], config: Any) -> Tensor:
    held = torch.tensor([row["label"] for row in rows])
    return held.float()[:, None] if config.num_labels == 1 else held


def _held(given: Any, kind: Kind, processor: Any) -> Held:
    if not isinstance(given, str | Path | nn.Module):
        raise InputError(
            f"is a {type(given).__name__}", where="model", next="give a folder, or a network of transformers"
        )
    model, place = network(given, kind.auto)
    source = (getattr(model, "name_or_path", "") or None) if isinstance(given, nn.Module) else place or given
    tokenizer, shows = _of(processor)
    main = kind.reads[0]
    if main == "text":
        tokenizer = tokenizer or maker(source, model, _MAKES[main], main)
    else:
        shows = shows or maker(source, model, _MAKES[main], main)
        if getattr(model.config, "is_encoder_decoder", False):
            with contextlib.suppress(InputError):  # without one, the network says by itself what was said
                tokenizer = tokenizer or maker(source, model, _MAKES["text"], "text")
    return Held(kind.around(model, place).eval() if kind.around else model, tokenizer, shows)


def _of(processor: Any) -> tuple[Any, Any]:
    """The tokenizer, and what makes inputs of images or sounds, in what the user gives as a processor."""
    if hasattr(processor, "convert_ids_to_tokens"):
        return processor, None
    shows = getattr(processor, "image_processor", None) or getattr(processor, "feature_extractor", None) or processor
    return getattr(processor, "tokenizer", None), shows


def _varying(batch: dict[str, Any], kind: Kind) -> dict[str | int, dict[int, str]]:
    """The axes that vary, of inputs that have them; images of sound are of one length."""
    plain = {key: x for key, x in batch.items() if isinstance(x, Tensor)}
    axes = kind.varies if all(x.dim() <= 2 for x in plain.values()) else kind.varies[:1]
    found: dict[str | int, dict[int, str]] = {key: dict(enumerate(axes[: x.dim()])) for key, x in plain.items()}
    found |= {f"past.{i}": {0: "batch", 2: "past"} for i in range(len(batch.get("past", ())))}
    if "decoder_input_ids" in batch:
        found["decoder_input_ids"] = {0: "batch", 1: "sequence"}
    return found


def _without_classes(config: Any) -> bool:
    return config.num_labels == 1 or getattr(config, "problem_type", None) == "multi_label_classification"


def _labelled(rows: list[Row], kind: Kind, config: Any, where: str) -> list[Row]:
    """The rows, their labels as the network numbers them; all have one, or none has."""
    without = next((i for i, row in enumerate(rows) if "label" not in row), None)
    if not kind.score or without is not None:
        if kind.score and any("label" in row for row in rows):
            raise InputError(
                "has no label, and others have", where=f"{where}[{without}]", next="give each sample one, or none"
            )
        return rows
    return [{**row, "label": _numbered(row["label"], config, f"{where}[{i}]")} for i, row in enumerate(rows)]


def _numbered(label: Any, config: Any, where: str) -> Any:
    if getattr(config, "problem_type", None) == "multi_label_classification":
        return label  # which nothing here judges by
    if config.num_labels == 1:
        return _value(label, where)
    known: dict[str, int] = getattr(config, "label2id", None) or {}
    if isinstance(label, list | tuple | np.ndarray):  # one for each word
        return [_number(one, known, config.num_labels, where) for one in label]
    return _number(label, known, config.num_labels, where)


def _value(label: Any, where: str) -> float:
    try:
        return float(label)
    except (TypeError, ValueError):
        raise InputError(
            f"has the label {label!r}", where=where, next="the network answers with a number: give one"
        ) from None


def _number(label: Any, known: dict[str, int], classes: int, where: str) -> int:
    if isinstance(label, str) and label in known:
        return known[label]
    number = int(label) if isinstance(label, str) and label.strip().isdigit() else label
    if isinstance(number, str) or not 0 <= int(number) < classes:
        remedy = nearest(str(label), known) if isinstance(label, str) and known else f"give 0 to {classes - 1}"
        raise InputError(f"has the label {label!r}, which the network does not know", where=where, next=remedy)
    return int(number)
