"""`.lil`: a module as a file to store and send, compressed or not.

The header lists the edits that lead from the user's constructor to the module; the tensors are all that it holds, each
stored once however many names it has. `docs/format.md` is the specification.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.encodings import ENCODINGS, Encoding
from lilliput.entropy import Coder, bound
from lilliput.errors import EncodingError, FormatError, LilliputError, reason
from lilliput.file.assets import asset_parts
from lilliput.file.base import against
from lilliput.file.container import Part, Reader, write
from lilliput.file.names import apart
from lilliput.file.parallel import read_all
from lilliput.model.carrier.arrays import to_array, to_tensor
from lilliput.model.carrier.carrier import encoded_tensors, plain_class
from lilliput.model.carrier.encoded_tensor import learnt_parts
from lilliput.model.carrier.parametrized import fold_parametrizations, is_parametrized
from lilliput.model.edits.copies import private_copy
from lilliput.model.edits.edit import SAME, Edit
from lilliput.model.edits.edits import EDITS, edits_of
from lilliput.model.edits.held import attributes, give_attribute, give_buffer, named, passing_buffers
from lilliput.model.names import attribute_name
from lilliput.model.views.values import value_encodings
from lilliput.plain import check_types, from_plain, to_plain

if TYPE_CHECKING:
    from lilliput.file.graph import Graph

Module = TypeVar("Module", bound=nn.Module)
EXTRA = "_extra_state"  # how torch calls what get_extra_state returns


def save(
    path: str | Path,
    model: nn.Module,
    *,
    coder: Coder = "dense",
    graph: Graph | str = "saved without example inputs",
    assets: Mapping[str, bytes] | None = None,
    provenance: Mapping[str, Any] | None = None,
    base: str | Path | None = None,
) -> dict[str, int]:
    """Write `model` to `path`; returns the bytes of each tensor and of the rest, which add up to those of the file.

    *Dense* coding makes the smaller file, *fast* the one that is read faster. `graph` is what the module was built
    into, by which the file can be opened without its source, or the reason why there is none. `assets` are files that
    travel along, by name. The bytes of the rest have the name "". Of tensors that `base`, another file, has as well
    only the name is written, and of others that are smaller so, the difference from those of the same name there;
    where nothing is gained so, the file stands alone.

    Raises EncodingError for a model that is being trained, FormatError for what the format cannot hold.
    """
    for paths, tensor in encoded_tensors(model):
        if tensor.latent is not None:
            raise EncodingError(
                "is still being trained", where=paths[0], next="call lilliput.formats.freeze(model) first"
            )
        check_readable(tensor.encoding, paths[0])
    for name, encoder in value_encodings(model).items():
        if learnt_parts(encoder):
            raise EncodingError("is still being trained", where=name, next="call lilliput.formats.freeze(model) first")
        check_readable(encoder.encoding, name)
    model = private_copy(model) if is_parametrized(model) else model  # `load` and the graph have its tensors folded
    held = contents(model)
    arrays = {name: to_array(x) for name, x in held.tensors.items()}
    described = dict(held.described)
    parts = [Part.of(name, x, held.bits.get(name)) for name, x in arrays.items()]
    if base is not None:
        if Path(base).resolve() == Path(path).resolve():
            what = "would take the place of its own base"
            raise FormatError(what, where=str(path), next="give the new file a name of its own")
        parts, told = against(Reader(base), arrays, parts)
        described |= told
    if not isinstance(graph, str):
        from lilliput.file.graph import stripped  # needs onnx, which reading a module does not

        described["graph"], more = stripped(graph, arrays)
        parts += [Part.of(name, x) for name, x in more.items()]
    else:
        described |= {"graph": None, "no_graph": graph}
    listed, files = asset_parts(assets or {})
    header = header_of(model, held.edits, held.aliases, {"assets": listed, "provenance": provenance or {}, **described})
    written = write(path, header, [*parts, *files], coder)
    sizes = {entry.name: entry.stored_bytes for entry in written.entries}
    return {**sizes, "": written.bytes - sum(sizes.values())}


def header_of(
    model: nn.Module,
    edits: Sequence[Mapping[str, Any]],
    aliases: Mapping[str, str],
    described: Mapping[str, Any],
) -> dict[str, Any]:
    """The header of a file of `model`, with what else is `described`."""
    return {
        "kind": "module",
        "model": f"{plain_class(model).__module__}.{plain_class(model).__qualname__}",
        "edits": edits,
        "aliases": aliases,
        **described,
    }


@dataclass(frozen=True)
class Contents:
    """What a file says of a module: its tensors, each once, and what of the header follows from it."""

    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    bits: Mapping[str, int]  # of each code that count, by the names of packed tensors
    edits: Sequence[Mapping[str, Any]]
    described: Mapping[str, Any]  # of tensors that no `state_dict` has


def contents(model: nn.Module) -> Contents:
    """What a file of `model`, which is not being trained, holds."""
    tensors, described = _contents(model)
    first, aliases = _once(tensors)
    edits = [{"edit": to_plain(edit), "tensors": edit.stored(tensors)} for edit in edits_of(model)]
    return Contents({name: tensors[name] for name in first}, aliases, _code_bits(model), edits, described)


def check_readable(thing: Any, where: str) -> None:
    """Refuse an encoding, or anything made with one, of a class that is not Lilliput's: no file of it could be read."""
    if isinstance(thing, Encoding) and ENCODINGS.get(type(thing).__name__) is not type(thing):
        raise EncodingError(
            f"{type(thing).__name__} is no encoding that Lilliput knows",
            where=where,
            why="a file says by name what its tensors are encoded by, and nothing is imported to read it",
            next=f"lilliput.register({type(thing).__name__}) here and wherever the file is read, use one of "
            f"{', '.join(ENCODINGS)}, or lilliput.formats.to_dense(model) to save what it decodes to",
        )
    if isinstance(thing, list | tuple):
        for one in thing:
            check_readable(one, where)
    elif is_dataclass(thing):
        for field in fields(thing):
            check_readable(getattr(thing, field.name), where)


