"""What a compressed model is worth, found on what was built for the target and not on a simulation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lilliput.disk import origins_of
from lilliput.encodings.integer import Uniform
from lilliput.engine.fidelity import check_precise, check_written, told_of_kernels
from lilliput.engine.room import make_room
from lilliput.engine.run import Driver
from lilliput.errors import ExportError, InputError, LilliputError, reason
from lilliput.external import files_of
from lilliput.feeding import fingerprint
from lilliput.measure import DistanceSoFar, Measurement, cpu, furthest, mean, paired_difference
from lilliput.model.views.signature import Signature
from lilliput.model.views.values import value_encodings
from lilliput.outputs import flatten_outputs, left_out
from lilliput.techniques.run import Answer

_LEAST_DB = 14.0  # of the export and the module: an error of a fifth; integer kernels round otherwise than simulated


@dataclass(frozen=True)
class Built:
    """A model built for the target: its file, opened, and how far it is from the module it was built from."""

    path: Path
    digest: str
    signature: Signature
    run: Callable[..., Any]
    departure: Mapping[str, Any]
    left_out: Mapping[str, str]  # the types of objects in the answer that no runtime gives, by place
    written: Mapping[str, Any] | None = None  # how far it is from the module as it is written; None: not known
    told: str = ""  # of the target's kernels, where they are far less exact than that


def build(driver: Driver, model: nn.Module, digest: str, path: Path) -> Built:
    """Build `model` (identified by `digest`) into `path`, open it, and compare it with the module on the example."""
    target = driver.target
    question = (
        "build",
        driver.environment,
        digest,
        fingerprint(driver.example),
        str(driver.dynamic),
        repr(target),
        path.name,
    )

    def compute() -> Answer:
        driver.progress(f"building {path.name}", 0, 1)
        make_room(model)
        target.writes.build(path, model, driver.example, driver.dynamic)
        make_room(model)
        return Answer(_digest(path))

    built = driver.store.answer(question, compute).data
    if not path.exists() or _digest(path) != built:
        target.writes.build(path, model, driver.example, driver.dynamic)
        built = _digest(path)  # what is compared and timed is this file, whatever an earlier one was
    driver.progress(f"building {path.name}", 1, 1)
    with torch.no_grad():
        expected = driver.example.call(model)
    for place, kind in (missing := left_out(expected)).items():
        driver.skip(f"output {place}", f"a {kind} is no tensor: it is neither compared nor in what was built")
    signature = Signature.of(driver.example, expected, model.forward)
    run = target.opened(path, signature, model)
    where = f"comparing {path.name} with the module"
    driver.progress(where, 0, 1)
    _check_shapes(expected, driver.example.call(run), path, target.name)
    written = driver.store.answer(
        (*question, built, "written"), lambda: Answer(check_written(driver, model, path, signature))
    ).data
    make_room(model)
    kernels = driver.store.answer(
        (*question, built, "kernels"), lambda: Answer(told_of_kernels(driver, model, path, signature, run))
    ).data
    driver.progress(where, 1, 1)
    departure = _departure(driver, model, run, path, written is None or bool(kernels))
    return Built(path, built, signature, run, departure, missing, written, kernels)


def _check_shapes(expected: Any, found: Any, path: Path, name: str) -> None:
    """Refuse a runtime that answers in other shapes than the module."""
    ours, theirs = ([tuple(x.shape) for x in flatten_outputs(out)] for out in (expected, found))
    if ours != theirs:
        raise ExportError(
            f"{name} answers in the shapes {', '.join(map(str, theirs))}, the module in {', '.join(map(str, ours))}",
            where=path.name,
            next="fix the lengths by dynamic={}, return it with all its axes, or take another target",
        )


def _departure(
    driver: Driver, model: nn.Module, run: Callable[..., Any], path: Path, kernels_differ: bool
) -> dict[str, Any]:
    """Largest error and SQNR of what the target runs and the module, on the example; of the output furthest off.

    Too far apart is an error, but not where it is for the rounding that the file says.
    """
    so_far = DistanceSoFar()
    with torch.no_grad():
        expected = driver.example.call(model)
        so_far.add(expected, driver.example.call(run))
    apart = so_far.distances()
    real = [one for one, x in zip(apart, flatten_outputs(expected), strict=True) if x.is_floating_point()]
    found = furthest(real or apart)  # whole numbers, such as indices, have no length that would tell
    if kernels_differ and real and not found.sqnr_db >= _LEAST_DB:
        check_precise(expected)
        overflows = _may_overflow(model)
        raise ExportError(
            f"computes something else than the module (SQNR {found.sqnr_db:.1f} dB)",
            where=" ".join(filter(None, (path.name, found.place and f"output {found.place}"))),
            why="without VNNI, this processor adds products of 8-bit integers in 16 bits, where they overflow"
            if overflows
            else "",
            next="give weights=Int(7)" if overflows else "please report the layers that differ",
        )
    return {"largest_error": found.largest_error, "sqnr_db": found.sqnr_db}


def _may_overflow(model: nn.Module) -> bool:
    """Whether integers of eight bits flow, on a processor whose sums of their products may overflow."""
    flowing = (encoder.encoding for encoder in value_encodings(model).values())
    return cpu().may_saturate and any(isinstance(x, Uniform) and x.bits == 8 for x in flowing)


def _digest(path: Path) -> str:
    """Of all that was built: the file, and what lies beside it."""
    whole = hashlib.sha256()
    for part in (*files_of(path), origins_of(path)):
        if not part.exists():
            continue  # other targets than those of ONNX files tell of no origins
        with open(part, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


@dataclass(frozen=True)
class Judged:
    """The user's metric before and after, and the paired difference."""

    name: str
    higher_is_better: bool
    before: Measurement
    after: Measurement
    change: Measurement

    def to_json(self) -> dict[str, Any]:
        """What changed; the sides hold what it was on each."""
        return {"name": self.name, "higher_is_better": self.higher_is_better, "change": self.change.to_json()}


