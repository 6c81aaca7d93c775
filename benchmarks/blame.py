"""Where EfficientNet-Lite0 and MiniLM lose by the default recipe, how long finding out takes, and what the first advice
is worth: the output's signal to noise over all evaluation batches, on the target, before and after it is followed.
"""

from __future__ import annotations

import dataclasses
import os
import sys
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
QUICK = lp.OnnxRuntime(threads=1, seconds=2)  # latencies are not what is asked here


def main() -> None:
    rows = []
    for name in sys.argv[1:] or RECIPES:
        task = NETWORKS[name]()
        with TemporaryDirectory() as folder:
            first = lp.compress(task, lp.Recipe([RECIPES[name]]), target=QUICK, folder=folder).data
            began, busy = perf_counter(), process_time()
            found = lp.diagnose(task, lp.Recipe([RECIPES[name]]), target=QUICK, folder=folder)
            seconds, cpu_seconds = perf_counter() - began, process_time() - busy
        advice, changed = advised(RECIPES[name], found.rows[0])
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
                    "output_db": found.output_db,
                    "advice_followed": advice if rank == 1 else "",
                    "evaluation_db_before": first["agreement"]["sqnr_db"] if rank == 1 else "",
                    "evaluation_db_after": second["agreement"]["sqnr_db"] if rank == 1 else "",
                    "onnx_smaller_before": first["ratio"]["smaller"] if rank == 1 else "",
                    "onnx_smaller_after": second["ratio"]["smaller"] if rank == 1 else "",
                }
            )
            print(rows[-1], flush=True)
    write("blame", rows, os.cpu_count() or 1)


def advised(step: lp.Quantize, row: Row) -> tuple[str, lp.Quantize]:
    """What the first cause of a row tells to try, in words and as a step."""
    kind = row.causes[0].kind
    if kind == "clipped range":
        return "calibration=MinMax()", dataclasses.replace(step, calibration=lp.MinMax())
    if kind == "unused codes":
        return "calibration=Percentile(99.9)", dataclasses.replace(step, calibration=lp.Percentile(99.9))
    where = ("*", f"!{row.pattern}")
    return f"where={where!r}", dataclasses.replace(step, where=where)


if __name__ == "__main__":
    main()
