"""Progress on stderr: a bar for each stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from time import perf_counter
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """One bar a stage, with the time left."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._stage, self._bar, self._done = "", TaskID(0), 0

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage or done < self._done:
            self._bar = self._bars.add_task(stage, total=total)
        self._stage, self._done = stage, done
        self._bars.update(self._bar, completed=done, total=total)


class Lines:
    """A line when a stage begins, one when it is done, and on the way one a minute with the time left."""

    def __init__(self, console: Console, every_s: float = 60.0) -> None:
        self._console, self._every_s = console, every_s
        self._stage, self._done, self._first, self._began, self._told = "", 0, 0, 0.0, 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = perf_counter()
        if stage != self._stage or done < self._done:
            self._first, self._began, self._told = done, now, now
            self._print(stage)
        if done == total:
            self._print(f"{stage}: {total} of {total}, {now - self._began:.1f} s")
        elif now - self._told >= self._every_s and done > self._first:
            left = (now - self._began) / (done - self._first) * (total - done)
            self._print(f"{stage}: {done} of {total}, {left:.0f} s left")
            self._told = now
        self._stage, self._done = stage, done

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def shown() -> Bars | Lines:
    """What suits stderr."""
    console = Console(file=sys.stderr)
    return Bars(console) if console.is_terminal else Lines(console)
