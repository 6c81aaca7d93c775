"""Progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

import lilliput.cli.progress
from lilliput.cli.progress import Bars, Lines, Stages

STAGES = [
    ("calibrating", 8, 16),
    ("calibrating", 16, 16),
    ("timing", 0, 1),
    ("timing", 1, 1),
    ("calibrating", 8, 8),
]


IN_TURNS = [
    ("training", 1, 4),
    ("training", 2, 4),
    ("validating", 1, 2),
    ("training", 3, 4),
    ("training", 4, 4),
    ("validating", 2, 2),
]


def _shown(kind: type[Bars] | type[Lines], terminal: bool, stages: list[tuple[str, int, int]] = STAGES) -> str:
    stream = io.StringIO()
    with kind(Console(file=stream, force_terminal=terminal, width=100)) as progress:
        for stage in stages:
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


def test_stages_that_take_turns_go_on() -> None:
    last = _shown(Bars, True, IN_TURNS).rpartition("\x1b[2K")[2]
    assert last.count("training") == 1 and last.count("validating") == 1 and "4/4" in last and "2/2" in last
    lines = [line.partition(",")[0] for line in _shown(Lines, False, IN_TURNS).splitlines()]
    assert lines == ["training", "validating", "training: 4 of 4", "validating: 2 of 2"]


def test_the_time_of_a_stage_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(lilliput.cli.progress, "perf_counter", lambda: now)
    stages, spans = Stages(), {"training": 10.0, "validating": 3.0}
    for name, done in [("training", i) for i in range(3)] + [("validating", i) for i in range(3)] + [("training", 3)]:
        now += spans[name]
        stage, begins = stages.told(name, done, 6)
        assert begins == (done == 0)
        assert stage.taken_s == done * spans[name]
        assert stage.left_s == (None if done == 0 else (6 - done) * spans[name])
    now += 5.0
    assert stage.taken_s == 35.0, "it is at work"
    assert stages.told("validating", 3, 6)[0].taken_s == 11.0 and stage.taken_s == 30.0
