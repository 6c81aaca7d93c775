from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from lilliput.errors import MeasureError
from lilliput.measure import Clocks, Latencies, interleaved


class Clock:
    """A machine whose time passes only when a subject works, and whose pace may drift."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slowness = 1.0
        self.calls: list[str] = []

    def subject(self, name: str, seconds: float, drift: float = 1.0) -> Callable[[], object]:
        def work() -> None:
            cold = 3.0 if not self.calls or self.calls[-1] != name else 0.0
            self.calls.append(name)
            self.slowness *= drift
            self.now += (seconds + cold) * self.slowness

        return work

    @property
    def clocks(self) -> Clocks:
        """All of this process' time is of its processor, and nobody else works."""
        return Clocks(lambda: self.now, lambda: self.now, lambda: 0.0, cores=2)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_calls_of_two_and_one_ms_have_a_ratio_of_two(clock: Clock) -> None:
    subjects = {"two": clock.subject("two", 0.002), "one": clock.subject("one", 0.001)}
    taken = interleaved(subjects, rounds=8, warmup_s=0.01, settle_s=0.0, round_s=0.03, clocks=clock.clocks)
    ratio = taken.ratio("two", "one")
    assert (ratio.low, ratio.value, ratio.high) == (pytest.approx(2.0),) * 3
    assert taken.ms("one").value == pytest.approx(1.0)
    assert (taken.ms("one").unit, taken.ms("one").samples) == ("ms", 8)


@pytest.mark.parametrize("factor", [2.0, 1.3])
def test_a_subject_in_another_process_counts_what_it_says_of_its_calls_and_no_message(factor: float) -> None:
    clock = Clock()

    class There:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def calls_s(self, seconds: float) -> list[float]:
            count = max(1, round(seconds / self.seconds))
            clock.now += 0.5 + count * self.seconds  # what it takes to ask, and to be answered
            return [self.seconds] * count

    subjects = {"slow": There(0.001 * factor), "fast": There(0.001)}
    taken = interleaved(subjects, rounds=8, warmup_s=0, settle_s=0, round_s=0.05, clocks=clock.clocks)
    assert taken.ratio("slow", "fast").value == pytest.approx(factor)
    assert taken.ms("fast").value == pytest.approx(1.0)


def test_a_cold_start_after_the_other_subject_does_not_count(clock: Clock) -> None:
    subjects = {"a": clock.subject("a", 0.02), "b": clock.subject("b", 0.01)}
    taken = interleaved(subjects, rounds=5, warmup_s=0, settle_s=0, round_s=0.1, budget_s=1e9, clocks=clock.clocks)
    assert taken.ms("a").high == pytest.approx(20.0)
    assert taken.ms("b").high == pytest.approx(10.0)


def test_a_machine_that_slows_down_does_not_move_the_ratio(clock: Clock) -> None:
    subjects = {"a": clock.subject("a", 0.02, drift=1.006), "b": clock.subject("b", 0.01, drift=1.003)}
    taken = interleaved(subjects, rounds=20, warmup_s=0, settle_s=0, round_s=0.1, budget_s=1e9, clocks=clock.clocks)
    assert taken.rounds_ms["a"][-1] > 1.5 * taken.rounds_ms["a"][0]
    assert taken.ratio("a", "b").value == pytest.approx(2.0, rel=0.03)


def test_each_subject_goes_first_equally_often(clock: Clock) -> None:
    names = ("a", "b", "c")
    subjects = {name: clock.subject(name, 0.01) for name in names}
    interleaved(subjects, rounds=6, warmup_s=0, settle_s=0, round_s=0, budget_s=1e9, clocks=clock.clocks)
    measured = clock.calls[3::2]  # after one warm-up each: one call to settle, one measured
    firsts = measured[::3]
    assert sorted(firsts) == ["a", "a", "b", "b", "c", "c"]
    assert {(x, y) for x, y in pairwise(measured) if x != y} == {(x, y) for x in names for y in names if x != y}


def test_the_budget_bounds_the_whole(clock: Clock) -> None:
    subjects = {"a": clock.subject("a", 1.0), "b": clock.subject("b", 1.0)}
    taken = interleaved(subjects, rounds=1000, warmup_s=0, settle_s=0, round_s=0, budget_s=60, clocks=clock.clocks)
    assert clock.now <= 60
    assert 4 <= taken.ms("a").samples < 10


def test_a_budget_too_small_for_one_round_says_so(clock: Clock) -> None:
    with pytest.raises(MeasureError, match=r"no round of timing fits in 5 s.*give it more seconds"):
        interleaved({"a": clock.subject("a", 10.0)}, budget_s=5, clocks=clock.clocks)


