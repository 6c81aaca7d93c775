"""Every operator that is known computes what the standard's own cases say, or refuses them in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from compared import close, spread
from standard import OURS, answers, cases, right

# what no case of the standard shows alone; files of test_files.py do
_NO_CASE = {"Cast", "CastLike", "ConstantOfShape", "GRU", "If", "LayerNormalization", "Mean", "Not", "Range"}
_NO_CASE |= {"Scatter", "Upsample", "ai.onnx.ml.ArrayFeatureExtractor", "com.microsoft.MatMulNBits"}


@pytest.mark.parametrize("op", OURS)
def test_the_standards_cases(op: str, tmp_path: Path) -> None:
    agreed = 0
    for case in cases().get(op, ()):
        for fixed in (False, True):
            found = answers(case, tmp_path, fixed=fixed)
            if found is None:
                continue
            for name, expected in right(case).items():
                assert found[name].dtype == expected.dtype and found[name].shape == expected.shape, case.name
                _check(torch.from_numpy(found[name].copy()), torch.from_numpy(np.array(expected)), case.name)
            agreed += 1
    assert agreed or op in _NO_CASE, f"{op} is in the table, and none of its cases agrees"


def _check(found: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    if expected.is_floating_point() and 0 < spread(expected) < 1e-5 * float(expected.abs().max()):
        return  # tanh at its end says nothing
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite), name
    assert torch.equal(found[~finite].nan_to_num(), expected[~finite].nan_to_num()), name
    close(found[finite], expected[finite], share=3e-5, msg=name)
