"""Ours against a grid of somebody else's settings: latency, output SQNR over the evaluation inputs, and accuracy.

A setting of theirs beats ours only if it is faster (the interval of the ratio reaches 1.03) and closer to the float
network by 0.3 dB, or right more often (the paired interval of the difference lies above 0). All files are run by the
same runtime, in turns with ours. What takes three times as long as ours cannot win, and is not judged further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labelled import LABELLED, Answers
from networks import OUT
from table import write
from timings import timed

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.evidence import build
from lilliput.engine.store import Store
from lilliput.external import bytes_of
from lilliput.measure import DistanceSoFar, furthest, mean, paired_difference
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.progress import silent
from lilliput.targets import Target

FASTER, CLOSER_DB, HOPELESS = 1.03, 0.3, 3.0
TURNS: dict[str, Any] = {"rounds": 9, "round_s": 0.06, "settle_s": 0.05}
BESIDE_FLOAT = ("faster_than_float", "float", "ours")
Made = tuple[str, Path | str]  # a setting's name, and the file that it gives or the reason why it gives none
Theirs = Callable[[lp.Task, Path, Path], Iterable[Made]]  # of a task, the float file and a folder to work in
Run = Callable[..., Any]


@dataclass(frozen=True)
class Judge:
    """How close a file's outputs are to those of the float network, and how often they are right."""

    task: lp.Task
    exact: list[Any]  # the float network's answers, one a batch

    @classmethod
    def of(cls, task: lp.Task, original: Run) -> Judge:
        return cls(task, _answers(task, original))

    def __call__(self, run: Run) -> tuple[float, np.ndarray[Any, Any]]:
        """SQNR in dB, and one score a sample."""
        so_far, answers = DistanceSoFar(), _answers(self.task, run)
        for wanted, found in zip(self.exact, answers, strict=True):
            so_far.add(wanted, found)
        return furthest(so_far.distances()).sqnr_db, self.scores(answers)

    def scores(self, answers: list[Any]) -> np.ndarray[Any, Any]:
        assert self.task.metric is not None
        return torch.as_tensor(self.task.metric(Answers(answers))).numpy()


@dataclass(frozen=True)
class Ours:
    """Our file, opened by one target, with what it is worth."""

    target: Target
    file: Path
    sqnr_db: float
    scores: np.ndarray[Any, Any]


def compare(name: str, targets: Sequence[Target], theirs: Theirs, speed: bool = True) -> Iterator[dict[str, Any]]:
    """Rows for one network: for each target, ours first, then every setting of theirs beside it.

    What ours is made for is the first target; the others run the same files under other conditions. `speed`: tell
    how ours stands to the float network as well, which demo.py and recurrent.py do for ONNX Runtime.
    """
    task, folder = LABELLED[name](), OUT / f"against-{targets[0].name}-{name}"
    called = _make(task, targets[0], folder)
    example = Inputs.of(task.example)
    files = {"float": folder / "float.onnx", "ours": folder / "net.onnx"}
    judge, sides = Judge.of(task, targets[0].open(files["float"], called)), []
    for target in targets:
        sides.append(Ours(target, files["ours"], *judge(target.runs.open(files["ours"], called))))
        right = mean(sides[-1].scores, task.clusters)
        change = paired_difference(judge.scores(judge.exact), sides[-1].scores, task.clusters)
        yield {
            "network": name,
            **_conditions(target),
            "setting": "lilliput",
            "bytes": bytes_of(files["ours"]),
            "sqnr_db": sides[-1].sqnr_db,
            "accuracy": right.value,
            "accuracy_minus_float": change.value,
            "accuracy_minus_float_low": change.low,
            "accuracy_minus_float_high": change.high,
            "samples": right.samples,
            **(
                timed(files, target, called, example, **TURNS).row("faster_than_float", "float", "ours")
                if speed
                else {}
            ),
        }
    for setting, path in theirs(task, files["float"], folder):
        for ours in sides:
            row: dict[str, Any] = {"network": name, **_conditions(ours.target), "setting": setting}
            yield row | _beside(judge, called, ours, path)


def _make(task: lp.Task, target: Target, folder: Path) -> Signature:
    """What `lp.compress` builds by default, and the float network beside it, without all that it measures."""
    folder.mkdir(parents=True, exist_ok=True)
    unjudged = replace(task, evaluate=None, clusters=None, metric=None)
    driver, _ = begin(unjudged, target, Store(folder / "work"), silent)
    original = driver.afresh(task.model)
    follow(target.prefers.recipe(driver.view(), driver.calibrate is not None), driver)
    built = build(original, original.model, original.state.digest, folder / "float.onnx")
    build(driver, driver.model, driver.state.digest, folder / "net.onnx")
    return built.signature


def _conditions(target: Target) -> dict[str, Any]:
    return {"run_threads": target.threads_used, "precision": getattr(target, "precision", "f32")}


def _beside(judge: Judge, called: Signature, ours: Ours, path: Path | str) -> dict[str, Any]:
    """What one setting of theirs is worth beside ours."""
    if isinstance(path, str):
        return {"failed": path}
    example = Inputs.of(judge.task.example)
    try:
        run = ours.target.runs.open(path, called)
        taken = timed({"theirs": path, "ours": ours.file}, ours.target, called, example, **TURNS)
    except Exception as error:
        return {"failed": str(error).splitlines()[0]}
    ratio, theirs_faster = taken.ratio("theirs", "ours"), taken.ratio("ours", "theirs")
    weights = path.with_suffix(".bin") if path.suffix == ".xml" else None
    row = {
        "bytes": path.stat().st_size + (weights.stat().st_size if weights else 0),
        **taken.row("ours_faster", "theirs", "ours"),
        "beats_ours": False,
    }
    if ratio.low > HOPELESS:
        return row | {"failed": f"not judged: over {HOPELESS:g} times as slow as ours"}
    db, scores = judge(run)
    right, change = (
        mean(scores, judge.task.clusters),
        paired_difference(ours.scores, scores, judge.task.clusters),
    )
    closer = db - ours.sqnr_db >= CLOSER_DB
    return row | {
        "sqnr_db": db,
        "accuracy": right.value,
        "accuracy_minus_ours": change.value,
        "accuracy_minus_ours_low": change.low,
        "accuracy_minus_ours_high": change.high,
        "samples": right.samples,
        "beats_ours": theirs_faster.low >= FASTER and (closer or change.low > 0),
    }


def _answers(task: lp.Task, run: Run) -> list[Any]:
    return [Inputs.of(batch).call(run) for batch in task.evaluate or ()]


def report(benchmark: str, names: Sequence[str], of: Callable[[str], Iterable[dict[str, Any]]]) -> None:
    """Print rows as they come and write them network by network; rows of other networks and precisions stay."""
    for name in names:
        rows = []
        for row in of(name):
            rows.append(row)
            print({key: value for key, value in row.items() if key != "failed"}, row.get("failed", ""), flush=True)
        threads = max(row["run_threads"] for row in rows)
        again = {(row["network"], row["precision"]) for row in rows}
        write(benchmark, rows, threads, keep=lambda row, again=again: (row["network"], row["precision"]) not in again)  # type: ignore[misc]
        beaten = [row for row in rows if row.get("beats_ours")]
        print(f"{name}: settings that beat ours on both: {len(beaten)} of {len(rows)}", flush=True)
