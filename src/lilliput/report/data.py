"""The report as plain data: what was done to which layer, what it cost and gained, under which conditions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lilliput.engine.answers import Closeness
from lilliput.engine.costs import Costs
from lilliput.engine.evidence import Built, Judged
from lilliput.engine.run import Driver
from lilliput.entropy import able
from lilliput.measure import Measurement, macs
from lilliput.plain import to_plain
from lilliput.recipe import Recipe
from lilliput.report.costs import batch_figures, worse
from lilliput.report.likeness import agreement, doubts
from lilliput.report.outcome import harm
from lilliput.report.speed import NO_SPEED_UP, Speed, speed
from lilliput.report.weights import counts, ratios
from lilliput.targets.operators import LayerTimes
from lilliput.targets.target import BY_REFERENCE, Target

SCHEMA = 1
LOADED = "lilliput.load"  # what opens the file to store and send
STORED = "lil"  # and its ending


def opener_of_stored(target: Target) -> str:
    """What opens the file to store and send: a target that runs that very file, or Lilliput."""
    return target.name if target.writes.format == STORED else LOADED


def side(
    model: nn.Module,
    driver: Driver,
    weighed: Sequence[Mapping[str, Any]],
    metric: Measurement | None,
    costs: Mapping[str, Any],
) -> dict[str, Any]:
    """The figures of one side, before or after; `weighed` is what there is to deliver, and its bytes."""
    given = driver.example.copied()
    cost = macs(model, given.args, given.kwargs)
    return {
        "metric": None if metric is None else metric.to_json(),
        **costs,
        **counts(model),
        "macs": cost.total,
        "artifacts": list(weighed),
    }


def assemble(
    *,
    name: str,
    driver: Driver,
    recipe: Recipe,
    before: dict[str, Any],
    after: dict[str, Any],
    builds: tuple[Built, Built],
    near: Closeness,
    judged: Judged | None,
    spent: Costs,
    losing: Sequence[LayerTimes],
    rows: list[dict[str, Any]],
    conditions: Mapping[str, Any],
    environment: Mapping[str, Any],
    loses: Mapping[str, Any],
    halves: str,
    compressed: bool,
) -> dict[str, Any]:
    """The whole report; `compressed`: what it is compared with is itself the result of another run.

    `halves` is the half precision that the model came in, if any.
    """
    was, now = ({item["runs_on"]: item["bytes"] for item in side["artifacts"]} for side in (before, after))
    fast = speed(spent.taken, rows, losing, driver.tried.why_not if driver.tried else "")
    loaded = opener_of_stored(driver.target)
    smaller, stored = (was[opener] / now[opener] for opener in (driver.target.name, loaded))
    coded = next(item["coded_bytes"] for item in before["artifacts"] if item["runs_on"] == loaded)
    harmed, answers = harm(near, judged), near.to_json()
    costlier = worse(*(spent.loading[side] for side in ("before", "after")))
    changed = f"{judged.name} changes by {_change(judged.change)}" if judged else ""
    doubtful = doubts(answers["outputs"])
    clauses = (
        _judge(driver),
        agreement(answers["outputs"]),
        *doubtful,
        changed,
        costlier,
        _parts(driver),
        _widened(driver, halves),
    )
    runs = 0.0 if loaded == driver.target.name else smaller
    gained = max(runs, coded / now[loaded], fast.gained)  # what coding alone would give is not the recipe's
    return {
        "schema": SCHEMA,
        "name": name,
        "target": driver.target.name,
        "runs_here": driver.target.runs is not None,
        "outcome": "harmed" if harmed else "done" if gained >= NO_SPEED_UP else "not met",
        "harm": harmed,
        "sentence": f"Harmed: {harmed}. " * bool(harmed)
        + sentence(smaller, stored, fast, clauses, _place(driver, environment), driver.target.writes.format)
        + " All beside the compressed model that was given." * compressed,
        "speed": fast.told,
        "slower": [dataclasses.asdict(share) for share in losing],
        "tried": driver.tried and driver.tried.to_json(),
        "before": before,
        "after": after,
        "ratio": {
            "smaller": smaller,
            "smaller_file": stored,
            "faster": fast.faster and fast.faster.to_json(),
            **ratios(before, after, rows),
        },
        "batches": batch_figures(spent),
        "loading": costlier,
        "coded": able("dense")[1],
        "metric": judged and judged.to_json(),
        "conditions": conditions,
        "agreement": {**answers, "doubts": doubtful},
        "export": dict(zip(("before", "after"), map(_export, builds), strict=True)),
        "capture": {"rung": driver.view().rung, "problems": dict(driver.view().problems)},
        "layers": rows,
        "loses": loses,
        "removed": driver.told.facts["removed"],
        "skipped": [{"path": path, "reason": reason} for path, reason in sorted(driver.told.skipped.items())],
        "recipe": to_plain(list(recipe.steps)),
        "training": driver.told.facts["training"],
        "environment": {**environment, "others_cores": spent.taken.others_cores},
    }


def _export(built: Built) -> dict[str, Any]:
    """How far a file is from the module that it was built from."""
    finite = {key: x if math.isfinite(x) else None for key, x in built.departure.items()}
    return {**finite, "written": built.written, "told": built.told}


def sentence(smaller: float, stored: float, fast: Speed, clauses: Iterable[str], place: str, ending: str) -> str:
    """The result in one sentence: sizes and speed, and whatever else there is to say."""
    first = f"{place}, the .{ending} file is {times(smaller)} and {fast.clause}"
    sent = "" if ending == STORED else f"the .lil file is {times(stored)}"
    return "; ".join(filter(None, (first, sent, *clauses))) + "."


def _parts(driver: Driver) -> str:
    """Told where no graph holds the whole network."""
    if driver.view().rung == "whole":
        return ""
    return "no graph holds the whole network, so its weights alone were changed"


def _widened(driver: Driver, halves: str) -> str:
    """Told of a model in half precision: which size is beside which."""
    if not halves:
        return ""
    ending = driver.target.writes.format
    built = f", and the .{ending} file is beside one in float32" * (ending != STORED)
    return f"what came in {halves} was computed in float32{built}; the .lil file is beside the tensors as they came"


def _change(change: Measurement) -> str:
    interval = change.interval("{:+.4f}".format)
    return f"{change.value:+.4f} ({interval or 'from one source, so nothing is known of its spread'})"


def _judge(driver: Driver) -> str:
    """Told where nothing here runs what was written."""
    return "" if driver.target.runs is not None else BY_REFERENCE


def _place(driver: Driver, environment: Mapping[str, Any]) -> str:
    """The runtime and its threads, in words."""
    if driver.target.runs is None:
        return f"Written for {driver.target.name}"
    threads = environment["threads"]
    return f"In {driver.target.name} on {threads} thread{'' if threads == 1 else 's'}"


def times(ratio: float) -> str:
    """A ratio of sizes in words.

    >>> times(4.0), times(0.5)
    ('4.00× smaller', '2.00× larger')
    """
    return f"{ratio:.2f}× smaller" if ratio >= 1 else f"{1 / ratio:.2f}× larger"
