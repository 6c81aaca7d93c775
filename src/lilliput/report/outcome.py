"""Whether what a network had learned is still there."""

from __future__ import annotations

import math

from lilliput.engine.answers import Closeness, Likeness
from lilliput.engine.evidence import Judged

LOST = 0.1  # share of a score, such as an accuracy, whose loss is a harm
GROWN = 0.5  # share by which an error, or a score below zero, gets worse
AGREED = 0.5  # share of samples that must still get the same answer, where there is no metric


def harm(near: Closeness, judged: Judged | None) -> str:
    """What is no longer there, in words; empty where nothing collapsed.

    The user's metric decides, where its interval is known: it must lie wholly on the worse side, and the change be a
    large share of what there was. Else the answers do, each output by itself: fewer than half are the same, or they are
    noise for the most.
    """
    if judged is not None and _tells(judged):
        return _worse(judged)
    return next(filter(None, map(_lost, near.outputs)), "")


def _lost(one: Likeness) -> str:
    named = f" of the output {one.place}" if one.place else ""
    for figure, what in (("same_answer", "samples get the same answer"), ("same_token", "tokens are the same")):
        if figure in one.figures:
            share = one.figures[figure].value
            return f"only {100 * share:.1f} % of {what} as before{named}" if share < AGREED else ""
    return f"the answers{named} are more noise than signal ({one.sqnr_db:.1f} dB)" if one.sqnr_db < 0 else ""


def _tells(judged: Judged) -> bool:
    """Whether the metric has an interval, and something to be compared with."""
    return math.isfinite(judged.change.low) and math.isfinite(judged.change.high) and judged.before.value != 0


def _worse(judged: Judged) -> str:
    before, after, change = judged.before.value, judged.after.value, judged.change
    surely = change.high < 0 if judged.higher_is_better else change.low > 0
    share = LOST if judged.higher_is_better and before > 0 else GROWN
    if not surely or abs(change.value) <= share * abs(before):
        return ""
    return f"{judged.name} {'falls' if change.value < 0 else 'rises'} from {before:.4g} to {after:.4g}"
