"""What is inside a `.lil`, as plain data, and whether all of it is as it was written; without torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from lilliput.errors import FormatError, InputError, lacking, reason
from lilliput.file.assets import asset_names
from lilliput.file.container import Reader
from lilliput.file.index import Entry, version_of
from lilliput.file.names import ASSET, GRAPH, HEAD, apart
from lilliput.file.second import Second

Progress = Callable[[int, int], None]
_FIELDS = {"edits": list, "aliases": dict, "buffers": list, "attributes": dict, "files": list, "provenance": dict}
_SECOND = 1 << 25  # elements that the second decoder reads when it is not asked for all


def inside(path: str | Path | bytes, base: Reader | None = None) -> dict[str, Any]:
    """What a file holds: its tensors, how they are encoded, and a table of bytes that adds up to its size.

    Raises FormatError for a file whose index is damaged; nothing else of it is read.

    >>> import numpy as np, tempfile
    >>> from lilliput.file.container import Part, write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = write(f"{folder}/x.lil", {"kind": "answer"}, [Part.of("x", np.zeros(5))])
    ...     found = inside(f"{folder}/x.lil")
    >>> found["weights"][0]["path"], sum(found["sizes"].values()) == found["bytes"]
    ('x', True)
    """
    reader = Reader(path, base)
    header = _sound(reader)
    encoded = _encoded(reader)
    parts = {part for row in encoded for part in row.pop("parts")}
    plain = [_row(entry) for entry in reader.entries.values() if entry.name not in parts and not apart(entry.name)]
    sizes = {
        "encoded tensors": sum(row["bytes"] for row in encoded),
        "other tensors": sum(row["bytes"] for row in plain),
        "graph": _bytes_under(reader, GRAPH),
        "files inside": _bytes_under(reader, ASSET),
        "heads of safetensors files": _bytes_under(reader, HEAD),
        "index": reader.index_bytes,
    }
    return {
        "path": reader.where,
        "bytes": reader.size,
        "version": version_of(header),
        "kind": header["kind"],
        "digest": reader.digest,
        "model": header.get("model", ""),
        "sizes": sizes,
        "weights": [*encoded, *plain],
        "edits": header.get("edits", []),
        "aliases": header.get("aliases", {}),
        "buffers": header.get("buffers", []),
        "attributes": header.get("attributes", {}),
        "assets": {name: reader.entry(held).count for name, held in asset_names(reader).items()},
        "files": [file.get("path") for file in header.get("files", [])],
        "graph": _graph(reader),
        "base": header.get("base"),
        "references": reader.references,
        "deltas": reader.deltas,
        "provenance": header.get("provenance", {}),
    }


def _sound(reader: Reader) -> dict[str, Any]:
    """The header, if its fields are of the types that they must be."""
    for key, kind in _FIELDS.items():
        if not isinstance(reader.header.get(key, kind()), kind):
            raise FormatError(f"has no {kind.__name__} of {key}", where=reader.where)
    if not all(isinstance(file, dict) for file in reader.header.get("files", [])):
        raise FormatError("has no sound list of files", where=reader.where)
    if not all(isinstance(name, str) for name in reader.header.get("buffers", [])):
        raise FormatError("has no sound list of buffers", where=reader.where)
    return reader.header


def _text(data: Any) -> str:
    if not isinstance(data, str):
        raise TypeError(f"a {type(data).__name__} in place of a text")
    return data


_TEXTS = {
    "SetTensor": ("path",),
    "Replace": ("path",),
    "LeaveOut": ("path",),
    "Divide": ("path",),
    "KeepChildren": ("container",),
}


def _encoded(reader: Reader) -> list[dict[str, Any]]:
    """A row for each encoded tensor and value, with the tensors of the file that it is made of."""
    rows = []
    taken: set[str] = set()
    for i, entry in enumerate(reader.header.get("edits", [])):
        try:
            edit, parts = entry["edit"], _parts(reader, entry["tensors"].values(), taken)
            if edit["kind"] not in ("EncodeTensor", "EncodeValue"):
                for field in ("kind", *_TEXTS.get(edit["kind"], ())):
                    _text(edit[field])
                continue
            value = edit["kind"] == "EncodeValue"
            path = "value " + edit["value"] if value else _text(edit["paths"][0])
            shape = [] if value else list(edit["shape"])
            stored = sum(part.stored_bytes for part in parts)
            rows.append(
                {
                    "path": path,
                    "encoding": _label(edit["encoding"]),
                    "shape": shape,
                    "bits_per_weight": None if value else 8 * stored / max(1, prod(shape)),
                    "bytes": stored,
                    "parts": [part.name for part in parts],
                }
            )
        except (TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
            raise FormatError(f"edit {i} is not sound", where=reader.where, why=reason(error)) from None
    return rows


def _parts(reader: Reader, names: Iterable[Any], taken: set[str]) -> list[Entry]:
    """The tensors of the file called so, or so by another name; each is counted where it is first used."""
    aliases, found = reader.header.get("aliases", {}), []
    for name in names:
        held = aliases.get(name, name)
        if held not in taken and held not in reader.references:
            found.append(reader.entry(held))
            taken.add(held)
    return found


def _label(encoding: Mapping[str, Any]) -> str:
    """An encoding as it is written in Python."""
    told = {"bits": 8, **encoding} if encoding["kind"] == "Int" else encoding  # a default worth reading
    fields = (f"{key}={_label(x) if isinstance(x, dict) else repr(x)}" for key, x in told.items() if key != "kind")
    return f"{encoding['kind']}({', '.join(fields)})"


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "path": entry.name,
        "encoding": entry.dtype,
        "shape": list(entry.shape),
        "bits_per_weight": 8 * entry.stored_bytes / max(1, entry.count),
        "bytes": entry.stored_bytes,
    }


def _bytes_under(reader: Reader, prefix: str) -> int:
    held = (entry for name, entry in reader.entries.items() if name.startswith(prefix))
    return sum(entry.stored_bytes for entry in held)


def _graph(reader: Reader) -> dict[str, Any] | None:
    described = reader.header.get("graph")
    if not isinstance(described, dict):
        return None
    references = described.get("initializers", {})
    if not isinstance(references, dict):
        raise FormatError("has no dict of initializers", where=f"{reader.where}: graph")
    kept = ("format", "target", "inputs", "outputs", "constants", "departure")
    return {**{key: described.get(key) for key in kept}, "references": len(references)}


def verify(
    path: str | Path | bytes,
    base: Reader | None = None,
    *,
    thorough: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[tuple[str, str]]:
    """Check everything that can be checked of a file; what was checked, and what was found, in words.

    The index, every chunk and the digest of all tensors; the graph, with its tensors put back, as ONNX Runtime loads
    it; and the whole again by a second decoder, which shares no code with the first (`thorough`: all chunks, otherwise
    some of each tensor of a large file).

    Without onnx and onnxruntime the graph is not loaded, which is told.

    Raises FormatError for the first thing that is not as it should be.
    """
    reader = Reader(path, base)
    count = sum(len(entry.chunks) for entry in reader.entries.values())
    version, kind = version_of(reader.header), reader.header["kind"]
    told = [("index", f"version {version}, {len(reader.entries)} tensors in {count} chunks, a {kind}")]
    inside(path, base)
    _check_names(reader)
    told.append(("header", "every tensor that it names is held"))
    if base is not None and (reader.references or reader.deltas):
        base.check_digest()
    reader.check_digest(progress)
    told.append(("tensors", f"checksums of all chunks, and the digest {reader.digest[:16]}…"))
    told.append(("graph", _checked_graph(reader)))
    told.append(("second decoder", _again(reader, path, thorough)))
    return told


def _check_names(reader: Reader) -> None:
    """Every tensor that the header of a module or a checkpoint names must be there."""
    header, held = reader.header, set(reader.names())
    try:
        aliases = dict(header.get("aliases", {}))
        named = [*aliases.values(), *header.get("attributes", {})]
        named += [name for name in header.get("buffers", []) if name not in aliases]
        named += [name for file in header.get("files", []) for name in (file["head"], *file["tensors"])]
        missing = [name for name in named if name not in held and name not in aliases]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise FormatError("the header is not sound", where=reader.where, why=reason(error)) from None
    if missing:
        raise FormatError(f"holds no tensor {missing[0]!r} that its header names", where=reader.where)


def _checked_graph(reader: Reader) -> str:
    if not isinstance(reader.header.get("graph"), dict):
        return f"none: {reader.header.get('no_graph', 'this is no module')}"
    try:
        import onnx

        from lilliput.external import files_of
        from lilliput.file.graph import restore
        from lilliput.runtimes.session import session
    except ModuleNotFoundError as error:
        return f"whole as bytes, and not loaded: {lacking(error)}"
    with tempfile.TemporaryDirectory(prefix="lilliput-", ignore_cleanup_errors=True) as folder:
        built = restore(reader, Path(folder) / "net.onnx")
        try:
            onnx.checker.check_model(str(built))
            session(built)
        except InputError as error:
            return f"{onnx.__name__} takes it, and it is not loaded: {error}"
        except Exception as error:  # both raise many kinds
            raise FormatError("does not load", where=f"{reader.where}: graph", why=reason(error)) from None
        size = sum(path.stat().st_size for path in files_of(built))
    return f"{size:,} bytes with its tensors; ONNX Runtime loads it"


def _again(reader: Reader, path: str | Path | bytes, thorough: bool) -> str:
    """Decode with the second decoder what the first has decoded, and compare."""
    second = Second(path, None if reader.base is None else reader.base.file)
    if second.header != reader.header or second.digest != reader.digest:
        raise FormatError("two decoders read two headers", where=reader.where, next="please report this file")
    whole = sum(entry.count for entry in reader.entries.values())
    every = 1 if thorough else max(1, -(-whole // _SECOND))
    done = total = 0
    for name, entry in reader.entries.items():
        for i, (first, last) in enumerate(entry.spans()):
            total += 1
            if i % every:
                continue
            done += 1
            if second.chunk(name, i) != reader.stored(name, first, last).tobytes():
                raise FormatError(
                    "two decoders read two things", where=f"{reader.where}: {name}", next="please report this file"
                )
    for name in (*reader.references, *reader.deltas):
        if second.tensor(name)[2] != reader.read(name).tobytes():
            raise FormatError(
                "two decoders read two things", where=f"{reader.where}: {name}", next="please report this file"
            )
    return f"reads the same in {done} of {total} chunks" + ("" if done == total else " (all with --thorough)")
