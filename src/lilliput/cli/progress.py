"""Progress on stderr: a bar for each stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text


@dataclass
class Stage:
    """How far a stage is, and the time that it took; that of stages in between is not its own."""

    first: int  # done when it was first told
    done: int
    total: int
    told_s: float = 0.0  # its own time until it was last told
    since: float | None = None  # when that was, while it is at work

    @property
    def taken_s(self) -> float:
        return self.told_s + (0.0 if self.since is None else perf_counter() - self.since)

    @property
    def left_s(self) -> float | None:
        """At the pace so far; None before there is one."""
        gone = self.done - self.first
        return self.told_s / gone * (self.total - self.done) if gone else None


class Stages:
    """The stages that were told by name. They may take turns: one that was not done goes on when it is told again.

    The time before a report belongs to the stage that it is of.
    """

    def __init__(self) -> None:
        self._known: dict[str, Stage] = {}
        self._last, self._at = Stage(0, 0, 0), 0.0

    def told(self, name: str, done: int, total: int) -> tuple[Stage, bool]:
        """The stage that a report is of, and whether it begins with it."""
        now, stage = perf_counter(), self._known.get(name)
        begins = stage is None or done < stage.done or (stage is not self._last and stage.done == stage.total)
        if stage is None or begins:
            stage = self._known[name] = Stage(done, done, total)
        else:
            stage.told_s += now - self._at
        self._last.since = None
        stage.done, stage.total, stage.since = done, total, now if done < total else None
        self._last, self._at = stage, now
        return stage, begins


class Bars:
    """One bar a stage, with the time that it took and the time left."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        taken, left = _Time("elapsed", lambda stage: stage.taken_s), _Time("remaining", lambda stage: stage.left_s)
        self._bars = Progress(*columns, taken, left, console=console)
        self._stages, self._ids = Stages(), dict[str, TaskID]()

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        stage, begins = self._stages.told(name, done, total)
        if begins:
            self._ids[name] = self._bars.add_task(name, total=total, stage=stage)
        self._bars.update(self._ids[name], completed=done, total=total)


class _Time(ProgressColumn):
    """Seconds of a stage, as h:mm:ss."""

    def __init__(self, name: str, seconds: Callable[[Stage], float | None]) -> None:
        super().__init__()
        self._style, self._seconds = f"progress.{name}", seconds

    def render(self, task: Task) -> Text:
        seconds = self._seconds(task.fields["stage"])
        return Text("-:--:--" if seconds is None else str(timedelta(seconds=int(seconds))), self._style)


class Lines:
    """A line when a stage begins, one when it is done, and on the way one a minute with the time left."""

    def __init__(self, console: Console, every_s: float = 60.0) -> None:
        self._console, self._every_s = console, every_s
        self._stages, self._printed = Stages(), 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, name: str, done: int, total: int) -> None:
        stage, begins = self._stages.told(name, done, total)
        if begins:
            self._print(name)
        if done == total:
            self._print(f"{name}: {total} of {total}, {stage.taken_s:.1f} s")
        elif stage.left_s is not None and perf_counter() - self._printed >= self._every_s:
            self._print(f"{name}: {done} of {total}, {stage.left_s:.0f} s left")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._printed = perf_counter()


def shown() -> Bars | Lines:
    """What suits stderr."""
    console = Console(file=sys.stderr)
    return Bars(console) if console.is_terminal else Lines(console)
