"""A folder of safetensors and what lies beside them as one `.lil`, and back, byte for byte: `docs/format.md`.

Everything passes through a chunk at a time, so a checkpoint may be larger than memory.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lilliput import entropy
from lilliput.disk import clear_parts, staged_folder
from lilliput.errors import FormatError, InputError, LilliputError
from lilliput.file.assets import check_name
from lilliput.file.container import Part, Progress, Reader, write
from lilliput.file.names import ASSET, HEAD
from lilliput.file.sources import Folder, Safetensors, is_safetensors, read_elements, walk

KIND = "checkpoint"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_BYTE = np.dtype(np.uint8)
_COMPARED = 1 << 20  # bytes in one go
_FEW = 5  # names in a message


def _silent(done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote: the files inside, those that were left out, and the bytes of all before and after."""

    path: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...]  # folders end in /
    bytes_before: int
    bytes_after: int
    coder: entropy.Coder  # *fast* also where *dense* was asked for and cannot be had


@dataclass(frozen=True)
class Unpacked:
    """What `unpack` made: the files in the folder, the bytes of the `.lil` and of the files."""

    folder: Path
    files: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def pack(
    folder_or_file: str | Path,
    path: str | Path,
    coder: entropy.Coder = "dense",
    progress: Progress = _silent,
    without: Sequence[str] = (),
) -> Packed:
    """Write a checkpoint in safetensors as one `.lil` from which `unpack` makes the same files again, byte for byte.

    All other files of the folder come along. `without` names, as in a shell, what does not: ``*.bin``, ``onnx/*``,
    ``logs``. Folders called ``.git`` are left out by themselves, for a repository's history and settings are no part
    of a checkpoint and may hold passwords; so is the file at `path`. `progress` is told the bytes done, of how many.

    Raises InputError for pickled weights (they can run code, and no pickle is opened here), for a folder without
    safetensors, and for a file that another system could not hold; FormatError for a damaged safetensors file.

    >>> import tempfile
    >>> from safetensors.numpy import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"weight": np.zeros((512, 512), np.float32)}, f"{folder}/net.safetensors")
    ...     packed = pack(f"{folder}/net.safetensors", f"{folder}/net.lil")
    ...     unpacked = unpack(f"{folder}/net.lil", f"{folder}/again")
    >>> packed.files, packed.bytes_before == unpacked.bytes_after, packed.bytes_after < 1000
    (('net.safetensors',), True, True)
    """
    place, out = Path(folder_or_file), Path(path)
    if out.is_dir():
        raise InputError("is a folder", where=str(out), next="name the file to write, for example net.lil")
    clear_parts(out.parent, of=out.name)  # or it would be packed, where the output lies in the folder
    found, left = _found(place, out, without)
    _check_names(found, str(place))
    tensors = Folder({name: file for name, file in found.items() if is_safetensors(name)}, str(place))
    others = {name: file for name, file in found.items() if not is_safetensors(name)}
    sizes = {name: os.path.getsize(file) for name, file in found.items()}
    header = {
        "kind": KIND,
        "files": [{"path": name, "head": HEAD + name, "tensors": listed} for name, listed in tensors.listed.items()],
        "assets": {name: ASSET + name for name in others},
    }
    written = write(out, header, _parts(tensors, others, sizes), coder, progress)
    return Packed(out, tuple(found), tuple(left), sum(sizes.values()), written.bytes, written.coder)


