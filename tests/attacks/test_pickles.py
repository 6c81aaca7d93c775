"""Pickles run code when they are opened; nothing here opens one."""

from __future__ import annotations

import ast
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import golden
import numpy as np
import pytest
import torch
from torch import nn

import lilliput
from lilliput.file.assets import read_asset
from lilliput.file.container import Reader
from lilliput.file.inspect import inside

SOURCE = Path(lilliput.__file__).parent


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def saved(bomb: Bomb, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2), "bomb": bomb}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def array(bomb: Bomb) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([bomb], object), allow_pickle=True)
    return file.getvalue()


def within(bomb: Bomb) -> bytes:
    """A pickle between the head and the tail of a `.lil`."""
    data = golden.MODULE.read_bytes()
    return data[:16] + pickle.dumps(bomb) + data[-48:]


KINDS: dict[str, Callable[[Bomb], bytes]] = {
    "pickle": pickle.dumps,
    "pickle, protocol 0": lambda bomb: pickle.dumps(bomb, 0),
    "torch.save": lambda bomb: saved(bomb, True),
    "torch.save, old": lambda bomb: saved(bomb, False),
    "numpy.save": array,
    "within a .lil": within,
    "as the index": lambda bomb: forge.sealed(pickle.dumps(bomb)),
    "in place of the zstd frame": lambda bomb: forge.around(pickle.dumps(bomb)),
}
VERBS: dict[str, Callable[[Path], Any]] = {
    "load": lambda path: lilliput.load(path, nn.Linear(2, 2)),
    "load, as base": lambda path: lilliput.load(golden.MODULE, golden.Net(), base=path),
    "open": lilliput.open,
    "read": Reader,
    "inspect": inside,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_is_refused_and_not_run(kind: str, verb: str, tmp_path: Path, refused: Any) -> None:
    bomb = Bomb(tmp_path / "gone off")
    (tmp_path / "net.lil").write_bytes(KINDS[kind](bomb))
    refused("is not a whole Lilliput file", VERBS[verb], tmp_path / "net.lil")
    assert not bomb.path.exists()
    pickle.loads(pickle.dumps(bomb))  # and it would have
    assert bomb.path.exists()


def test_a_pickle_that_travels_along_is_bytes(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "gone off")
    data = pickle.dumps(bomb)
    chunk = b"\0" + data
    entry = forge.entry(":asset:model.pkl", "uint8", [len(data)], chunk)
    reader = Reader(forge.sealed(forge.index(entry, assets={"model.pkl": ":asset:model.pkl"}), chunk))
    assert read_asset(reader, "model.pkl") == data and not bomb.path.exists()


@pytest.mark.parametrize("dtype", ["object", "O", "V8", "U4", "datetime64", "complex64", "str", "|O", "<f4", "float"])
def test_no_type_of_numpy_is_taken_by_its_name(dtype: str, refused: Any) -> None:
    refused("no known type", Reader, forge.lone(b"\0abc", dtype))


def test_the_source_opens_no_pickle_and_evaluates_nothing() -> None:
    calls = {"eval", "exec", "compile", "__import__"}
    modules = {"pickle", "marshal", "shelve", "dill", "joblib"}
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                found += [(path.name, name) for name in names if name.split(".")[0] in modules]
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                numpy_alone = ast.unparse(node).endswith("allow_pickle=False)") and name in ("np.load", "numpy.load")
                if name in calls | {"torch.load", "np.load", "numpy.load"} and not numpy_alone:
                    found.append((path.name, name))
    assert not found


def test_what_lies_beside_a_file_is_not_imported(tmp_path: Path) -> None:
    """Large files are read by further processes, started where the user happens to be."""
    for name in ("json", "numpy", "lilliput", "zstandard", "constriction", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('gone off', 'w')\n", encoding="utf-8")
    (tmp_path / "net.lil").write_bytes(golden.ANSWER.read_bytes())
    code = (
        "from lilliput.file.container import Reader; from lilliput.file.parallel import read_all;"
        "reader = Reader('net.lil'); read_all(reader, reader.names(), workers=2)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)
    assert not (tmp_path / "gone off").exists()
