"""The library of the ANS coder is missing on some systems: files are read by Python itself, and coded *fast*."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import lilliput as lp
from lilliput.entropy import ans
from lilliput.entropy.model import fit
from lilliput.errors import FormatError
from lilliput.file.container import Part, Reader, write
from lilliput.file.second import Second

BLOCKED = "import sys; sys.modules['constriction'] = None\n"


def without(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a process prints that cannot import the library."""
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-c", BLOCKED + code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)


def codes(count: int, spread: float) -> np.ndarray:
    drawn = np.random.default_rng(count).normal(0, spread, count)
    return np.clip(np.round(drawn), -128, 127).astype(np.int8)


@pytest.mark.parametrize("spread", [0.3, 2.0, 40.0])
@pytest.mark.parametrize("count", [2, 3, 50, 20_000])
def test_python_reads_what_the_library_wrote(count: int, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.append(codes(count, spread), [0, 1]).view(np.uint8)  # two symbols at least
    model = fit(np.bincount(symbols, minlength=256))
    data = ans.encode(symbols, model)
    by_library = ans.decode(data, model, len(symbols))
    monkeypatch.setattr(ans, "library", None)
    assert np.array_equal(by_library, symbols)
    assert np.array_equal(ans.decode(data, model, len(symbols)), symbols)
    for wrong in (data + b"\1\0\0\0", data[1:], data + bytes(4)):
        with pytest.raises(FormatError):
            ans.decode(wrong, model, len(symbols))


def test_a_dense_file_is_read_without_the_library(tmp_path: Path) -> None:
    held = {"codes": codes(70_000, 12.0), "floats": codes(9_000, 9.0).astype(np.float32) / 7}
    write(tmp_path / "net.lil", {"kind": "answer"}, [Part.of(name, x) for name, x in held.items()])
    code = (
        "import numpy as np; from lilliput.file.container import Reader; from lilliput.file.inspect import verify\n"
        "reader = Reader('net.lil'); np.savez('read.npz', **{name: reader.read(name) for name in reader.names()})\n"
        "print(len(verify('net.lil')))"
    )
    assert without(code, tmp_path).stdout == "5\n"
    with np.load(tmp_path / "read.npz") as read:
        assert all(np.array_equal(read[name], x) for name, x in held.items())


def test_what_is_written_without_it_is_fast_and_told(tmp_path: Path) -> None:
    x = codes(70_000, 12.0)
    save_file({"weight": x}, tmp_path / "net.safetensors")
    command = "from lilliput.cli import main; sys.argv[1:] = {}; main()"
    packed = without(command.format(["pack", "net.safetensors", "-o", "net.lil"]), tmp_path)
    note = "note: net.lil: coded fast in place of dense: constriction is not installed; pip install constriction"
    assert packed.stderr.count("note:") == packed.stderr.splitlines().count(note) == 1
    asked = ["pack", "net.safetensors", "-o", "again.lil", "--coder", "fast", "--json"]
    told = without(command.format(asked), tmp_path)
    assert "note:" not in told.stderr and json.loads(told.stdout)["coder"] == "fast"
    dense = write(tmp_path / "dense.lil", {"kind": "answer"}, [Part.of("weight", x)])
    fast = Reader(tmp_path / "net.lil").entries["weight"]
    assert dense.coder == "dense" and dense.entries[0].stored_bytes < fast.stored_bytes < x.nbytes
    assert Second(tmp_path / "net.lil").tensor("weight")[2] == x.tobytes()
    without(command.format(["unpack", "net.lil", "-o", "out"]), tmp_path)
    assert np.array_equal(load_file(tmp_path / "out" / "net.safetensors")["weight"], x)


def test_the_report_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(ans, "library", None)
    with pytest.warns(UserWarning, match="coded fast in place of dense: constriction is not installed"):
        small = lp.compress(torch.nn.Linear(64, 64), calibrate=[torch.randn(8, 64)], folder=tmp_path, measure=False)
    assert "pip install constriction" in small.data["coded"]
    assert "larger than it could be" in (tmp_path / "report.html").read_text("utf-8")
    monkeypatch.undo()
    kept = lp.compress(torch.nn.Linear(64, 64), calibrate=[torch.randn(8, 64)], measure=False)
    assert kept.data["coded"] == ""
