"""Latencies of several subjects, taken in turns so that a drifting machine favours none.

Other work on the machine makes calls longer, and long calls more so than short ones, so a ratio is off as well. Three
things stand against that: of the calls of a round a fast one counts; beside the time that went by stands the time that
the processor worked for us; and the processor time that others used tells when neither can be trusted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Protocol, runtime_checkable

import numpy as np

from lilliput.errors import MeasureError, nearest
from lilliput.measure.energy import Energy
from lilliput.measure.measurement import Measurement
from lilliput.measure.statistics import median, median_ratio

_FAST = 0.25  # quantile of the calls of a round that stands for it: what disturbs makes calls longer, never shorter
_BUSY_CORES, _BUSY_SHARE = 0.2, 0.02  # of other processes, in cores and of all of them: up to the larger is no matter
_APART = 1.1  # the time that went by over the processor's, on one thread: with more, calls waited
_TAILS = {"p50": (0.5, 1), "p95": (0.95, 20), "p99": (0.99, 100)}  # and from how many calls on each says something
_CROWDED_CORES = 0.5  # of other processes beyond those left over: the threads of a call then wait for one another
_SURE_ROUNDS, _SURE_CALLS, _SURE = 8, 100, 0.05  # from when rounds may end, and the width of a ratio's interval then
_MANY_CALLS, _LEAST_SHARE = 1000, 0.3  # calls that are enough for a round, and the least of its time that it then takes


def others_seconds() -> float:
    """Processor seconds that all but this process have used since the machine started; NaN where unknown.

    What a host of virtual machines gave to others instead (steal) counts with them.
    """
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return math.nan
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, statistics.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - process_time()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@runtime_checkable
class Distant(Protocol):
    """A subject in another process, which calls itself there: a message for each call would count as its time."""

    def calls_s(self, seconds: float) -> list[float]:
        """Seconds of each call, called again until `seconds` are over, and once at least."""
        ...


@dataclass(frozen=True)
class Clocks:
    """What tells seconds (those that went by, those of processors in this process and in all others), and joules."""

    wall: Callable[[], float] = perf_counter
    own: Callable[[], float] = process_time
    others: Callable[[], float] = others_seconds  # NaN where unknown
    joules: Callable[[], float] = field(default_factory=Energy)  # of the processor; NaN where unknown
    cores: int = field(default_factory=_cores)


@dataclass(frozen=True)
class Latencies:
    """What each subject took in each round, in ms a call, and what is known of the conditions.

    `disturbance` says what makes the figures doubtful: then they have no interval, and where not even the figures can
    be right, `known` is false. Without rounds nothing was timed, and `untimed` says why.

    >>> taken = Latencies({"fp32": (2.0, 4.0, 2.2), "int8": (1.0, 2.0, 1.1)})
    >>> taken.ms("fp32").value, taken.ratio("fp32", "int8").value
    (2.2, 2.0)
    >>> busy = Latencies({"fp32": (2.0, 4.0, 2.2), "int8": (1.0, 2.0, 1.1)}, others_cores=1.5, cores=2)
    >>> busy.disturbance, busy.known
    ('other work kept 1.5 of 2 cores busy', False)
    """

    rounds_ms: Mapping[str, tuple[float, ...]]  # that went by
    others_cores: float | None = None  # cores that other processes kept busy meanwhile; None where unknown
    processor_ms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of all threads of this process
    processors: float | None = None  # that this process kept at work meanwhile; None where unknown
    threads: int | None = None  # that a call works with; None where unknown
    cores: int = 1
    untimed: str = ""
    calls: Mapping[str, int] = field(default_factory=dict)  # that were timed, in all rounds
    tails_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # single calls: p50, p95, p99 (if enough)
    joules: Mapping[str, float] = field(default_factory=dict)  # a call, of the whole processor; none where unknown

    @property
    def timed(self) -> bool:
        return bool(self.rounds_ms) and all(self.rounds_ms.values())

    @property
    def rounds(self) -> int:
        return min(map(len, self.rounds_ms.values()), default=0)

    @property
    def disturbance(self) -> str:
        """What disturbed the timing, in words; empty where nothing is known to have."""
        busy = self.others_cores or 0.0
        if busy > max(_BUSY_CORES, _BUSY_SHARE * self.cores):
            return f"other work kept {busy:.1f} of {self.cores} cores busy"
        apart = [self._apart(name) for name in self.rounds_ms]
        if max(apart, default=1.0) > _APART:
            return f"{1 - 1 / max(apart):.0%} of the time no processor worked for it"
        if self.threads == 1 and (self.processors or 0.0) > _APART:
            return "other threads of this process were at work"
        return ""

    @property
    def known(self) -> bool:
        """Whether the figures can be told at all.

        On one thread the processor's time stands for a call that others held up. Of several threads, each waits for
        the last, and some spin while they wait: there is nothing to go by once others want their cores.
        """
        if not self.timed:
            return False
        left = self.cores - (self.threads or self.cores)
        return self.threads == 1 or (self.others_cores or 0.0) <= left + _CROWDED_CORES

    def ms(self, name: str) -> Measurement:
        """The median over rounds, in ms a call."""
        return replace(self._sure(median(self._of(name))), unit="ms")

    def ratio(self, slow: str, fast: str) -> Measurement:
        """How many times faster `fast` is than `slow`: the median over rounds of their ratio in one round."""
        return self._sure(median_ratio(self._of(slow), self._of(fast)))

    def tail_ms(self, name: str) -> Mapping[str, float]:
        """What single calls took: "p50", "p95" and "p99" of them, each where there are calls enough.

        Empty where something disturbed the timing, for that is first seen in the slowest calls.
        """
        return {} if self.disturbance else self.tails_ms.get(name, {})

    def _sure(self, found: Measurement) -> Measurement:
        """Without its interval, which would lie, where something disturbed the timing."""
        return replace(found, low=-math.inf, high=math.inf) if self.disturbance else found

    def _of(self, name: str) -> Sequence[float]:
        """A figure for each round: both kinds of time are too long where something disturbs, so the shorter."""
        if name not in self.rounds_ms:
            raise MeasureError(f"no subject {name!r} was timed", next=nearest(name, self.rounds_ms))
        went_by = self.rounds_ms[name]
        if not (self.disturbance and self._one_thread(name)):
            return went_by
        return [min(both) for both in zip(went_by, self.processor_ms[name], strict=True)]

    def _one_thread(self, name: str) -> bool:
        return self.threads == 1 and all(ms > 0 for ms in self.processor_ms.get(name, (0.0,)))

    def _apart(self, name: str) -> float:
        """How many times longer calls took than a processor worked for them; 1 where that tells nothing."""
        if not self._one_thread(name):
            return 1.0
        return median_ratio(self.rounds_ms[name], self.processor_ms[name]).value


def interleaved(
    subjects: Mapping[str, Callable[[], object] | Distant],
    *,
    rounds: int = 20,
    warmup_s: float = 0.2,
    settle_s: float = 0.07,
    round_s: float = 0.1,
    budget_s: float = 60.0,
    threads: int | None = None,
    clocks: Clocks | None = None,
) -> Latencies:
    """Time `subjects` in turns: in each round each is called for `settle_s` unmeasured, then for `round_s`.

    A subject's figure in a round is the lower quartile of its calls. The unmeasured calls (one at least) let caches
    warm and the other's threads stop spinning: after ONNX Runtime, torch's mean call was seen doubled for 60 ms.
    Where a thousand calls take less than `round_s`, both are shorter, down to three tenths: on ONNX Runtime as exact.
    The order changes from round to round. There are up to `rounds`, fewer once every ratio to the first subject has
    an interval of 5 % (after eight rounds, and 100 calls of each); it is the width that ends them, whatever the ratio.
    No round starts that would end after `budget_s`, going by the one before. A subject must return when its work is
    done: synchronise a GPU inside it. `threads`: that a call works with; only of one thread is the processor's time
    compared with the time that went by. Subjects that run in another process come with its `clocks`.

    Raises MeasureError naming the subject that failed, or when no round fits the budget.

    >>> quick = dict(rounds=2, warmup_s=0, settle_s=0, round_s=0)
    >>> interleaved({"a": lambda: sum(range(10)), "b": lambda: None}, **quick).ms("a").unit
    'ms'
    """
    if not subjects:
        raise MeasureError("there is nothing to time: no subjects")
    clocks = clocks or Clocks()
    timers = {name: _Timer(name, call, clocks) for name, call in subjects.items()}
    began = clocks.wall()
    warm = {name: timer.calls_s(warmup_s) for name, timer in timers.items()}
    share = _share(max(median(calls).value for calls in warm.values()), round_s)
    settle_s, round_s = share * settle_s, share * round_s
    pace_s = sum(max(2 * calls[-1], settle_s + round_s) for calls in warm.values())
    for index in range(rounds):
        round_began = clocks.wall()
        if round_began - began + pace_s > budget_s:
            break
        for name in _order(list(timers), index):
            timers[name].round(settle_s, round_s)
        pace_s = clocks.wall() - round_began
        if _sure(list(timers.values())):
            break
    if not all(timer.wall_ms for timer in timers.values()):
        raise MeasureError(
            f"no round of timing fits in {budget_s:g} s",
            why=f"warming up took {round_began - began:.2g} s, and a round would take about {pace_s:.2g} s",
            next="give it more seconds, or a smaller example",
        )
    return Latencies(
        {name: tuple(timer.wall_ms) for name, timer in timers.items()},
        _most(timer.others_cores for timer in timers.values()),
        {name: tuple(timer.own_ms) for name, timer in timers.items()},
        max(timer.processors for timer in timers.values()),
        threads,
        clocks.cores,
        "",
        {name: len(timer.calls_ms) for name, timer in timers.items()},
        {name: timer.tails_ms() for name, timer in timers.items()},
        {name: timer.joules / len(timer.calls_ms) for name, timer in timers.items() if timer.joules > 0},
    )


def _share(call_s: float, round_s: float) -> float:
    """Of the time of a round, what is enough where the slowest call takes so long."""
    return min(max(_MANY_CALLS * call_s / round_s, _LEAST_SHARE), 1.0) if round_s else 1.0


def _sure(timers: Sequence[_Timer]) -> bool:
    """Whether more rounds would say nothing else: each ratio to the first is known closely."""
    if len(timers[0].wall_ms) < _SURE_ROUNDS or min(len(one.calls_ms) for one in timers) < _SURE_CALLS:
        return False
    ratios = [median_ratio(timers[0].wall_ms, one.wall_ms) for one in timers[1:]] or [median(timers[0].wall_ms)]
    return all(one.high - one.low <= _SURE * one.value for one in ratios)


def _most(cores: Iterable[float]) -> float | None:
    """What the subject had beside it that had most: others may have worked beside one alone."""
    most = max(cores)
    return most if math.isfinite(most) else None


@dataclass
class _Timer:
    """One subject, and what its rounds took."""

    name: str
    call: Callable[[], object] | Distant
    clocks: Clocks
    wall_ms: list[float] = field(default_factory=list)
    own_ms: list[float] = field(default_factory=list)
    calls_ms: list[float] = field(default_factory=list)
    joules: float = 0.0  # NaN where unknown
    _called_s: float = 0.0
    _own_s: float = 0.0
    _spent_s: float = 0.0
    _others_s: float = 0.0

    def round(self, settle_s: float, round_s: float) -> None:
        began, others_began = self.clocks.wall(), self.clocks.others()
        self.calls_s(settle_s)
        own_began, joules_began = self.clocks.own(), self.clocks.joules()
        taken = self.calls_s(round_s)
        own = self.clocks.own() - own_began
        self.joules += self.clocks.joules() - joules_began
        self.calls_ms += [1e3 * seconds for seconds in taken]
        self.wall_ms.append(1e3 * float(np.quantile(taken, _FAST)))
        self.own_ms.append(1e3 * own / len(taken))  # a mean, since some systems count this time in steps of ten ms
        self._called_s, self._own_s = self._called_s + sum(taken), self._own_s + own
        self._others_s += self.clocks.others() - others_began
        self._spent_s += self.clocks.wall() - began

    def tails_ms(self) -> dict[str, float]:
        enough = {name: share for name, (share, least) in _TAILS.items() if len(self.calls_ms) >= least}
        return {name: float(np.quantile(self.calls_ms, share)) for name, share in enough.items()}

    @property
    def processors(self) -> float:
        return self._own_s / self._called_s if self._called_s else 0.0

    @property
    def others_cores(self) -> float:
        return max(self._others_s / self._spent_s, 0.0) if self._spent_s else math.nan

    def calls_s(self, seconds: float) -> list[float]:
        """Seconds of each call, called again until `seconds` are over, and once at least."""
        try:
            return self.call.calls_s(seconds) if isinstance(self.call, Distant) else self._called(self.call, seconds)
        except Exception as error:
            raise MeasureError(f"a timed call failed: {type(error).__name__}: {error}", where=self.name) from error

    def _called(self, call: Callable[[], object], seconds: float) -> list[float]:
        taken: list[float] = []
        began = last = self.clocks.wall()
        while not taken or last - began < seconds:
            call()
            now = self.clocks.wall()
            taken.append(now - last)
            last = now
        return taken


def _order(names: list[str], index: int) -> list[str]:
    """Rotated in every round, reversed in every other turn, so that no subject always follows another."""
    turn, start = divmod(index, len(names))
    rotated = names[start:] + names[:start]
    return rotated[::-1] if turn % 2 else rotated
