"""Progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console

from lilliput.cli.progress import Bars, Lines

STAGES = [
    ("calibrating", 8, 16),
    ("calibrating", 16, 16),
    ("timing", 0, 1),
    ("timing", 1, 1),
    ("calibrating", 8, 8),
]


def _shown(kind: type[Bars] | type[Lines], terminal: bool) -> str:
    stream = io.StringIO()
    with kind(Console(file=stream, force_terminal=terminal, width=100)) as progress:
        for stage in STAGES:
            progress(*stage)
    return stream.getvalue()


def test_a_bar_for_each_stage() -> None:
    shown = _shown(Bars, terminal=True)
    last = shown.rpartition("\x1b[2K")[2] or shown
    assert last.count("calibrating") == 2 and last.count("timing") == 1
    assert "16/16" in last and "━" in last and "0:00:00" in last


def test_plain_lines() -> None:
    shown = _shown(Lines, terminal=False)
    assert "\x1b" not in shown and "━" not in shown
    stages = [line.partition(",")[0] for line in shown.splitlines()]
    assert stages == [
        "calibrating",
        "calibrating: 16 of 16",
        "timing",
        "timing: 1 of 1",
        "calibrating",
        "calibrating: 8 of 8",
    ]


def test_the_time_left_of_a_long_stage() -> None:
    stream = io.StringIO()
    with Lines(Console(file=stream, width=100), every_s=0.02) as progress:
        for done in range(5):
            progress("training", done, 4)
            time.sleep(0.03)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training" and lines[-1].startswith("training: 4 of 4, ")
    assert [re.sub(r"\d+ s", "0 s", line) for line in lines[1:-1]] == [
        f"training: {i} of 4, 0 s left" for i in (1, 2, 3)
    ]
