"""An argument that is no tensor (a flag, a size, a text) is a constant of what is exported, and another value of it
was ignored in silence (pytorch#157734).

Right: calibration batches must agree on it, and what was built refuses another value, or none where the module would
then take a default of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.errors import InputError

QUICK = lp.targets.OnnxRuntime(threads=1, seconds=1)


class Scaled(nn.Linear):
    def forward(self, x: Tensor, strength: float = 1.0, mode: str = "plain", mask: Tensor | None = None) -> Tensor:
        out = super().forward(x) * strength
        return out if mask is None else out * mask


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any, Tensor]:
    torch.manual_seed(0)
    net, x = Scaled(64, 64).eval(), torch.randn(8, 64)
    path: Path = tmp_path_factory.mktemp("scaled") / "net.lil"
    lp.save(path, net, example={"x": x, "strength": 0.5})
    return net, lp.open(path), x


@pytest.mark.parametrize(
    "given", [{"strength": 0.5}, {"strength": 0.5, "mode": "plain"}, {"strength": 0.5, "mask": None}]
)
def test_the_value_it_was_built_with_is_taken(built: tuple[nn.Module, Any, Tensor], given: dict[str, Any]) -> None:
    net, run, x = built
    close(run(x=x, **given), net(x, 0.5), atol=1e-5)
    close(run(x, **given), net(x, 0.5), atol=1e-5)  # by position or by keyword


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"strength": 9.0}, "strength: is 9.0, and was 0.5"),
        ({}, "strength: is not given, and was 0.5"),
        ({"strength": 0.5, "mode": "other"}, "mode: is 'other', and was 'plain'"),
        ({"strength": 0.5, "other": 1}, "other: is 1; leave it out"),
        ({"strength": torch.tensor(0.5)}, "called with 'x', 'strength'"),
        ({"strength": 0.5, "mask": torch.ones(64)}, "called with 'x', 'strength', 'mask'"),
    ],
)
def test_another_value_is_refused(built: tuple[nn.Module, Any, Tensor], given: dict[str, Any], told: str) -> None:
    _, run, x = built
    with pytest.raises(InputError) as refused:
        run(x=x, **given)
    assert told in str(refused.value)


@pytest.mark.parametrize("field", ["calibrate", "evaluate"])
def test_batches_agree_on_it(field: str) -> None:
    x = torch.randn(8, 64)
    batches = [{"x": x, "strength": 0.5}, {"x": x, "strength": 1.0}]
    with pytest.raises(InputError, match=rf"{field}\[1\]: input 'strength' is 1.0, and 0.5 in the example"):
        lp.compress(lp.Task(Scaled(64, 64), example=batches[0], **{field: batches}), target=QUICK)


@pytest.mark.parametrize("odd", [float("nan"), object(), [object()], {"k": {1: 2}}])
def test_what_cannot_be_written_into_a_file_is_named(odd: Any) -> None:
    with pytest.raises(InputError, match="input 'strength' is"):
        lp.compress(lp.Task(Scaled(64, 64), example={"x": torch.ones(1, 64), "strength": odd}), target=QUICK)


def test_the_remedy_works(tmp_path: Path) -> None:
    """A value that varies is given as a tensor."""
    net = Scaled(64, 64).eval()
    batches = [{"x": torch.randn(8, 64), "strength": torch.full((8, 1), s)} for s in (0.5, 2.0)]
    lp.save(tmp_path / "net.lil", net, example=batches[0])
    run = lp.open(tmp_path / "net.lil")
    for batch in batches:
        close(run(**batch), net(**batch), atol=1e-5)
