"""A task file, and the command as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lilliput.cli.app import app

TASK = """
import torch
from torch import nn

import lilliput as lp

print("this is the task speaking")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(256, 64)
        self.table = nn.Parameter(torch.randn(64, 64) / 8)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1)) @ self.table


torch.manual_seed(0)
task = lp.Task(Net(), calibrate=[torch.randn(4, 8, 4, 4) for _ in range(4)], name="tiny")
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "tiny_task.py"
    path.write_text(TASK)
    return path


@pytest.fixture
def lilliput() -> Callable[..., Any]:
    """Run the command with these arguments; what it printed and its exit code."""
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