def _found(place: Path, out: Path, without: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """The files to pack by their relative paths, and what is left out."""
    if not place.exists():
        raise InputError("there is no such file or folder", where=str(place))
    found, left = walk(place, lambda path: _left(path, without)) if place.is_dir() else ({place.name: place}, [])
    for name in [name for name, file in found.items() if out.exists() and os.path.samefile(file, out)]:
        if out.suffix != ".lil":
            raise InputError("would be overwritten by what it is packed into", where=str(out), next="name another file")
        del found[name]
        left.append(name)
    pickles = [name for name in found if name.lower().endswith(PICKLES)]
    if pickles:
        raise InputError(
            f"{_some(pickles)} may be pickled, and pickles can run code",
            where=str(place),
            next=f"convert to safetensors, or leave out what is not needed: --without '*{Path(pickles[0]).suffix}'",
        )
    if not any(map(is_safetensors, found)):
        raise InputError(
            "no safetensors file is there", where=str(place), next="give a checkpoint in safetensors files"
        )
    return found, sorted(left)


def _left(path: str, without: Sequence[str]) -> bool:
    name = PurePosixPath(path).name
    patterns = [pattern.rstrip("/") for pattern in without]
    return name == ".git" or any(fnmatchcase(path, one) or fnmatchcase(name, one) for one in patterns)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def _check_names(names: Iterable[str], where: str) -> None:
    """Refuse, while packing, what `unpack` would."""
    try:
        _check_paths(names, where)
    except FormatError as error:
        remedy = "rename it, or leave it out with --without"
        raise InputError(f"{error.what} cannot be packed", where=where, why=error.why, next=remedy) from None


def _parts(tensors: Folder, others: Mapping[str, Path], sizes: Mapping[str, int]) -> Iterator[Part]:
    for path, file in tensors.files.items():
        yield _raw(HEAD + path, file.path, file.head_bytes)
        for name in tensors.listed[path]:
            dtype = entropy.name_of(tensors.dtype(name))
            assert dtype is not None  # a source gives no others
            yield Part(name, dtype, tensors.shape(name), lambda a, b, name=name: tensors.read(name, a, b))  # type: ignore[misc]
    for name, other in others.items():
        yield _raw(ASSET + name, other, sizes[name])


def _raw(name: str, file: Path, size: int) -> Part:
    """The first bytes of a file."""
    return Part(name, "uint8", (size,), lambda first, last: read_elements(file, first, _BYTE, last - first))


def unpack(path: str | Path, folder: str | Path, progress: Progress = _silent) -> Unpacked:
    """Make the files that `pack` was given, in `folder`, which may be there already.

    Every file is written under another name first. Only when all of them are whole, agree with the digest of the `.lil`
    and are in nobody's way do they get their names, one after the other. A file that is there already with the same
    content is left alone; with another content it is an error, and then nothing has changed.

    Raises FormatError for a file that is damaged, forged, or no checkpoint; InputError for what is in the way.
    """
    reader = Reader(path)
    plan = _plan(reader)
    target = Path(folder)
    _check_target(plan, target)
    with staged_folder(target) as staged:
        places = {name: staged / str(i) for i, name in enumerate(plan.sizes)}
        _fill(reader, plan, places, progress)
        for name in plan.heads:
            _check_safetensors(places[name], f"{reader.where}: {name}")
        fresh = [name for name in plan.sizes if not _is_there(target / name, places[name])]
        for name in fresh:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(places[name], target / name)
    return Unpacked(target, tuple(sorted(plan.sizes)), reader.size, sum(plan.sizes.values()))


@dataclass
class _Plan:
    """Which tensor goes where."""

    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each file
    heads: list[str] = field(default_factory=list)  # the safetensors files
    places: dict[str, tuple[str, int]] = field(default_factory=dict)  # tensor: file, and its offset there


def _plan(reader: Reader) -> _Plan:
    """What the header asks for; refused unless every tensor has exactly one place."""
    header = reader.header
    if header.get("kind") == "module":
        raise FormatError("holds a module, no checkpoint", where=reader.where, next="use lp.load, or lilliput.load")
    if header.get("kind") != KIND:
        raise FormatError(f"holds {str(header.get('kind'))[:80]!r}, no checkpoint", where=reader.where)
    if header.get("base") is not None or header.get("references"):
        raise FormatError(
            "needs another file that it refers to", where=reader.where, next="unpack a file that is whole"
        )
    plan = _Plan()
    for path, held in _contents(header, reader.where):
        if path in plan.sizes:
            raise FormatError(f"holds {path!r} twice", where=reader.where)
        plan.sizes[path] = 0
        for name in held:
            if name in plan.places:
                raise FormatError(f"uses {name!r} twice", where=reader.where)
            plan.places[name] = (path, plan.sizes[path])
            plan.sizes[path] += reader.entry(name).unfolded_bytes
    plan.heads = [file["path"] for file in header["files"]]
    for name in [held[0] for _, held in _contents(header, reader.where)]:
        entry = reader.entry(name)
        if entry.dtype != "uint8" or len(entry.shape) != 1:
            raise FormatError(f"{name!r} holds no bytes", where=reader.where)
    unused = reader.entries.keys() - plan.places.keys()
    if unused:
        raise FormatError(f"{_some(sorted(unused))} belong to no file", where=reader.where)
    _check_paths(plan.sizes, reader.where)
    return plan


def _contents(header: Mapping[str, Any], where: str) -> Iterator[tuple[str, list[str]]]:
    """Each file and the tensors that make it up, the first of them plain bytes; refuses a header that is not sound."""
    files, assets = header.get("files"), header.get("assets", {})
    if not isinstance(files, list) or not isinstance(assets, dict):
        raise FormatError("has no sound list of files", where=where)
    for file in files:
        if not isinstance(file, dict) or file.keys() != {"path", "head", "tensors"}:
            raise FormatError("has no sound list of files", where=where)
        path, head, tensors = file["path"], file["head"], file["tensors"]
        if not isinstance(tensors, list) or not all(isinstance(name, str) for name in (path, head, *tensors)):
            raise FormatError("has no sound list of files", where=where)
        yield path, [head, *tensors]
    for path, name in assets.items():
        if name != ASSET + path:
            raise FormatError("an asset that no bytes hold", where=f"{where}: {path[:80]}")
        yield path, [name]


def _check_paths(paths: Iterable[str], where: str) -> None:
    """Refuse paths that lead out of the folder, or that some system would take for the same."""
    taken: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        check_name(path, where)
        if any(0xD800 <= ord(letter) < 0xE000 for letter in path):
            raise FormatError(f"a file called {path[:80]!r}", where=where, why="its name is no Unicode")
        parts = _folded(path).split("/")
        same = taken.setdefault("/".join(parts), path)
        if same != path:
            raise FormatError(
                f"a file called {path[:80]!r} beside {same[:80]!r}", where=where, why="to some systems one"
            )
        folders |= {"/".join(parts[:i]): path for i in range(1, len(parts))}
    for both in sorted(taken.keys() & folders.keys()):
        raise FormatError(f"a file called {taken[both][:80]!r} beside {folders[both][:80]!r}", where=where)


def _folded(path: str) -> str:
    """What names that a system may take for the same have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _check_target(plan: _Plan, target: Path) -> None:
    """Refuse what can be seen to be in the way before anything is written."""
    root = target.resolve()
    if target.exists() and not target.is_dir():
        raise InputError("is no folder", where=str(target), next="choose another place")
    for path, size in plan.sizes.items():
        place = target / path
        if not place.parent.resolve().is_relative_to(root):
            raise InputError("lies elsewhere, through a link", where=str(place.parent), next="choose another folder")
        for parent in [*place.relative_to(target).parents][:-1]:
            if os.path.lexists(target / parent) and not (target / parent).is_dir():
                raise _in_the_way(target / parent)
        if os.path.lexists(place) and (not place.is_file() or place.stat().st_size != size):
            raise _in_the_way(place)


def _in_the_way(place: Path) -> InputError:
    return InputError(
        "is there already, and is something else", where=str(place), next="move it away, or choose another folder"
    )


def _fill(reader: Reader, plan: _Plan, places: Mapping[str, Path], progress: Progress) -> None:
    """Write every tensor where it belongs, in the order of the file, and compare all of them with its digest."""
    for place in places.values():
        place.touch()
    digest, done, total = hashlib.sha256(), 0, sum(plan.sizes.values())
    for name, entry in reader.entries.items():
        path, offset = plan.places[name]
        digest.update(entry.label())
        with open(places[path], "r+b") as file:
            file.seek(offset)
            for x in reader.chunks(name):
                held = memoryview(np.ascontiguousarray(x).view(np.uint8))  # type: ignore[arg-type]
                digest.update(held)
                file.write(held)
                done += len(held)
                progress(done, total)
    if digest.hexdigest() != reader.digest:
        raise FormatError(
            "the tensors are not those that were written", where=reader.where, next="the file is damaged: get it again"
        )
    for place in places.values():
        with open(place, "rb+") as file:
            os.fsync(file.fileno())


def _check_safetensors(place: Path, where: str) -> None:
    try:
        Safetensors(place, where)
    except LilliputError as error:
        raise FormatError(error.what, where=where, why=error.why, next="whoever packed it has to do so again") from None


def _is_there(place: Path, staged: Path) -> bool:
    """Whether the file is there already; refuses one with another content."""
    if not os.path.lexists(place):
        return False
    if not place.is_file() or place.stat().st_size != staged.stat().st_size:
        raise _in_the_way(place)
    with open(place, "rb") as one, open(staged, "rb") as other:
        while held := one.read(_COMPARED):
            if held != other.read(_COMPARED):
                raise _in_the_way(place)
    return True
