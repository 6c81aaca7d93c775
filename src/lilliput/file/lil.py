"""`.lil`: a compressed module as a file to store and send.

The header lists the edits that lead from the user's constructor to the compressed module; the tensors are the compressed
module's `state_dict`, each stored once however many names it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lilliput.encodings import Int
from lilliput.errors import FormatError, LilliputError
from lilliput.file.container import Part, Reader, write
from lilliput.model.carrier import fold_parametrizations, plain_class
from lilliput.model.edits import EDITS, Edit, State
from lilliput.plain import from_plain, to_plain

Module = TypeVar("Module", bound=nn.Module)


def save(path: str | Path, model: nn.Module, state: State, provenance: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Write `model`, which `state` describes, to `path`; returns the bytes of each tensor and of the index.

    The figures add up to the size of the file.
    """
    held = model.state_dict()
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in held.items():
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if first.setdefault(where, name) != name:
            aliases[name] = first[where]
    bits = _code_bits(model)
    header = {
        "model": f"{plain_class(model).__module__}.{plain_class(model).__qualname__}",
        "edits": [{"edit": to_plain(step.edit), "tensors": _stored(step.edit, list(step.tensors), held)} for step in state.settled()],
        "aliases": aliases,
        "provenance": provenance or {},
    }
    kept = (Part(name, held[name], bits.get(name)) for name in first.values())
    entries = write(path, header, kept)
    sizes = {entry.name: entry.bytes for entry in entries}
    return {**sizes, "": Path(path).stat().st_size - sum(sizes.values())}


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

    >>> # net = lp.load("net.lil", into=Net())
    """
    reader = Reader(path)
    fold_parametrizations(into)
    edits = [_edit(entry, str(path)) for entry in _listed(reader.header.get("edits"), str(path))]
    named = {name: reader.read(name) for name in reader.entries}
    aliases = reader.header.get("aliases", {})
    for alias, name in aliases.items():
        if name not in named:
            raise FormatError(f"alias of a tensor that is not there: {name!r}", where=str(path))
        named[alias] = named[name]
    for edit, parts in edits:
        missing = [name for name in parts.values() if name not in named]
        if missing:
            raise FormatError(f"an edit needs the tensor {missing[0]!r}", where=str(path))
        edit.apply(into, {part: named[name] for part, name in parts.items()})
    _fill(into, named, str(path))
    return into.eval()


def _listed(edits: Any, where: str) -> list[Any]:
    if not isinstance(edits, list):
        raise FormatError("has no list of edits", where=where)
    return edits


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
        raise FormatError(f"{side} {name!r}", where=where, next="give the constructor, with the arguments, used for saving")
    for name, tensor in named.items():
        held = wanted[name]
        if held.shape != tensor.shape:
            raise FormatError(
                f"{name!r} has shape {tuple(tensor.shape)} in the file and {tuple(held.shape)} in the module", where=where
            )
        if held.data_ptr() != tensor.data_ptr():
            held.data = tensor.clone()


