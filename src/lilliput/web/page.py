"""A folder with a page that runs a network in a browser, and all that it needs: it opens without a server.

Browsers read no files beside a page that is opened from a disk, but for scripts. So the network and the runtime lie in
scripts, compressed and as text.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx

from lilliput.disk import whole_file
from lilliput.errors import InputError, reason
from lilliput.external import bytes_of, files_of
from lilliput.web.package import Package, package

_PART = 64 << 20  # bytes that one script carries: browsers read a script as one text
_TEXTS = 512  # tokens of a text that is not told how long it may be
_SPECIAL = ("[CLS]", "[SEP]", "[UNK]")
_KINDS = {"float": "float32", "double": "float64"}  # ONNX's words for what the runtime calls otherwise
_RANK, _COLOURS = 4, (1, 3)


@dataclass(frozen=True)
class Picture:
    """How a picture becomes a network's input: cut around the middle, then ``(value / 255 - mean) / std``.

    `size` is height and width, where the network does not say them; `crop` the part of the shorter side that is kept.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise InputError(f"is {self.crop}", where="crop", next="give a part of the shorter side, such as 0.875")
        for name, held in (("mean", self.mean), ("std", self.std)):
            if len(held) not in _COLOURS or (name == "std" and not all(value > 0 for value in held)):
                raise InputError(f"is {held}", where=name, next="give one number, or one for each of three colours")


@dataclass(frozen=True)
class Asked:
    """What a page asks for: a picture, a text in pieces of a `vocabulary`, or, of neither, numbers.

    `labels` are the names of the classes that the network tells apart.
    """

    picture: Picture | None = None
    labels: Sequence[str] | None = None
    vocabulary: Sequence[str] | None = None


def save_page(
    folder: str | Path,
    network: str | Path,
    *,
    runtime: str | Path | None = None,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    vocabulary: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | None = None,
) -> Path:
    """Write a folder with a page that runs an ONNX file in a browser, offline: open `index.html`; returns its path.

    It takes a picture where the only input is one, float32 with 1 or 3 channels: cut to `size` (height, width) around
    the middle, after `crop` of the shorter side, then ``(value / 255 - mean) / std``. With a `vocabulary` of BERT's
    pieces it takes a text, else numbers. It shows the answer (by `labels`, one a class) and measures milliseconds.
    `runtime` is the folder of the npm package onnxruntime-web; without it, the one that Node.js would find from here.

    Raises InputError where that package or the file is missing, and for what does not go with the network.

    >>> save_page("out/page", "out/net.onnx", runtime="a folder that is not there")
    Traceback (most recent call last):
    lilliput.errors.InputError: a folder that is not there: there is no such folder; npm install onnxruntime-web ...
    """
    network, given = Path(network), (size, mean, std, crop)
    picture = None
    if any(one is not None for one in given):
        sides = (size, size) if isinstance(size, int) else size
        picture = Picture(sides, tuple(mean or (0.0,)), tuple(std or (1.0,)), 1.0 if crop is None else crop)
    asked = Asked(picture, labels, vocabulary)
    return _write(Path(folder), network, package(runtime), name or network.stem, asked)[0]


def _write(folder: Path, built: Path, runtime: Package, name: str, asked: Asked) -> list[Path]:
    """Write the page and what it carries; returns its files, `index.html` first.

    Raises InputError for a file that is no ONNX, and where what is `asked` does not go with the network.
    """
    weighs = bytes_of(built)
    config = {**_described(built, asked), "runtime": runtime.version, "bytes": weighs, "size": _size(weighs)}
    network, *beside = files_of(built)
    config["beside"] = [path.name for path in beside]
    folder.mkdir(parents=True, exist_ok=True)
    carried = {"script": runtime.script, "binary": runtime.binary, "network": network, **{p.name: p for p in beside}}
    scripts = [path for key, source in carried.items() for path in _carry(folder, key, source)]
    index = folder / "index.html"
    with whole_file(index) as file:
        file.write(_html(name, config, scripts).encode())
    return [index, *scripts]


def _carry(folder: Path, key: str, source: Path) -> Iterator[Path]:
    """Scripts that hold a file."""
    with open(source, "rb") as held:
        for index, part in enumerate(iter(lambda: held.read(_PART), b"")):
            path = folder / f"{key}{f'-{index + 1}' if index else ''}.js"
            text = base64.b64encode(gzip.compress(part, mtime=0))
            with whole_file(path) as file:
                file.write(b'carry(%s, "%s");\n' % (json.dumps(key).encode(), text))
            yield path


