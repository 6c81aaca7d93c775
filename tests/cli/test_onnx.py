"""A network that comes as an ONNX file, from the shell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper, save

Run = Callable[..., Any]
RNG = np.random.default_rng(0)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    weight = numpy_helper.from_array(RNG.standard_normal((64, 96)).astype(np.float32), "dense.weight")
    inputs = [helper.make_tensor_value_info("x", 1, ["samples", 64])]
    outputs = [helper.make_tensor_value_info("y", 1, ["samples", 96])]
    node = helper.make_node("MatMul", ["x", "dense.weight"], ["y"])
    save(helper.make_model(helper.make_graph([node], "net", inputs, outputs, [weight])), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    np.savez(tmp_path / "inputs.npz", x=RNG.standard_normal((40, 64)).astype(np.float32))
    return tmp_path / "inputs.npz"


def test_it_is_compressed(lilliput: Run, net: Path, arrays: Path, tmp_path: Path) -> None:
    done = lilliput("compress", net, "--inputs", arrays, "-o", tmp_path / "out", "--seconds", 0, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "net"
    assert (tmp_path / "out" / "net.onnx").stat().st_size < net.stat().st_size / 2
    planned = lilliput("compress", net, "--inputs", arrays, "--dry-run", "--json")
    assert [layer["path"] for layer in json.loads(planned.stdout)["layers"]] == ["dense.weight"]


def test_what_is_missing_is_told(lilliput: Run, net: Path, arrays: Path, task: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    (tmp_path / "no.npz").write_bytes(b"no")
    for given, said in (
        ((net,), "needs inputs to calibrate with; give --inputs FILE.npz, made by numpy.savez(file, x=…)"),
        ((net, "--inputs", tmp_path / "other.npz"), "holds z; name the arrays x"),
        ((net, "--inputs", tmp_path / "no.npz"), "holds no arrays"),
        ((tmp_path / "gone.onnx", "--inputs", arrays), "there is no such file"),
        ((task, "--inputs", arrays), "goes with an ONNX file"),
    ):
        done = lilliput("compress", *given, "-o", tmp_path / "out")
        assert done.exit_code == 2 and said in " ".join(done.stderr.split()), done.stderr
