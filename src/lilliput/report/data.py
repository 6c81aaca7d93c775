"""The report as plain data: what was done to which layer, what it cost and gained, under which conditions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding
from lilliput.engine.answers import Closeness
from lilliput.engine.evidence import Built, Judged
from lilliput.engine.run import Driver
from lilliput.measure import Latencies, Measurement, macs
from lilliput.model.carrier import tensors
from lilliput.model.encoded_tensor import SUFFIX, EncodedTensor
from lilliput.model.values import value_encodings
from lilliput.plain import to_plain
from lilliput.recipe import Recipe
from lilliput.report.likeness import agreement, doubts
from lilliput.report.outcome import harm
from lilliput.report.speed import NO_SPEED_UP, Speed, speed
from lilliput.targets.operators import Share

SCHEMA = 1
LOADED = "lilliput.load"  # what opens the file to store and send


def side(
    model: nn.Module,
    driver: Driver,
    weighed: Sequence[Mapping[str, Any]],
    metric: Measurement | None,
    ms: Measurement | None,
) -> dict[str, Any]:
    """The figures of one side, before or after; `weighed` is what there is to deliver, and its bytes.

    `ms`: of a call; None where it was not timed, or is not known.
    """
    given = driver.example.copied()
    cost = macs(model, given.args, given.kwargs)
    return {
        "metric": None if metric is None else metric.to_json(),
        "latency_ms": None if ms is None else ms.to_json(),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors(model).values()),
        "macs": cost.total,
        "artifacts": list(weighed),
    }


def layers(
    driver: Driver, exact: Mapping[str, tuple[str, Tensor]], stored: Mapping[str, int] | None
) -> list[dict[str, Any]]:
    """One row for each tensor that a layer multiplies by or looks up in.

    `exact` holds the tensors before they were encoded, with the paths that they had, by those that they have now;
    `stored` the bytes of each tensor in the file, where there is one.
    """
    view = driver.view()
    values, rows = value_encodings(driver.model), []
    for paths, held in tensors(driver.model).items():
        calls = view.weights.get(paths[0], [])
        if not calls:
            continue
        call, encoding = calls[0], held.encoding if isinstance(held, EncodedTensor) else None
        read = values.get(f"{call.value}@0") or _producer(view, call, values)
        with torch.no_grad():
            now = held() if isinstance(held, EncodedTensor) else held
        was, before = exact.get(paths[0], (None, None))
        count, held_bytes = max(1, math.prod(held.shape)), None if stored is None else _bytes(stored, paths[0])
        rows.append(
            {
                "path": paths[0],
                "ties": list(paths[1:]),
                "op": call.op,
                "shape": list(held.shape),
                "was": was if was != paths[0] else None,
                "shape_before": None if before is None else list(before.shape),
                "encoding": str(held.dtype).removeprefix("torch.") if encoding is None else encoding.label(),
                "activations": "float32" if read is None else read.encoding.label(),
                "bits_per_weight": None if held_bytes is None else 8 * held_bytes / count,
                "nominal_bits": _bits(encoding, held) / count,
                "bytes": held_bytes,
                "zeros": float((now == 0).float().mean()),
                "sqnr_db": _weight_sqnr(before, now),
                "runs_as": _runs_as(driver, paths[0], call, encoding, None if read is None else read.encoding),
                "note": driver.notes.get(paths[0], ""),
            }
        )
    return rows


def _runs_as(driver: Driver, path: str, call: Any, encoding: Encoding | None, activation: Encoding | None) -> str:
    """What the target will do with a layer."""
    others = [driver.encoding(other) for other in call.weights if other != path]
    return driver.target.remark(call, encoding, activation, others)


def _producer(view: Any, call: Any, values: Mapping[str, Any]) -> Any:
    """The encoder of the value that the call reads, seen through calls that leave the range alone."""
    source = view.by_id.get(call.reads[0] or "")
    while source is not None and source.value not in values and source.op in ("pad", "dropout", "contiguous"):
        if f"{source.value}@0" in values:
            return values[f"{source.value}@0"]
        source = view.by_id.get(source.reads[0] or "")
    return None if source is None else values.get(source.value)


def _bytes(stored: Mapping[str, int], path: str) -> int:
    """What a tensor takes in the file, all parts of it."""
    return sum(size for name, size in stored.items() if name == path or name.startswith(f"{path}{SUFFIX}."))


def _bits(encoding: Encoding | None, held: Tensor | EncodedTensor) -> int:
    shape = tuple(held.shape)
    return 8 * held.dtype.itemsize * math.prod(shape) if encoding is None else encoding.size_bits(shape)


def _weight_sqnr(exact: Tensor | None, now: Tensor) -> float | None:
    """Signal to noise of a weight against the prepared original, in dB; None when they are equal, or a part is gone."""
    if exact is not None and exact.shape != now.shape:
        return None
    noise = 0.0 if exact is None else float((now - exact).detach().double().square().sum())
    return (
        None if exact is None or noise == 0 else 10 * math.log10(float(exact.detach().double().square().sum()) / noise)
    )


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
    taken: Latencies,
    losing: Sequence[Share],
    rows: list[dict[str, Any]],
    conditions: Mapping[str, Any],
    environment: Mapping[str, Any],
    loses: Mapping[str, Any],
    compressed: bool,
) -> dict[str, Any]:
    """The whole report; `compressed`: what it is compared with is itself the result of another run."""
    was, now = ({item["runs_on"]: item["bytes"] for item in side["artifacts"]} for side in (before, after))
    fast = speed(taken, rows, losing, driver.tried.why_not if driver.tried else "")
    target_format = driver.target.format
    smaller, stored = (was[opener] / now[opener] for opener in (driver.target.name, LOADED))
    coded = next(item["coded_bytes"] for item in before["artifacts"] if item["runs_on"] == LOADED)
    harmed, answers = harm(near, judged), near.to_json()
    agreed = agreement(answers["outputs"])
    gained = max(smaller, coded / now[LOADED], fast.gained)  # what coding alone would give is not the recipe's
    return {
        "schema": SCHEMA,
        "name": name,
        "target": driver.target.name,
        "outcome": "harmed" if harmed else "done" if gained >= NO_SPEED_UP else "not met",
        "harm": harmed,
        "sentence": f"Harmed: {harmed}. " * bool(harmed)
        + sentence(smaller, stored, fast, agreed, judged, _runtime(driver, environment), target_format)
        + " All beside the compressed model that was given." * compressed,
        "speed": fast.told,
        "slower": [dataclasses.asdict(share) for share in losing],
        "tried": driver.tried and driver.tried.to_json(),
        "before": before,
        "after": after,
        "ratio": {"smaller": smaller, "smaller_file": stored, "faster": fast.faster and fast.faster.to_json()},
        "metric": None
        if judged is None
        else {
            "name": judged.name,
            "higher_is_better": judged.higher_is_better,
            "change": judged.change.to_json(),
        },
        "conditions": conditions,
        "agreement": {**answers, "doubts": doubts(answers["outputs"])},
        "export": {
            name: {**_finite(built.departure), "written": built.written, "told": built.told}
            for name, built in zip(("before", "after"), builds, strict=True)
        },
        "capture": {"rung": driver.view().rung, "problems": dict(driver.view().problems)},
        "layers": rows,
        "loses": loses,
        "removed": driver.removed,
        "skipped": [{"path": path, "reason": reason} for path, reason in sorted(driver.skipped.items())],
        "recipe": to_plain(list(recipe.steps)),
        "training": list(driver.trainings),
        "environment": {**environment, "others_cores": taken.others_cores},
    }


def _finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in figures.items()}


def sentence(
    smaller: float, stored: float, fast: Speed, agreed: str, judged: Judged | None, target: str, ending: str
) -> str:
    """The result in one sentence."""
    moved = f"; {judged.name} changes by {_change(judged.change)}" if judged else ""
    return (
        f"In {target}, the .{ending} file is {times(smaller)} and {fast.clause}; "
        f"the .lil file is {times(stored)}; {agreed}{moved}."
    )


def _change(change: Measurement) -> str:
    interval = change.interval("{:+.4f}".format)
    return f"{change.value:+.4f} ({interval or 'from one source, so nothing is known of its spread'})"


def _runtime(driver: Driver, environment: Mapping[str, Any]) -> str:
    """The runtime and its threads, in words."""
    threads = environment["threads"]
    return f"{driver.target.name} on {threads} thread{'' if threads == 1 else 's'}"


def times(ratio: float) -> str:
    """A ratio of sizes in words.

    >>> times(4.0), times(0.5)
    ('4.00× smaller', '2.00× larger')
    """
    return f"{ratio:.2f}× smaller" if ratio >= 1 else f"{1 / ratio:.2f}× larger"
