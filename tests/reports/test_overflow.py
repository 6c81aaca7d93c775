"""Processors without VNNI, where sums of products of 8-bit integers overflow in the runtime's own kernels.

Found by the grammar: on one, `compress(nn.Linear(8, 8), …)` with nothing but defaults was refused with "please report
the layers that differ". Right is a remedy that works: weights of seven bits cannot overflow.
"""

from __future__ import annotations

import math

import pytest
import torch
from compared import close
from torch import nn

import lilliput as lp
from lilliput.engine import evidence
from lilliput.errors import ExportError
from lilliput.measure.environment import Cpu

TARGETS = [lp.targets.OnnxRuntime(threads=1, seconds=1), lp.targets.OpenVino(threads=1, seconds=1)]


def compressed(
    weights: lp.Int, target: lp.targets.OnnxRuntime | lp.targets.OpenVino, activations: lp.Int | None = None
) -> lp.results.Result:
    torch.manual_seed(0)
    net = nn.Linear(64, 64).eval()
    recipe = lp.Recipe([lp.Quantize(weights=weights, activations=activations)])
    return lp.compress(lp.Task(net, calibrate=[torch.randn(4, 64)] * 2), recipe, target=target)


def refused(
    result: lp.results.Result, target: lp.targets.OnnxRuntime | lp.targets.OpenVino, monkeypatch: pytest.MonkeyPatch
) -> str:
    """What is said as if its integers had overflowed, which on few processors they do."""
    with monkeypatch.context() as strict:
        strict.setattr(evidence, "_LEAST_DB", math.nan)
        strict.setattr(evidence, "told_of_kernels", lambda *given: "its kernels round more than the file says")
        with pytest.raises(ExportError) as error:
            lp.export(result.folder / "again.onnx", result.model, torch.randn(4, 64), target=target)
    return str(error.value)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_the_remedy_is_named_and_works(target: lp.targets.OnnxRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "cpu", lambda: Cpu("", "x86_64", ("avx2",)))
    monkeypatch.setattr(evidence, "_LEAST_DB", -1e9)
    said = refused(compressed(lp.Int(8), target, lp.Int(8)), target, monkeypatch)
    assert "overflow" in said and "give weights=Int(7)" in said
    result, x = compressed(lp.Int(7), target, lp.Int(8)), torch.randn(16, 64)
    run = lp.open(result.save(result.folder / "copy.lil"), threads=1)
    close(run(x), result.model(x).detach(), share=0.02)


def test_it_is_no_reason_without_integers_that_flow_or_with_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_LEAST_DB", -1e9)
    monkeypatch.setattr(evidence, "cpu", lambda: Cpu("", "x86_64", ("avx2",)))
    assert "please report" in refused(compressed(lp.Int(8), TARGETS[0]), TARGETS[0], monkeypatch)
    monkeypatch.setattr(evidence, "cpu", lambda: Cpu("", "x86_64", ("avx2", "avx512_vnni")))
    assert "please report" in refused(compressed(lp.Int(8), TARGETS[0], lp.Int(8)), TARGETS[0], monkeypatch)
