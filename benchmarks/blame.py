"""Where EfficientNet-Lite0 and MiniLM lose by the default recipe, how long finding out takes, and what the first advice
is worth: the output's signal to noise over all evaluation batches, on the target, before and after it is followed.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from networks import NETWORKS
from table import write

import lilliput as lp
from lilliput.blame.diagnosis import Row

RECIPES = {  # the target's own, spelt out
    "lite0": lp.Quantize(weights=lp.Int(8), activations=lp.Int(8)),
    "minilm": lp.Quantize(weights=lp.Int(8), activations=lp.Int(8, dynamic=True)),
}
QUICK = lp.targets.OnnxRuntime(threads=1, seconds=2)  # latencies are not what is asked here


def main() -> None:
    rows = []
    for name in sys.argv[1:] or RECIPES:
        task = NETWORKS[name]()
        with TemporaryDirectory() as folder:
            watch = Watch()
            first = lp.compress(task, lp.Recipe([RECIPES[name]]), target=QUICK, folder=folder, progress=watch).data
            compress_seconds = perf_counter() - watch.began
            began, busy = perf_counter(), process_time()
            found = lp.diagnose(task, lp.Recipe([RECIPES[name]]), target=QUICK, folder=folder)
            seconds, cpu_seconds = perf_counter() - began, process_time() - busy
        advice, changed = advised(RECIPES[name], found.rows)
        with TemporaryDirectory() as folder:
            second = lp.compress(task, lp.Recipe([changed]), target=QUICK, folder=folder).data
        for rank, row in enumerate(found.rows[:5], 1):
            rows.append(
                {
                    "network": name,
                    "rank": rank,
                    "layer": row.name,
                    "alone_db": row.own_db,
                    "alone_on": row.own_on,
                    "share": row.share,
                    "arrived_db": row.reached_db,
                    "left_in_float_db": row.without_db,
                    "cause": row.causes[0].kind if row.causes else "",
                    "places": len(found.rows),
                    "samples": found.samples,
                    "seconds": seconds,
                    "cpu_seconds": cpu_seconds,
                    "compress_seconds": compress_seconds,
                    "of_which_where_it_loses": watch.seconds,
                    "output_db": found.output_db,
                    "advice_followed": advice if rank == 1 else "",
                    "evaluation_db_before": first["agreement"]["outputs"][0]["sqnr_db"] if rank == 1 else "",
                    "evaluation_db_after": second["agreement"]["outputs"][0]["sqnr_db"] if rank == 1 else "",
                    "onnx_smaller_before": first["ratio"]["smaller"] if rank == 1 else "",
                    "onnx_smaller_after": second["ratio"]["smaller"] if rank == 1 else "",
                }
            )
            print(rows[-1], flush=True)
    write("blame", rows, os.cpu_count() or 1)


class Watch:
    """How long a run takes to find where it loses."""

    def __init__(self) -> None:
        self.began, self.entered, self.seconds = perf_counter(), 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "finding where it loses":
            if done:
                self.seconds = perf_counter() - self.entered
            else:
                self.entered = perf_counter()


def advised(step: lp.Quantize, rows: Sequence[Row]) -> tuple[str, lp.Quantize]:
    """The first advice that a setting of the step can follow, worst row first, in words and as a step."""
    for row in rows:
        for remedy in (remedy for cause in row.causes for remedy in cause.remedies):
            if remedy.startswith("leave it in float"):
                return remedy, dataclasses.replace(step, where=("*", f"!{row.pattern}"))
            if remedy.startswith("calibration=MinMax()"):
                return remedy, dataclasses.replace(step, calibration=lp.ranges.MinMax())
            if "calibration=Percentile(99.9" in remedy:
                return remedy, dataclasses.replace(
                    step, calibration=lp.ranges.Percentile(99.99 if "99.99" in remedy else 99.9)
                )
    raise SystemExit("no advice that a setting can follow")


if __name__ == "__main__":
    main()