def judge(driver: Driver, metric: Callable[[Any], Any], before: Built, after: Built) -> Judged:
    """The metric on both built models, on the same samples."""
    name, clusters, scores = metric_name(metric), getattr(metric, "clusters", None), []
    for i, built in enumerate((before, after)):
        driver.progress(f"metric {name}", i, 2)
        scores.append(check_scores(metric, asked_scores(metric, built.run)))
    driver.progress(f"metric {name}", 2, 2)
    if len(scores[0]) != len(scores[1]):
        raise InputError(
            f"gave {len(scores[0])} scores, then {len(scores[1])}",
            where=f"metric {name}",
            next="score the same samples each time",
        )
    higher = bool(getattr(metric, "higher_is_better", True))
    first, second = (score.numpy() for score in scores)
    return Judged(
        name, higher, mean(first, clusters), mean(second, clusters), paired_difference(first, second, clusters)
    )


def metric_name(metric: Callable[[Any], Any]) -> str:
    return str(getattr(metric, "name", getattr(metric, "__name__", type(metric).__name__)))


def asked_scores(metric: Callable[[Any], Any], run: Callable[..., Any]) -> torch.Tensor:
    """What the metric gives for what is called as `run`, as a tensor of whatever shape."""
    try:
        return torch.as_tensor(metric(run), dtype=torch.float32).detach().cpu()
    except LilliputError:
        raise
    except Exception as error:  # the user's own code
        raise InputError(
            "failed",
            where=f"metric {metric_name(metric)}",
            why=reason(error),
            next="it is called with a callable that takes what the model takes",
        ) from error


def check_scores(metric: Callable[[Any], Any], scores: torch.Tensor) -> torch.Tensor:
    """Refuse what is not one finite score a sample, with one label each where the metric has labels."""
    where, clusters = f"metric {metric_name(metric)}", getattr(metric, "clusters", None)
    if scores.dim() != 1 or not len(scores):
        raise InputError(
            f"gave a result of shape {tuple(scores.shape)}",
            where=where,
            next="return one score a sample, not their mean",
        )
    if bad := int((~torch.isfinite(scores)).sum()):
        raise InputError(
            f"gave {bad} of {len(scores)} scores that are NaN or infinite",
            where=where,
            next="repair the metric or its data",
        )
    if clusters is not None and len(clusters) != len(scores):
        raise InputError(
            f"has {len(clusters)} cluster labels for {len(scores)} scores", where=where, next="give one a sample"
        )
    return scores
