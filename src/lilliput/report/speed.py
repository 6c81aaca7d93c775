"""How fast a result is, in words that claim no more than the timing knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lilliput.measure import Latencies, Measurement
from lilliput.targets.operators import LayerTimes
from lilliput.targets.target import NOT_HERE

NO_SPEED_UP = 1.05  # less than this many times faster counts as none, and less than this many times slower as no loss
_NAMED = 3  # layers that take longer, worst first


@dataclass(frozen=True)
class Speed:
    """The ratio as far as it is known, and what a reader is told of it."""

    faster: Measurement | None  # None: not timed, or not known
    verdict: str  # "2.41× faster", "about 1.20× slower", "no speed-up", "not timed", "not run here", "not known"
    because: str = ""

    @property
    def told(self) -> str:
        return f"{self.verdict}: {self.because}" if self.because else self.verdict

    @property
    def clause(self) -> str:
        """The end of a sentence that began with "the file"."""
        if self.faster is None:
            untimed = self.verdict in ("not timed", NOT_HERE)
            return f"{'was' if untimed else 'its speed is'} {self.verdict} ({self.because})"
        if self.faster.open:
            return f"runs {self.verdict} ({self.doubt})"
        interval = self._interval(self.faster)
        if self.verdict == "no speed-up":
            return f"runs with no speed-up ({self.faster.value:.2f}×, {interval})"
        return f"runs {self.verdict} ({interval})"

    @property
    def doubt(self) -> str:
        return f"no interval: {self.because.partition('; ')[0]}"

    def _interval(self, faster: Measurement) -> str:
        if not self.verdict.endswith("slower"):
            return faster.interval("{:.2f}".format)
        return Measurement(1 / faster.value, _inverse(faster.high), _inverse(faster.low), faster.samples).interval(
            "{:.2f}".format
        )

    @property
    def gained(self) -> float:
        """How many times faster it is for certain; 0 where nothing is."""
        return 0.0 if self.faster is None or self.faster.open else max(self.faster.low, 0.0)


def _inverse(x: float) -> float:
    return 1 / x if x > 0 else float("inf")


def speed(
    taken: Latencies, rows: Sequence[Mapping[str, Any]], losing: Sequence[LayerTimes], untried: str = ""
) -> Speed:
    """What is known about the speed of a result whose layers are `rows`; `losing` take longer than before.

    `untried`: why nobody looked whether float would have been faster, where it was to be looked at.
    """
    if taken.untimed == NOT_HERE:
        return Speed(None, NOT_HERE, "no times")
    if not taken.timed:
        return Speed(None, "not timed", taken.untimed)
    doubt = taken.disturbance
    if not taken.known:
        return Speed(None, "not known", f"{doubt} while it was timed on {taken.threads or 'all'} threads")
    faster = taken.ratio("before", "after")
    doubts = [f"{doubt} while it was timed"] if doubt else ["it was timed in one round"] if faster.open else []
    verdict = _verdict(faster)
    if not verdict.endswith("faster"):
        doubts += [_why(verdict, rows, losing), untried and f"that float is faster was not tried ({untried})"]
    return Speed(faster, verdict, "; ".join(filter(None, doubts)))


def _verdict(faster: Measurement) -> str:
    """In words; a difference within its own interval is none."""
    low, high = (faster.value, faster.value) if faster.open else (faster.low, faster.high)
    about = "about " if faster.open else ""
    if low >= NO_SPEED_UP:
        return f"{about}{faster.value:.2f}× faster"
    if faster.value <= 1 / NO_SPEED_UP and high < 1:
        return f"{about}{1 / faster.value:.2f}× slower"
    return f"about as fast, {faster.value:.2f}×" if faster.open else "no speed-up"


def _why(verdict: str, rows: Sequence[Mapping[str, Any]], losing: Sequence[LayerTimes]) -> str:
    """Why it is no faster: what was measured, or how the layers run."""
    integer = sum("int8 kernel" in row["runs_as"] for row in rows)
    named = ", ".join(map(_named, losing[:_NAMED]))
    longest = f"longer than before take {named}" if named else ""
    if integer:
        return "; ".join(filter(None, (f"{integer} of {len(rows)} layers run on integers", longest)))
    if verdict.endswith("slower") and longest:
        return f"no layer runs on integers; {longest}"
    if any("decoded to float at each call" in row["runs_as"] for row in rows):
        return "no layer runs on integers, the weights are decoded to float at each call"
    if any("decoded to float" in row["runs_as"] for row in rows):
        return "no layer runs on integers, the runtime decodes the weights to float when it loads them"
    return "no layer runs on integers"


def _named(share: LayerTimes) -> str:
    what = share.layer.removesuffix(".weight") or "what comes before the first layer"
    return f"{what} ({share.before_ms:.3g} → {share.after_ms:.3g} ms: {', '.join(share.kinds[:_NAMED])})"
