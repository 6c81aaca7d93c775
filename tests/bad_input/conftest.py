"""Tiny nets and tasks, and the one question of this folder: is it refused, clearly, with nothing harmed?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import tensor_digest
from lilliput.errors import LilliputError

QUICK = lp.targets.OnnxRuntime(seconds=1.5)  # some rounds of timing instead of twenty


class Net(nn.Module):
    """A convolution, a normalisation with its buffers, a dropout, a linear layer; left in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:  # [n, 8, 4, 4] -> [n, 4]
        out: Tensor = self.fc(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))
        return out


def snapshot(model: Any) -> Any:
    """All that must not change: every bit of every tensor, classes, modes, hooks, identities, gradients."""
    if not isinstance(model, nn.Module):
        return model
    return (
        {name: tensor_digest(x) for name, x in model.state_dict().items()},
        [
            (type(part), part.training, len(part._forward_hooks), len(part._forward_pre_hooks))
            for part in model.modules()
        ],
        [(id(p), p.requires_grad, p.grad is None) for p in model.parameters()],
        [sorted(part.__dict__) for part in model.modules()],
    )


def left_behind(folder: Path | None) -> list[str]:
    """Results and unfinished files in `folder`; what is kept for resuming does not count."""
    if folder is None or not folder.is_dir():
        return []
    unfinished = [path.name for path in folder.rglob("*.part")] + [path.name for path in folder.rglob(".*")]
    return unfinished + [path.name for path in folder.iterdir() if path.name != "work"]


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 8, 4, 4, generator=generator) for _ in range(4)]


@pytest.fixture(scope="session")
def _net() -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(4, 8, 4, 4))  # the buffers leave their first values
    return net


@pytest.fixture
def net(_net: nn.Module) -> nn.Module:
    return copy.deepcopy(_net)


@pytest.fixture
def task(net: nn.Module, batches: list[Tensor]) -> Callable[..., lp.Task]:
    """A sound task; give the fields that are to be unsound."""
    return lambda **fields: lp.Task(**{"model": net, "calibrate": batches, **fields})


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., LilliputError]:
    """Compress: refused by just that kind of error, with nothing harmed or left; returns the error."""

    def refused(
        kind: type[LilliputError],
        task: Any,
        recipe: Any = None,
        folder: Path | None = tmp_path / "out",
        target: Any = QUICK,
        left: tuple[str, ...] = (),
    ) -> LilliputError:
        model = task.model if isinstance(task, lp.Task) else task
        before = snapshot(model)
        with pytest.raises(LilliputError) as caught:
            lp.compress(task, recipe, folder=folder, target=target)
        error = caught.value
        assert type(error) is kind, repr(error)
        assert error.what and (error.where or error.why or error.next), str(error)
        assert len(str(error)) < 500 and "\n" not in str(error)
        assert snapshot(model) == before
        assert sorted(left_behind(folder)) == sorted(left)
        return error

    return refused


@pytest.fixture(scope="session")
def snapshot_of() -> Callable[[Any], Any]:
    return snapshot


@pytest.fixture(scope="session")
def quick() -> lp.targets.OnnxRuntime:
    return QUICK
