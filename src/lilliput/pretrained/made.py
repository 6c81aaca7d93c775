"""The fields of a `Task`, made of a network of transformers, the name of its task, and data as people have them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError, nearest
from lilliput.feeding.rows import BATCH
from lilliput.pretrained.folder import Held, maker, network
from lilliput.pretrained.kinds import Kind, kind_called, metric
from lilliput.pretrained.rows import Row, rows_of

_TOKENIZER, _IMAGES, _SOUNDS = ("AutoTokenizer",), ("AutoImageProcessor",), ("AutoFeatureExtractor",)


def fields_of(
    given: str | Path | nn.Module,
    name: str,
    data: Any,
    evaluate: Any = None,
    processor: Any = None,
    length: int | None = None,
) -> dict[str, Any]:
    """Model, calibration and evaluation batches, axes that vary, metric, output and name."""
    kind = kind_called(name)
    held = _held(given, kind, processor)
    rows = _labelled(rows_of(data, kind.reads), kind, held.config, "data")
    if kind.cut is not None:
        rows = kind.cut(held, rows, length)
    else:
        random.Random(0).shuffle(rows)
    calibrating = rows[: min(kind.most[0], len(rows) if evaluate is not None else max(1, len(rows) // 2))]
    judging = rows[len(calibrating) :]
    if evaluate is not None:
        judging = _labelled(rows_of(evaluate, kind.reads, "evaluate"), kind, held.config, "evaluate")
        judging = judging if kind.cut is None else kind.cut(held, judging, length)
    judging = judging[: kind.most[1]]
    batches = Made(held, kind, calibrating, length)
    labelled = judging and (kind.score == "next" or all("label" in row for row in judging))
    return {
        "model": held.model,
        "calibrate": batches,
        "evaluate": Made(held, kind, judging, length) if judging else None,
        "dynamic": _varying(next(iter(batches)), kind),
        "metric": metric(kind, held.config, Made(held, kind, judging, length, labels=True)) if labelled else None,
        "output": "values" if kind.score == "top1" and _without_classes(held.config) else kind.output,
        "name": Path(given).name if not isinstance(given, nn.Module) else type(given).__name__,
    }


@dataclass(frozen=True, eq=False)
class Made:
    """Batches of rows, made anew each time they are read: dicts of tensors."""

    held: Held
    kind: Kind
    rows: Sequence[Row]
    length: int | None = None
    labels: bool = False

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
    source = place or given if not isinstance(given, nn.Module) else getattr(model, "name_or_path", "") or None
    tokenizer = getattr(processor, "tokenizer", processor if _tokenizes(processor) else None)
    shows = None if processor is None or _tokenizes(processor) else processor
    shows = getattr(shows, "image_processor", None) or getattr(shows, "feature_extractor", None) or shows
    held = Held(model, tokenizer, shows, place)
    main = kind.reads[0]
    if main == "text" and tokenizer is None:
        held = replace(held, tokenizer=maker(_asked(source, model), _TOKENIZER, "texts"))
    if main in ("image", "sound") and shows is None:
        classes = _IMAGES if main == "image" else _SOUNDS
        held = replace(held, processor=maker(_asked(source, model), classes, f"{main}s"))
    if main == "sound" and tokenizer is None and getattr(model.config, "is_encoder_decoder", False) and source:
        held = replace(held, tokenizer=_tokenizer_if_any(source))
    return replace(held, model=kind.around(model, place).eval()) if kind.around else held


def _tokenizes(processor: Any) -> bool:
    return hasattr(processor, "convert_ids_to_tokens")


def _tokenizer_if_any(source: Any) -> Any:
    try:
        return maker(source, _TOKENIZER, "texts")
    except InputError:
        return None


def _asked(source: Any, model: Any) -> Any:
    if source is None:
        raise InputError(
            "has no folder where its tokenizer or processor could lie",
            where=type(model).__name__,
            next="give processor=",
        )
    return source


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
    """The rows, their labels as the network numbers them."""
    if not kind.score or _without_classes(config):
        return rows
    known: dict[str, int] = getattr(config, "label2id", None) or {}
    made: Callable[[Any, str], int] = lambda label, place: _number(label, known, config.num_labels, place)  # noqa: E731
    return [
        row
        if "label" not in row
        else {
            **row,
            "label": [made(one, f"{where}[{i}]") for one in row["label"]]
            if "words" in row
            else made(row["label"], f"{where}[{i}]"),
        }
        for i, row in enumerate(rows)
    ]


def _number(label: Any, known: dict[str, int], classes: int, where: str) -> int:
    if isinstance(label, str) and label in known:
        return known[label]
    number = int(label) if isinstance(label, str) and label.strip().isdigit() else label
    if isinstance(number, str) or not 0 <= int(number) < classes:
        remedy = nearest(str(label), known) if isinstance(label, str) and known else f"give 0 to {classes - 1}"
        raise InputError(f"has the label {label!r}, which the network does not know", where=where, next=remedy)
    return int(number)
