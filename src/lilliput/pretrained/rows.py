"""Data as people have them, as rows: dicts with a text, an image or a sound, and a label where there is one."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lilliput.errors import InputError, reason

Row = Mapping[str, Any]

_NAMES = {  # what columns are called, the likeliest first
    "text": ("text", "sentence", "sentence1", "premise", "question", "content", "document", "review", "message"),
    "second": ("text_pair", "sentence2", "hypothesis"),
    "words": ("tokens", "words"),
    "image": ("image", "img", "pixel_values"),
    "sound": ("audio", "speech", "input_values", "array"),
    "label": ("label", "labels", "ner_tags", "tags", "target", "category", "intent"),
    "said": ("text", "sentence", "transcription", "transcript"),
}
_ENDINGS = {"image": (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"), "sound": (".wav", ".flac")}
_MOST = 4096  # rows that are read of what does not tell its length


def rows_of(data: Any, reads: Sequence[str], where: str = "data") -> list[Row]:
    """The rows in a file, a folder, a dataset, a table or a list, by the names that `kinds` knows.

    `reads` are the columns that are wanted, the one that is needed first: "text", "second", "label", …

    Raises InputError for what holds no rows, and for rows without the column that is needed.
    """
    if isinstance(data, str | Path):
        data = _in_file(Path(data), reads[0])
    elif hasattr(data, "to_dict") and hasattr(data, "columns"):  # of pandas
        data = data.to_dict("records")
    if isinstance(data, Mapping) and all(hasattr(one, "column_names") for one in data.values()):
        raise InputError(
            f"is of several parts: {', '.join(map(str, data))}",
            where=where,
            next=f"give one, {where}[{next(iter(data))!r}]",
        )
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise InputError(f"is a {type(data).__name__}", where=where, next="give a list of samples, a file or a folder")
    known = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    found = [data[i] for i in range(len(data))] if known else list(itertools.islice(data, _MOST + 1))  # type: ignore[index,arg-type]
    if not found:
        raise InputError("holds no samples", where=where, next="give at least one")
    if not known and len(found) > _MOST:
        raise InputError(
            f"gives more than {_MOST:,} samples, and may never end",
            where=where,
            next="give a list of what is meant",
        )
    return [_row(one, reads, f"{where}[{i}]") for i, one in enumerate(found)]


def _row(given: Any, reads: Sequence[str], where: str) -> Row:
    if isinstance(given, Mapping):
        return _columns(given, reads, where)
    if isinstance(given, tuple) and len(given) == 2 and "label" in reads:
        return {reads[0]: given[0], "label": given[1]}
    return {reads[0]: given}


def _columns(given: Mapping[str, Any], reads: Sequence[str], where: str) -> Row:
    found = {name: column for name in reads if (column := _column(given, name)) is not None}
    if reads[0] not in found and reads[0] == "text":  # the only text there is
        texts = [key for key, value in given.items() if isinstance(value, str) and key not in found.values()]
        found |= {"text": texts[0]} if len(texts) == 1 else {}
    if not {reads[0], "words" if "words" in reads else reads[0]} & found.keys():
        raise InputError(
            f"has the columns {', '.join(map(str, given))}, of which none is known to hold the {reads[0]}",
            where=where,
            next=f"call it {reads[0]!r}",
        )
    return {name: given[column] for name, column in found.items()}


def _column(given: Mapping[str, Any], name: str) -> str | None:
    return next((one for one in _NAMES.get(name, (name,)) if given.get(one) is not None), None)


# files


def _in_file(path: Path, main: str) -> Any:
    if path.is_dir():
        return _in_folder(path, main)
    if not path.is_file():
        raise InputError("there is no such file", where=str(path), next="give a file or folder of samples")
    ending = path.suffix.lower()
    if ending not in _READERS:
        raise InputError(
            f"is {ending or 'a file without an ending'}",
            where=str(path),
            next=f"give {', '.join(_READERS)} or a folder",
        )
    try:
        return list(_READERS[ending](path))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError("cannot be read", where=str(path), why=reason(error), next="write it in UTF-8") from error


def _table(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")


def _json(path: Path) -> Iterator[Any]:
    yield from json.loads(path.read_text(encoding="utf-8"))


def _lines_of_json(path: Path) -> Iterator[Any]:
    yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _lines(path: Path) -> Iterator[Any]:
    yield from (line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


_READERS = {".csv": _table, ".tsv": _table, ".json": _json, ".jsonl": _lines_of_json, ".txt": _lines}


def _in_folder(folder: Path, main: str) -> list[Any]:
    """Its images or sounds; where they lie in folders within, the names of those are the labels."""
    if main not in _ENDINGS:
        raise InputError("is a folder", where=str(folder), next=f"give a file of texts: {', '.join(_READERS)}")
    files = sorted(one for one in folder.rglob("*") if one.suffix.lower() in _ENDINGS[main])
    return [one if one.parent == folder else {main: one, "label": one.parent.name} for one in files]
