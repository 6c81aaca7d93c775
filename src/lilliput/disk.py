"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lilliput.errors import InputError

if sys.platform != "win32":
    import fcntl

_FOLDER, _LOCK = "folder", "lock"  # in the name of an unfinished folder; the file in it that is locked
_PART = re.compile(r"\.(.+)\.[0-9a-f]+\.part", re.DOTALL)


def origins_of(built: Path) -> Path:
    """The file beside a built one that says which tensors its constants come from.

    >>> origins_of(Path("net.onnx")).name
    'net.onnx.origins'
    """
    return built.with_name(f"{built.name}.origins")


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is complete: written beside, synced, renamed.

    What killed writers of the same file left beside it is removed.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_parts(path.parent, of=path.name)
        with _unfinished(path) as (beside, file):
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # an open file cannot be renamed there; elsewhere it stays locked until it has its name
            os.replace(beside, path)
        _sync_names(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError("cannot be written", where=str(path), why=reason, next="choose another place") from error


def clear_parts(*folders: Path, of: str | None = None) -> None:
    """Remove the unfinished files that killed writers left in `folders`, of the file named `of` or of any.

    Those that somebody is writing stay.
    """
    for folder in folders:
        for path in folder.glob(".*.part") if folder.is_dir() else ():
            part = _PART.fullmatch(path.name)
            if part and of in (None, part[1]):
                _remove_unless_written(path)


@contextmanager
def _unfinished(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file beside `path`, locked while it is open and gone in the end.

    The lock ends with its process, however that ends. A process id in the name would tell less: another process may
    have it by now, and those of another container or machine mean nothing here.
    """
    taken = True
    while taken:
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with open(beside, "xb") as file:
                _lock(file)
                taken = not beside.exists()  # by one who thought it left behind, before it was locked
                if not taken:
                    yield beside, file
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


@contextmanager
def _unfinished_folder(target: Path) -> Iterator[Path]:
    """A folder inside `target`, on the same disk, gone in the end; what killed ones left there is removed."""
    clear_parts(target, of=_FOLDER)
    folder = target / f".{_FOLDER}.{secrets.token_hex(4)}.part"
    folder.mkdir()
    try:
        with open(folder / _LOCK, "xb") as file:
            _lock(file)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder inside `target`, on the same disk, gone afterwards; and so is `target` if it was new and stays empty."""
    new = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _unfinished_folder(target) as staged:
            yield staged
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError("cannot be written", where=str(target), why=reason, next="choose another place") from error
    finally:
        if new:
            with contextlib.suppress(OSError):
                target.rmdir()


def _lock(file: IO[bytes]) -> None:
    if sys.platform != "win32":  # there nobody can remove an open file
        with contextlib.suppress(OSError):  # where nothing can be locked, nothing is removed either
            fcntl.flock(file, fcntl.LOCK_EX)


def _remove_unless_written(part: Path) -> None:
    with contextlib.suppress(OSError):  # it is locked, or gone by now
        if sys.platform == "win32":
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        else:
            with open(part / _LOCK if part.is_dir() else part, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def _sync_names(folder: Path) -> None:
    """Make a rename last through a power cut, where a folder can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
