"""Ours against a grid of somebody else's settings: latency, and output SQNR over the evaluation inputs.

A setting of theirs beats ours only if it is faster (the interval of the ratio reaches 1.03) and closer to the float
network (by 0.3 dB). All files are run by the same runtime, in turns with ours.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from networks import NETWORKS, OUT
from table import write

import lilliput as lp
from lilliput.measure import DistanceSoFar, interleaved
from lilliput.model.capture import Inputs
from lilliput.model.signature import Signature
from lilliput.targets import Target

FASTER, CLOSER_DB = 1.03, 0.3
Made = tuple[str, Path | str]  # a setting's name, and the file that it gives or the reason why it gives none
Theirs = Callable[[lp.Task, Path, Path], Iterable[Made]]  # of a task, the float file and a folder to work in


def compare(name: str, targets: Sequence[Target], theirs: Theirs) -> Iterator[dict[str, Any]]:
    """Rows for one network: for each target, ours first, then every setting of theirs beside it.

    What ours is made for is the first target; the others run the same files under other conditions.
    """
    task, folder = NETWORKS[name](), OUT / f"against-{targets[0].name}-{name}"
    lp.compress(task, target=targets[0], folder=folder)
    example = Inputs.of(task.example)
    called = Signature.of(example, example.call(task.model))
    opened = [
        (target, target.open(folder / "work" / "original.onnx", called), target.open(folder / "net.onnx", called))
        for target in targets
    ]
    close = [_sqnr(task, opened[0][1], ours) for _, _, ours in opened]
    for (target, original, ours), db in zip(opened, close, strict=True):
        subjects = {"float": functools.partial(example.call, original), "ours": functools.partial(example.call, ours)}
        taken = interleaved(subjects, rounds=9, round_s=0.06, settle_s=0.05)
        faster = taken.ratio("float", "ours")
        yield {
            "network": name,
            **_conditions(target),
            "setting": "lilliput",
            "bytes": (folder / "net.onnx").stat().st_size,
            "sqnr_db": db,
            "faster_than_float": faster.value,
            "faster_than_float_low": faster.low,
            "faster_than_float_high": faster.high,
            "others_cores": taken.others_cores,
        }
    for setting, path in theirs(task, folder / "work" / "original.onnx", folder):
        for (target, _, ours), db in zip(opened, close, strict=True):
            row: dict[str, Any] = {"network": name, **_conditions(target), "setting": setting}
            yield row | _beside(task, target, called, opened[0][1], ours, db, path)


def _conditions(target: Target) -> dict[str, Any]:
    return {"run_threads": target.threads_used, "precision": getattr(target, "precision", "f32")}


def _beside(
    task: lp.Task,
    target: Target,
    called: Signature,
    original: Callable[..., Any],
    ours: Callable[..., Any],
    our_db: float,
    path: Path | str,
) -> dict[str, Any]:
    """What one setting of theirs is worth beside ours."""
    if isinstance(path, str):
        return {"failed": path}
    example = Inputs.of(task.example)
    try:
        run = target.open(path, called)
        db = _sqnr(task, original, run)
    except Exception as error:
        return {"failed": str(error).splitlines()[0]}
    subjects = {"theirs": functools.partial(example.call, run), "ours": functools.partial(example.call, ours)}
    taken = interleaved(subjects, rounds=9, round_s=0.06, settle_s=0.05)
    ratio, theirs_faster = taken.ratio("theirs", "ours"), taken.ratio("ours", "theirs")
    weights = path.with_suffix(".bin") if path.suffix == ".xml" else None
    return {
        "bytes": path.stat().st_size + (weights.stat().st_size if weights else 0),
        "sqnr_db": db,
        "ours_faster": ratio.value,
        "ours_faster_low": ratio.low,
        "ours_faster_high": ratio.high,
        "rounds": ratio.samples,
        "others_cores": taken.others_cores,
        "beats_ours": theirs_faster.low >= FASTER and db - our_db >= CLOSER_DB,
    }


def _sqnr(task: lp.Task, original: Callable[..., Any], run: Callable[..., Any]) -> float:
    so_far = DistanceSoFar()
    for batch in task.evaluate or ():
        inputs = Inputs.of(batch)
        so_far.add(inputs.call(original), inputs.call(run))
    return so_far.distance().sqnr_db


def report(benchmark: str, tables: Iterable[Iterable[dict[str, Any]]]) -> None:
    """Print rows as they come, write them, and count what beats ours."""
    rows = []
    for row in itertools.chain.from_iterable(tables):
        rows.append(row)
        print({key: value for key, value in row.items() if key != "failed"}, row.get("failed", ""), flush=True)
    write(benchmark, rows, max(row["run_threads"] for row in rows))
    beaten = [row for row in rows if row.get("beats_ours")]
    print(f"settings that beat ours on both: {len(beaten)} of {len(rows)}")
