"""What a network costs once something is removed, relative to what it cost: counted, or measured on the target."""

from __future__ import annotations

from torch import nn

from lilliput.errors import MeasureError
from lilliput.measure import macs, parameters
from lilliput.techniques.run import Run


def left_of(run: Run, what: str, smaller: nn.Module) -> tuple[float, str]:
    """The ``macs``, ``parameters`` or ``latency`` of `smaller`, relative to those of the model; what disturbed that.

    Raises MeasureError where the latency cannot be known.
    """
    if what == "latency":
        return _latency(run, smaller)
    both = (_count(run, what, net) for net in (smaller, run.model))
    return next(both) / next(both), ""


def _count(run: Run, what: str, net: nn.Module) -> int:
    if what == "parameters":
        return parameters(net)
    given = run.example.copied()
    return macs(net, given.args, given.kwargs).total


def _latency(run: Run, smaller: nn.Module) -> tuple[float, str]:
    taken = run.target.timed({"with": run.model, "without": smaller}, run.example, run.dynamic)
    if not taken.known:
        raise MeasureError(
            "a budget of latency cannot be measured",
            why=f"{taken.disturbance}, and the target has {run.target.threads_used} threads",
            next="wait until the machine is idle, give the target threads=1, or give macs= or parameters=",
        )
    return taken.ratio("without", "with").value, taken.disturbance
