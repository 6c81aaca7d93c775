"""Latencies of several subjects, taken in turns so that a drifting machine favours none."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from lilliput.errors import MeasureError, nearest
from lilliput.measure.measurement import Measurement
from lilliput.measure.statistics import median, median_ratio


@dataclass(frozen=True)
class Latencies:
    """What each subject took in each round, in ms a call.

    `others_cores` well above 0 warns that other work disturbed the figures: one other busy process, on 2
    cores with 2 threads, was seen to turn a ratio of 0.82 into 1.5.

    >>> taken = Latencies({"fp32": (2.0, 4.0, 2.2), "int8": (1.0, 2.0, 1.1)})
    >>> taken.ms("fp32").value, taken.ratio("fp32", "int8").value
    (2.2, 2.0)
    """

    rounds_ms: Mapping[str, tuple[float, ...]]
    others_cores: float | None = None  # cores that other processes kept busy meanwhile; None where unknown

    def ms(self, name: str) -> Measurement:
        """The median over rounds, in ms a call."""
        return replace(median(self._of(name)), unit="ms")

    def ratio(self, slow: str, fast: str) -> Measurement:
        """How many times faster `fast` is than `slow`: the median over rounds of their ratio in one round."""
        return median_ratio(self._of(slow), self._of(fast))

    def _of(self, name: str) -> tuple[float, ...]:
        if name not in self.rounds_ms:
            raise MeasureError(f"no subject {name!r} was timed", next=nearest(name, self.rounds_ms))
        return self.rounds_ms[name]


def interleaved(
    subjects: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup_s: float = 0.2,
    settle_s: float = 0.07,
    round_s: float = 0.1,
    budget_s: float = 60.0,
) -> Latencies:
    """Time `subjects` in turns: in each round each is called for `settle_s` unmeasured, then for `round_s`.

    A subject's figure in a round is its median call. The unmeasured calls (one at least) let caches warm
    and the other's threads stop spinning: after ONNX Runtime, torch's mean call was seen doubled for 60 ms.
    The order changes from round to round. No round starts that would end after `budget_s`, going by the
    one before. A subject must return when its work is done: synchronise a GPU inside it.

    Raises MeasureError naming the subject that failed, or when no round fits the budget.

    >>> quick = dict(rounds=2, warmup_s=0, settle_s=0, round_s=0)
    >>> interleaved({"a": lambda: sum(range(10)), "b": lambda: None}, **quick).ms("a").unit
    'ms'
    """
    if not subjects:
        raise MeasureError("there is nothing to time: no subjects")
    began, others_began = perf_counter(), _others_seconds()
    warm = {name: _calls_ms(name, call, warmup_s) for name, call in subjects.items()}
    pace_s = sum(max(2 * calls[-1] / 1e3, settle_s + round_s) for calls in warm.values())
    figures: dict[str, list[float]] = {name: [] for name in subjects}
    for index in range(rounds):
        round_began = perf_counter()
        if round_began - began + pace_s > budget_s:
            break
        for name in _order(list(subjects), index):
            _calls_ms(name, subjects[name], settle_s)
            figures[name].append(float(np.median(_calls_ms(name, subjects[name], round_s))))
        pace_s = perf_counter() - round_began
    if not all(figures.values()):
        raise MeasureError(
            f"no round of timing fits in {budget_s:g} s",
            why=f"warming up took {round_began - began:.2g} s, and a round would take about {pace_s:.2g} s",
            next="give it more seconds, or a smaller example",
        )
    others_s = _others_seconds() - others_began
    others_cores = max(others_s / (perf_counter() - began), 0.0) if math.isfinite(others_s) else None
    return Latencies({name: tuple(taken) for name, taken in figures.items()}, others_cores)


def _others_seconds() -> float:
    """Processor seconds that all but this process have used since the machine started; NaN where unknown."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return math.nan
    user, nice, system, _idle, _wait, irq, softirq = map(int, statistics.read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - process_time()


def _order(names: list[str], index: int) -> list[str]:
    """Rotated in every round, reversed in every other turn, so that no subject always follows another."""
    turn, start = divmod(index, len(names))
    rotated = names[start:] + names[:start]
    return rotated[::-1] if turn % 2 else rotated


def _calls_ms(name: str, call: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each call, called again until `seconds` are over, and once at least."""
    taken: list[float] = []
    began = last = perf_counter()
    while not taken or last - began < seconds:
        try:
            call()
        except Exception as error:
            raise MeasureError(f"a timed call failed: {type(error).__name__}: {error}", where=name) from error
        now = perf_counter()
        taken.append((now - last) * 1e3)
        last = now
    return taken
