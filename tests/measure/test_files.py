from __future__ import annotations

from pathlib import Path

import pytest

from lilliput.errors import MeasureError
from lilliput.measure import artifact


def test_a_file_and_a_folder_weigh_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"x" * 100)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "net.data").write_bytes(b"x" * 11)
    assert artifact(tmp_path / "net.onnx", "onnx", "onnxruntime") == {
        "format": "onnx",
        "bytes": 100,
        "runs_on": "onnxruntime",
    }
    assert artifact(tmp_path, "onnx", "onnxruntime")["bytes"] == 111


def test_a_missing_file_is_named_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"^gone\.onnx: there is no such file"):
        artifact(tmp_path / "gone.onnx", "onnx", "onnxruntime")