def test_a_failing_subject_is_named() -> None:
    def broken() -> None:
        raise ValueError("no such kernel")

    with pytest.raises(MeasureError, match="int8: a timed call failed: ValueError: no such kernel"):
        interleaved({"fp32": lambda: None, "int8": broken}, rounds=1, warmup_s=0, settle_s=0, round_s=0)


def test_no_subjects_and_unknown_names_are_refused() -> None:
    with pytest.raises(MeasureError, match="no subjects"):
        interleaved({})
    with pytest.raises(MeasureError, match="did you mean 'int8'"):
        Latencies({"int8": (1.0,)}).ms("int_8")


def test_other_work_on_the_machine_is_seen(clock: Clock) -> None:
    others = Clocks(lambda: clock.now, lambda: clock.now, lambda: 0.75 * clock.now, cores=2)
    quick = {"rounds": 2, "warmup_s": 0.0, "settle_s": 0.0, "round_s": 0.0}
    taken = interleaved({"a": clock.subject("a", 1.0)}, clocks=others, **quick)  # type: ignore[arg-type]
    assert taken.others_cores == pytest.approx(0.75)
    assert taken.disturbance == "other work kept 0.8 of 2 cores busy"


def test_percentiles_are_of_single_calls_where_there_are_enough() -> None:
    clock = Clock()

    def slow_now_and_then() -> None:
        clock.calls.append("a")
        clock.now += 0.010 if len(clock.calls) % 20 == 0 else 0.001  # one call of twenty

    taken = interleaved(
        {"a": slow_now_and_then}, rounds=10, warmup_s=0, settle_s=0, round_s=0.1, budget_s=1e9, clocks=clock.clocks
    )
    assert taken.calls["a"] > 500
    told = taken.tail_ms("a")
    assert told["p50"] == pytest.approx(1.0) and told["p99"] == pytest.approx(10.0)
    assert taken.ms("a").value == pytest.approx(1.0)  # which does not show them
    few = interleaved(
        {"a": lambda: setattr(clock, "now", clock.now + 1)},
        rounds=5,
        warmup_s=0,
        settle_s=0,
        round_s=0,
        budget_s=1e9,
        clocks=clock.clocks,
    )
    assert few.calls == {"a": 5} and set(few.tail_ms("a")) == {"p50"}


def test_percentiles_are_not_told_where_others_were_at_work() -> None:
    busy = Latencies({"a": (1.0, 1.0)}, others_cores=1.5, cores=2, threads=1, tails_ms={"a": {"p50": 1.0}})
    assert busy.disturbance and busy.tail_ms("a") == {}


def test_energy_is_told_by_call(clock: Clock) -> None:
    clocks = replace(clock.clocks, joules=lambda: 12.0 * clock.now)  # a processor of 12 watts
    subjects = {"two": clock.subject("two", 0.002), "one": clock.subject("one", 0.001)}
    taken = interleaved(subjects, rounds=4, warmup_s=0.01, settle_s=0.0, round_s=0.03, clocks=clocks)
    assert taken.joules == {"two": pytest.approx(0.024), "one": pytest.approx(0.012)}
    unknown = replace(clock.clocks, joules=lambda: math.nan)
    assert interleaved(subjects, rounds=2, warmup_s=0, settle_s=0, round_s=0.01, clocks=unknown).joules == {}


def test_rounds_end_where_more_would_say_nothing_else(clock: Clock) -> None:
    """Exact calls, a hundred of each: eight rounds tell all. Where rounds differ by a tenth, all are taken."""
    exact = {"two": clock.subject("two", 0.002), "one": clock.subject("one", 0.001)}
    taken = interleaved(exact, warmup_s=0, settle_s=0, round_s=0.1, budget_s=1e9, clocks=clock.clocks)
    assert taken.rounds == 8 and taken.ratio("two", "one").value == pytest.approx(2.0)
    uneven = Clock()

    def work(name: str) -> Callable[[], object]:
        def call() -> None:
            uneven.calls.append(name)
            uneven.now += 0.001 * (1.1 if name == "two" and int(uneven.now) % 2 else 1.0)

        return call

    several = {name: work(name) for name in ("two", "one")}
    taken = interleaved(several, warmup_s=0, settle_s=0.4, round_s=0.3, budget_s=1e9, clocks=uneven.clocks)
    assert taken.rounds == 20


@pytest.mark.parametrize(("call_s", "round_s"), [(1e-5, 0.03), (6e-5, 0.06), (1e-3, 0.1)])
def test_a_round_of_many_quick_calls_is_shorter(call_s: float, round_s: float) -> None:
    """A thousand calls, or three tenths of the time at least."""
    clock = Clock()

    def call() -> None:
        clock.now += call_s

    taken = interleaved({"a": call}, rounds=3, settle_s=0, budget_s=1e9, clocks=clock.clocks)
    assert taken.calls["a"] / 3 * call_s == pytest.approx(round_s, rel=0.05)