def lossless_bytes(model: nn.Module) -> int:
    """What the tensors of `model` come to by coding alone, to tell apart what a recipe gains and what coding does."""
    held = contents(model).tensors.values()
    return math.ceil(sum(bound(np.ascontiguousarray(to_array(x)).reshape(-1)) for x in held))


def _contents(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every tensor of the module by name, and what the header says of those that no `state_dict` has."""
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise FormatError(f"extra state of type {type(tensor).__name__}", where=name, next="hold it in a buffer")
    places = {attribute_name(place): list(place) for place in attributes(model)}
    return named(model), {"buffers": list(passing_buffers(model)), "attributes": places}


def _once(named: Mapping[str, Tensor]) -> tuple[list[str], dict[str, str]]:
    """The names to store, and for further names of the same memory the one that is stored."""
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in named.items():
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if first.setdefault(where, name) != name:
            aliases[name] = first[where]
    return list(first.values()), aliases


def _code_bits(model: nn.Module) -> dict[str, int]:
    """Names of packed tensors of codes and choices, with the bits of each number."""
    found: dict[str, int] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        encoding = getattr(module, "encoding", None)
        if isinstance(encoding, Encoding) and isinstance(getattr(module, "codes", None), Tensor):
            found |= {f"{path}.{part}": bits for part, bits in encoding.part_bits.items() if bits < 8}
    return found


def load(path: str | Path, into: Module, *, base: str | Path | None = None) -> Module:
    """Give `into`, made by the constructor of the saved model, the saved tensors; bit for bit what was saved.

    A module on the meta device gets the tensors themselves, so that none is in memory twice. Nothing in the file is
    executed. A file that does not fit the module is refused, and the module then unusable. A
    file that holds only what differs from another needs that one as `base`.

    >>> import tempfile
    >>> net, folder = nn.Linear(4, 2), tempfile.TemporaryDirectory()
    >>> sizes = save(f"{folder.name}/net.lil", net)
    >>> torch.equal(load(f"{folder.name}/net.lil", into=nn.Linear(4, 2)).weight, net.weight)
    True
    >>> folder.cleanup()
    """
    return read_into(Reader(path, None if base is None else Reader(base)), into)


def read_into(reader: Reader, into: Module, *, edited: bool = False) -> Module:
    """`load`, from a file that is open; if `edited`, into a module that has gone through the file's edits already."""
    where, header = reader.where, reader.header
    if header.get("kind") != "module":
        raise FormatError(
            f"holds a {header.get('kind')!r}, no module", where=where, next="lilliput inspect says what is inside"
        )
    fold_parametrizations(into)
    edits = [_edit(entry, where) for entry in _of_kind(header, "edits", list, where)]
    _check_once(edits, where)
    aliases = _of_kind(header, "aliases", dict, where)
    buffers = _of_kind(header, "buffers", list, where)
    places = _of_kind(header, "attributes", dict, where)
    if reader.base is not None and (reader.references or reader.deltas):
        reader.base.check_digest()  # which is all that the file says of what it takes from there
    names = [name for name in reader.names() if not apart(name)]
    arrays = read_all(reader, names)
    own = {name: to_tensor(x) for name, x in arrays.items()}
    for name in aliases.keys() & own.keys():
        raise FormatError(f"holds {name!r} as a tensor and as the name of another", where=where)
    named = {**own, **{alias: _tensor(own, name, where) for alias, name in aliases.items()}}
    try:
        for edit, parts in () if edited else edits:
            edit.apply(into, {part: _tensor(named, name, where) for part, name in parts.items()})
        passing = {name: _tensor(named, name, where) for name in buffers}
        plain = {_place(place, where): _tensor(named, name, where) for name, place in places.items()}
        state = {name: x for name, x in named.items() if name not in passing and name not in places}
        _fill(into, state, where)
        for name, x in passing.items():
            give_buffer(into, name, x)
        for place, x in plain.items():
            give_attribute(into, place, x)
        reader.check_digest(read=arrays)
    except LilliputError:
        raise
    except Exception as error:  # a forged file can ask for anything
        raise FormatError("does not fit together", where=where, why=reason(error)) from error
    return into.eval()


def _of_kind(header: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if not isinstance(header.get(key), kind):
        raise FormatError(f"has no {kind.__name__} of {key}", where=where)
    return header[key]


def _tensor(named: Mapping[str, Tensor], name: Any, where: str) -> Tensor:
    if not isinstance(name, str) or name not in named:
        raise FormatError(f"holds no tensor {name!r} that it refers to", where=where)
    return named[name]


def _place(place: Any, where: str) -> tuple[str | int, ...]:
    texts = isinstance(place, list) and len(place) > 1 and all(type(key) is str for key in place[:2])
    if not texts or not all(type(key) in (str, int) for key in place):
        raise FormatError(f"an attribute at {place!r}", where=where)
    return tuple(place)


def _edit(entry: Any, where: str) -> tuple[Edit, dict[str, str]]:
    try:
        edit, parts = from_plain(entry["edit"], EDITS), entry["tensors"]
        if isinstance(edit, Edit) and isinstance(parts, dict):
            check_types(edit, type(edit).__name__)
            return edit, parts
    except (LilliputError, KeyError, TypeError, RecursionError) as error:
        unknown = "lilliput.register the class of that name first" if "unknown kind" in reason(error) else ""
        raise FormatError("an edit cannot be read", where=where, why=reason(error), next=unknown) from error
    raise FormatError("an edit cannot be read", where=where)


def _check_once(edits: Iterable[tuple[Edit, Any]], where: str) -> None:
    """Refuse edits that change again what one like them changes: a few bytes of file could ask for hours of work."""
    found: set[tuple[type, str]] = set()
    for edit, _ in edits:
        for place in edit.places():
            if (type(edit), place) in found:
                raise FormatError("is changed twice in the same way", where=f"{where}: {place}")
            found.add((type(edit), place))


@torch.no_grad()
def _fill(into: nn.Module, named: Mapping[str, Tensor], where: str) -> None:
    """Copy every stored tensor into the module; both must have the same names and shapes."""
    wanted = into.state_dict(keep_vars=True)
    for name in sorted(set(wanted) ^ set(named)):
        side = "the file lacks" if name in wanted else "the module lacks"
        raise FormatError(f"{side} {name!r}", where=where, next=SAME)
    given: set[int] = set()
    for name, tensor in named.items():
        held = wanted[name]
        if held.is_floating_point() != tensor.is_floating_point():
            raise FormatError(f"{name!r} is {tensor.dtype} in the file and {held.dtype} in the module", where=where)
        if held.shape != tensor.shape:
            raise FormatError(
                f"{name!r} has shape {tuple(tensor.shape)} in the file and {tuple(held.shape)} in the module",
                where=where,
            )
        if name.endswith(EXTRA):  # what is asked for is made anew each time
            into.get_submodule(name[: -len(EXTRA) - 1]).set_extra_state(tensor.to(held.device, copy=True))
        elif held.is_meta:
            taken = tensor if tensor.data_ptr() not in given else tensor.clone()
            given.add(taken.data_ptr())
            made = nn.Parameter(taken, held.requires_grad) if isinstance(held, nn.Parameter) else taken
            torch.utils.swap_tensors(held, made)  # under all names that it has
        elif held.data_ptr() != tensor.data_ptr() or not held.numel():
            _give(held, tensor.to(held.device, copy=True))


def _give(held: Tensor, x: Tensor) -> None:
    """Let a tensor hold `x`; of one made in inference mode only the content can be changed."""
    if held.is_inference():
        with torch.inference_mode():
            held.copy_(x)
    else:
        held.data = x
