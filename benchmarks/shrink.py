"""Half the width gone: ours and torch-pruning on every architecture of the zoo, each with what worked and what not.

torch-pruning runs in an environment of its own (see pruning_peers.py), whose Python the variable PEERS_PYTHON names;
what it has answered lies in out/shrink and is not asked again. Without the variable, only what lies there is made anew;
other rows of the file stay as they are. Whether a network is right is judged by tests/topologies/zeroed.py.

    PEERS_PYTHON=peers/bin/python make bench NAME=shrink
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from shrunk import STEPS, Refused, Row, Trial, alone, figures, put_through, warm
from shrunken import kept, unscaled
from table import write
from zoo import ZOO, Subject, subject

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.errors import LilliputError
from lilliput.progress import silent

OURS, THEIRS = "lilliput", "torch-pruning"
SECONDS = 240
RECIPE = lp.Recipe([lp.Prune("channels", 0.5, multiple=16)])
ANSWERED = Path(__file__).parents[1] / "out" / "shrink" / f"{THEIRS}.jsonl"
PEERS = Path(__file__).with_name("pruning_peers.py")


def main() -> None:
    torch.set_num_threads(1)
    warm()
    chosen = [subject(name) for name in sys.argv[1:]] or list(ZOO)
    rows: list[Row] = []
    for known in chosen:
        rows.append({"tool": OURS, **alone(one, load, known.name, SECONDS)})
        print(json.dumps(rows[-1]), flush=True)
    rows += theirs(chosen)
    order = {known.name: place for place, known in enumerate(ZOO)}
    made = {(row["network"], row["tool"]) for row in rows}
    write(
        "shrink",
        [arranged(row) for row in rows],
        threads=1,
        keep=lambda row: (row["network"], row["tool"]) not in made,
        order=lambda row: (order[row["network"]], row["tool"]),
    )
    summary(rows)


def one(trial: Trial) -> None:
    known = subject(trial.name)
    with trial.step("build"):
        original, inputs = known.build()
        trial.row |= figures(original, inputs, "before")
    with trial.step("shrink"):
        task = lp.Task(known.build()[0], example=inputs, dynamic=known.dynamic)
        try:
            driver, _ = begin(task, lp.targets.OnnxRuntime(threads=1), Store(), silent)
            follow(RECIPE, driver)
        except LilliputError as error:
            raise Refused(str(error)) from None
    small = driver.model
    trial.row["departure_from_masked"] = driver.told.facts["check"][-1]
    trial.row |= figures(small, inputs, "after")
    put_through(
        trial,
        original,
        small,
        inputs,
        kept(driver),
        unscaled=unscaled(driver),
        save=lambda path: lp.save(path, small),
        export=lambda path: lp.export(
            path, small, inputs, dynamic=known.dynamic, target=lp.targets.OnnxRuntime(threads=1)
        ),
    )


def load(name: str, file: str) -> Any:
    model, _ = subject(name).build(seed=1)  # its numbers come from the file
    return lp.load(file, model).eval()(*subject(name).build()[1])


def theirs(chosen: list[Subject]) -> Iterator[Row]:
    """Rows of torch-pruning: those that lie there, after it has been asked for those that do not."""
    ANSWERED.parent.mkdir(parents=True, exist_ok=True)
    missing = [known.name for known in chosen if known.name not in answered()]
    if missing and "PEERS_PYTHON" in os.environ:
        alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with ANSWERED.open("a") as file:
            subprocess.run([os.environ["PEERS_PYTHON"], str(PEERS), *missing], stdout=file, env=alone, check=True)
    rows = answered()
    yield from (rows[known.name] for known in chosen if known.name in rows)


def answered() -> dict[str, Row]:
    lines = ANSWERED.read_text().splitlines() if ANSWERED.exists() else []
    return {row["network"]: row for row in map(json.loads, lines)}


def arranged(row: Row) -> Row:
    """The same columns for every row: what came first, then how much is left, then what went wrong."""
    left = {
        f"{what}_left_percent": 100 * row[f"{what}_after"] / row[f"{what}_before"]
        for what in ("parameters", "macs")
        if f"{what}_after" in row
    }
    return {
        "network": row["network"],
        "kind": subject(row["network"]).kind,
        "source": subject(row["network"]).source,
        "tool": row["tool"],
        "worked": "all"
        if "failed" not in row
        else "refused"
        if row["failed"] == "refused"
        else f"until {row['failed']}",
        "parameters_before": row.get("parameters_before", ""),
        "parameters_after": row.get("parameters_after", ""),
        "macs_before": row.get("macs_before", ""),
        "macs_after": row.get("macs_after", ""),
        "parameters_left_percent": left.get("parameters_left_percent", ""),
        "macs_left_percent": left.get("macs_left_percent", ""),
        "equals_zeroed": row.get("equals_zeroed", ""),
        "why": row.get("why", row.get("error", "") if "equals_zeroed" not in row else ""),
        "departure_from_zeroed": row.get("departure_from_zeroed", ""),
        "departure_from_masked": row.get("departure_from_masked", ""),
        "cpu_seconds": row.get("shrink_cpu_seconds", ""),
        "setting": row.get("setting", ""),
        "error": row.get("error", ""),
    }


def summary(rows: list[Row]) -> None:
    for tool in (OURS, THEIRS):
        mine = [row for row in rows if row["tool"] == tool]
        failed = [row.get("failed") for row in mine]
        counts = {step: failed.count(step) for step in ("refused", *STEPS) if step in failed}
        print(f"{tool}: all steps on {failed.count(None)} of {len(mine)}; stopped at {counts}")


if __name__ == "__main__":
    main()
