"""`.lil`: a compressed module as a file to store and send.

The header lists the edits that lead from the user's constructor to the compressed module; the tensors are the
compressed module's `state_dict`, each stored once however many names it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lilliput.encodings import Int
from lilliput.errors import EncodingError, FormatError, LilliputError
from lilliput.file.container import Part, Reader, write
from lilliput.model.carrier import encoded_tensors, fold_parametrizations, plain_class
from lilliput.model.edits import EDITS, Edit, State
from lilliput.plain import from_plain, to_plain

Module = TypeVar("Module", bound=nn.Module)


def save(
    path: str | Path, model: nn.Module, state: State, provenance: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Write `model`, which `state` describes, to `path`; returns the bytes of each tensor and of the index.

    The figures add up to the size of the file.
    """
    held = model.state_dict()
    _check_described(model, state, held)
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in held.items():
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if first.setdefault(where, name) != name:
            aliases[name] = first[where]
    bits = _code_bits(model)
    header = {
        "model": f"{plain_class(model).__module__}.{plain_class(model).__qualname__}",
        "edits": [
            {"edit": to_plain(step.edit), "tensors": _stored(step.edit, list(step.tensors), held)}
            for step in state.settled()
        ],
        "aliases": aliases,
        "provenance": provenance or {},
    }
    kept = (Part(name, held[name], bits.get(name)) for name in first.values())
    entries = write(path, header, kept)
    sizes = {entry.name: entry.bytes for entry in entries}
    return {**sizes, "": Path(path).stat().st_size - sum(sizes.values())}


def _check_described(model: nn.Module, state: State, held: Mapping[str, Tensor]) -> None:
    """Refuse a model that `load` could not make again from the edits."""
    for paths, tensor in encoded_tensors(model):
        if tensor.latent is not None:
            raise EncodingError("is still being trained", where=paths[0], next="call lilliput.freeze(model) first")
    wanted = {name for step in state.settled() for name in _stored(step.edit, list(step.tensors), held).values()}
    for name in sorted(wanted - held.keys()):
        raise EncodingError(
            "is not in the model, though its state says so", where=name, next="save the model that the state belongs to"
        )


def _stored(edit: Edit, parts: list[str], held: Mapping[str, Tensor]) -> dict[str, str]:
    return {part: edit.stored_name(part) for part in parts}


def _code_bits(model: nn.Module) -> dict[str, int]:
    """Names of packed code tensors, with the bits of a code."""
    found: dict[str, int] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        encoding = getattr(module, "encoding", None)
        if isinstance(encoding, Int) and encoding.bits < 8 and isinstance(getattr(module, "codes", None), Tensor):
            found[f"{path}.codes"] = encoding.bits
    return found


def load(path: str | Path, into: Module) -> Module:
    """Give `into`, made by the constructor of the saved model, the compressed tensors; bit for bit what was saved.

    Nothing in the file is executed. A file that does not fit the module is refused, and the module then unusable.

    >>> import tempfile
    >>> net, folder = nn.Linear(4, 2), tempfile.TemporaryDirectory()
    >>> sizes = save(f"{folder.name}/net.lil", net, State(base=""))
    >>> torch.equal(load(f"{folder.name}/net.lil", into=nn.Linear(4, 2)).weight, net.weight)
    True
    >>> folder.cleanup()
    """
    reader = Reader(path)
    fold_parametrizations(into)
    edits = [_edit(entry, str(path)) for entry in _of_kind(reader.header, "edits", list, str(path))]
    named = {name: reader.read(name) for name in reader.entries}
    for alias, name in _of_kind(reader.header, "aliases", dict, str(path)).items():
        named[alias] = _tensor(named, name, str(path))
    for edit, parts in edits:
        given = {part: _tensor(named, name, str(path)) for part, name in parts.items()}
        try:
            edit.apply(into, given)
        except LilliputError:
            raise
        except Exception as error:  # a forged file can ask for anything
            raise FormatError(
                f"{edit} cannot be made", where=str(path), why=f"{type(error).__name__}: {error}"
            ) from error
    _fill(into, named, str(path))
    return into.eval()


def _of_kind(header: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if not isinstance(header.get(key), kind):
        raise FormatError(f"has no {kind.__name__} of {key}", where=where)
    return header[key]


def _tensor(named: Mapping[str, Tensor], name: Any, where: str) -> Tensor:
    if not isinstance(name, str) or name not in named:
        raise FormatError(f"holds no tensor {name!r} that it refers to", where=where)
    return named[name]


def _edit(entry: Any, where: str) -> tuple[Edit, dict[str, str]]:
    try:
        edit, parts = from_plain(entry["edit"], EDITS), entry["tensors"]
    except (LilliputError, KeyError, TypeError) as error:
        raise FormatError("an edit cannot be read", where=where, why=str(error)) from error
    if not isinstance(edit, Edit) or not isinstance(parts, dict):
        raise FormatError("an edit cannot be read", where=where)
    return edit, parts


@torch.no_grad()
def _fill(into: nn.Module, named: Mapping[str, Tensor], where: str) -> None:
    """Copy every stored tensor into the module; both must have the same names and shapes."""
    wanted = into.state_dict(keep_vars=True)
    for name in sorted(set(wanted) ^ set(named)):
        side = "the file lacks" if name in wanted else "the module lacks"
        raise FormatError(
            f"{side} {name!r}", where=where, next="give the constructor, with the arguments, used for saving"
        )
    for name, tensor in named.items():
        held = wanted[name]
        if held.is_floating_point() != tensor.is_floating_point():
            raise FormatError(f"{name!r} is {tensor.dtype} in the file and {held.dtype} in the module", where=where)
        if held.shape != tensor.shape:
            raise FormatError(
                f"{name!r} has shape {tuple(tensor.shape)} in the file and {tuple(held.shape)} in the module",
                where=where,
            )
        if held.data_ptr() != tensor.data_ptr():
            held.data = tensor.clone()
