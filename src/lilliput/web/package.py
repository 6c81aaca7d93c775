"""The npm package onnxruntime-web, which the user brings: found where it is, and fetched only when asked."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lilliput.errors import InputError, reason

NAME = "onnxruntime-web"
_SCRIPT, _BINARY = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
_BRING = (
    f"npm install {NAME} in the folder that you work in, or name its own: runtime=, in a shell --runtime or --fetch"
)


@dataclass(frozen=True)
class Package:
    """The package in a folder: what of it a page needs is one script and one file of WebAssembly."""

    folder: Path
    version: str

    @property
    def script(self) -> Path:
        return self.folder / _SCRIPT

    @property
    def binary(self) -> Path:
        return self.folder / _BINARY


def package(given: str | Path | None = None) -> Package:
    """The package in the folder `given`, or beneath it; without one, where Node.js would find it from here.

    Raises InputError for a folder that holds none, and where none is found.
    """
    if given is not None:
        return _held(Path(given))
    return _found(Path.cwd(), os.environ.get("NODE_PATH", ""))


def fetched(folder: Path, version: str = "latest") -> Package:
    """The package as `npm pack` gets it from the registry that the user's npm is set to, unpacked in `folder`.

    Raises InputError where npm is missing, or does not get it.
    """
    program = shutil.which("npm")
    if program is None:
        raise InputError("there is no npm to fetch with", where=NAME, next="install Node.js, or give runtime=")
    command = [program, "pack", f"{NAME}@{version}", "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    packed = next(folder.glob(f"{NAME}-*.tgz"), None)
    if done.returncode or packed is None:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise InputError("npm does not get it", where=NAME, why=lines[-1], next=_BRING)
    with tarfile.open(packed) as held:
        held.extractall(folder, filter="data")
    packed.unlink()
    return _held(folder)


def node_program() -> str:
    """Where Node.js is; raises InputError where it is not installed."""
    program = shutil.which("node")
    if program is None:
        raise InputError(
            "Node.js is not installed",
            why=f"{NAME} runs here in it, to be compared and timed",
            next="install Node.js 20 or newer, or write the page alone: lilliput web",
        )
    return program


def _held(given: Path) -> Package:
    """The package in a folder of the user's."""
    if not given.is_dir():
        raise InputError("there is no such folder", where=str(given), next=_BRING)
    for folder in (given, given.parent, given / "package", given / "node_modules" / NAME):  # the second: given dist/
        if (folder / "package.json").is_file() and (found := _read(folder)) is not None:
            return found
    raise InputError(f"holds no {NAME}", where=str(given), next=f"give the folder that has its package.json: {_BRING}")


def _read(folder: Path) -> Package | None:
    """The package in exactly this folder; None where its package.json is that of another."""
    try:
        told = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        name, version = told.get("name"), str(told.get("version"))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError("cannot be read", where=str(folder / "package.json"), why=reason(error), next=_BRING) from None
    if name != NAME:
        return None
    found = Package(folder.resolve(), version)
    for path in (found.script, found.binary):
        if not path.is_file():
            raise InputError(
                f"has no {path.name}",
                where=str(folder),
                why=f"it is version {version}; this was written for 1.30",
                next=f"npm install {NAME}@1.30.0",
            )
    return found


@functools.lru_cache
def _found(here: Path, node_path: str) -> Package:
    for folder in _places(here, node_path):
        if (folder / NAME / "package.json").is_file() and (found := _read(folder / NAME)) is not None:
            return found
    raise InputError(f"{NAME} is not here", why="it comes from npm, and nothing is fetched unasked", next=_BRING)


def _places(here: Path, node_path: str) -> Iterator[Path]:
    """Where Node.js looks for modules, and where npm puts those of all projects."""
    yield from (folder / "node_modules" for folder in (here, *here.parents))
    yield from (Path(folder) for folder in node_path.split(os.pathsep) if folder)
    if program := shutil.which("npm"):
        done = subprocess.run([program, "root", "--global"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            yield Path(done.stdout.strip())
