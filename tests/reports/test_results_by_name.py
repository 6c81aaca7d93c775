"""What a result is was found by a pattern of names (winml-cli#185): a checkpoint of the user's in the folder, net.pth,
was exported in place of the network.

Right: a result knows its own files, whatever else lies beside them.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import nn

import lilliput as lp


def test_files_of_the_user_are_none_of_the_result(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    net = nn.Linear(64, 64)
    others = ("net.pth", "net.json", "net.onnx.data", "net.bin", "net.kept")
    for name in others:
        (folder / name).write_bytes(b"the user's own")
    small = lp.compress(
        net,
        lp.Recipe([lp.Quantize()]),
        calibrate=[torch.randn(8, 64)],
        folder=folder,
        target=lp.targets.OnnxRuntime(threads=1, seconds=1),
    )
    onnx.checker.check_model(onnx.load(small.export(tmp_path / "deploy.onnx")))
    assert small.export(tmp_path / "again.onnx").read_bytes() == (folder / "net.onnx").read_bytes()
    assert all((folder / name).read_bytes() == b"the user's own" for name in others)