def _html(name: str, config: Mapping[str, Any], scripts: Sequence[Path]) -> str:
    template, css, js = (
        files(__package__).joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    return template.format(
        title=escape(name),
        size=config["size"],
        css=css,
        js=js,
        config=json.dumps(config, ensure_ascii=False).replace("<", "\\u003c"),  # nothing in it can end the element
        scripts="\n".join(f'<script src="{escape(path.name)}"></script>' for path in scripts),
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count:,} bytes"


def _described(built: Path, asked: Asked) -> dict[str, Any]:
    """What the page has to know of the network, and how what it is given becomes the network's input."""
    try:
        graph = onnx.load(built, load_external_data=False).graph
    except Exception as error:  # protobuf's own
        raise InputError("is no ONNX file", where=str(built), why=reason(error)) from None
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [_value(value) for value in graph.input if value.name not in constants]
    outputs = [_value(value) for value in graph.output]
    taken = asked.picture if asked.picture is not None else Picture() if _is_picture(inputs) else None
    text = None if asked.vocabulary is None else _text(inputs, asked.vocabulary, built)
    picture = None if taken is None or text is not None else _picture(inputs, taken, built)
    classes = _classes(outputs)
    if asked.labels is not None and classes is not None and len(asked.labels) != classes:
        raise InputError(
            f"{len(asked.labels)} labels, where the network tells {classes} classes apart",
            where="labels",
            next="give one a line, in the order of the classes",
        )
    labels = None if asked.labels is None else list(asked.labels)
    told = {"inputs": inputs, "outputs": outputs, "picture": picture, "text": text, "labels": labels}
    return {**told, "classes": picture is not None and classes is not None}


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    held = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(held.elem_type).lower()
    shape = [dim.dim_value or dim.dim_param or f"axis {axis}" for axis, dim in enumerate(held.shape.dim)]
    return {"name": value.name, "type": _KINDS.get(kind, kind), "shape": shape}


def _is_picture(inputs: Sequence[Mapping[str, Any]]) -> bool:
    if len(inputs) != 1 or inputs[0]["type"] != "float32" or len(inputs[0]["shape"]) != _RANK:
        return False
    return inputs[0]["shape"][1] in _COLOURS or inputs[0]["shape"][3] in _COLOURS


def _picture(inputs: Sequence[Mapping[str, Any]], asked: Picture, built: Path) -> dict[str, Any] | None:
    if not _is_picture(inputs):
        raise InputError(
            "takes no picture",
            where=str(built),
            why=f"its inputs are {_listed(inputs)}",
            next="leave mean, std, size and crop out: the page then takes numbers",
        )
    name, shape = inputs[0]["name"], inputs[0]["shape"]
    first = shape[1] in _COLOURS
    channels, (height, width) = (shape[1], shape[2:]) if first else (shape[3], shape[1:3])
    sizes = asked.size or (height, width)
    if shape[0] != 1 and isinstance(shape[0], int):
        return None  # several pictures at once
    if not all(isinstance(size, int) for size in sizes):
        raise InputError("takes pictures of any size", where=str(built), next="give the one that it learned: size=224")
    for given, own in zip(sizes, (height, width), strict=True):
        if isinstance(own, int) and own != given:
            raise InputError(
                f"takes {height} × {width}, not {sizes[0]} × {sizes[1]}", where="size", next="leave it out"
            )
    told = {"input": name, "height": sizes[0], "width": sizes[1], "channels": channels, "first": first}
    return {**told, "mean": list(asked.mean), "std": list(asked.std), "crop": asked.crop}


def _text(inputs: Sequence[Mapping[str, Any]], vocabulary: Sequence[str], built: Path) -> dict[str, Any]:
    """Of BERT and its like: numbers of tokens, and beside them perhaps a mask and types, all of one length."""
    names = [one["name"] for one in inputs]
    ids = next((name for name in names if "ids" in name and "type" not in name), None)
    if ids is None or any(len(one["shape"]) != 2 or "int" not in one["type"] for one in inputs):
        raise InputError(
            "takes no text in pieces of a vocabulary",
            where=str(built),
            why=f"its inputs are {_listed(inputs)}",
            next="leave vocab out: the page then takes numbers",
        )
    if missing := [piece for piece in _SPECIAL if piece not in vocabulary]:
        raise InputError(
            f"has no {', '.join(missing)}", where="vocab", next="give the vocab.txt of a BERT, a piece a line"
        )
    length = inputs[names.index(ids)]["shape"][1]
    lower = not any(piece[:1].isupper() for piece in vocabulary)
    told = {"ids": ids, "mask": next((name for name in names if "mask" in name), None), "most": _TEXTS, "lower": lower}
    return {**told, "length": length if isinstance(length, int) else None, "vocabulary": list(vocabulary)}


def _classes(outputs: Sequence[Mapping[str, Any]]) -> int | None:
    """How many classes the only output tells apart; None where it tells something else, or that is not known."""
    if len(outputs) != 1 or len(outputs[0]["shape"]) != 2 or not isinstance(outputs[0]["shape"][1], int):
        return None
    return int(outputs[0]["shape"][1])


def _listed(values: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{one['name']}, {one['type']} [{', '.join(map(str, one['shape']))}]" for one in values)
