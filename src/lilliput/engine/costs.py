"""What running costs on the target, before and after: loading, calls, batches, and each operator by itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lilliput.engine.evidence import Built
from lilliput.engine.run import Driver
from lilliput.errors import MeasureError
from lilliput.feeding import batch_size, fingerprint
from lilliput.measure import Latencies, Measurement
from lilliput.measure.loading import RUNTIMES, Loading, loading
from lilliput.model.carrier.carrier import tensors
from lilliput.model.views.inputs import Inputs
from lilliput.targets.operators import Operator
from lilliput.targets.target import Target
from lilliput.techniques.run import Answer

_LEAST_LOADED = 4 << 20  # bytes of weights in float; with fewer, what loading takes is the runtime's own
_BATCH = 16  # samples of a call by which throughput is told
_THROUGHPUT_S = 2.0  # at most, for timing batches


@dataclass(frozen=True)
class Costs:
    """What both sides cost on the target."""

    taken: Latencies  # of calls on the example
    batches: Throughput | None
    loading: Mapping[str, Loading | None]  # "before" and "after"


def costs(driver: Driver, before: Built, after: Built) -> Costs:
    """All of it, measured one after another."""
    taken, batches = latency(driver, before, after), throughput(driver, before, after)
    return Costs(taken, batches, {"before": opening(driver, before), "after": opening(driver, after)})


def opening(driver: Driver, built: Built) -> Loading | None:
    """What loading a built file and one call of it take; None for a small one, where nothing is to be measured, or
    where the target's runtime is not one that is known how to be opened alone.
    """
    if not driver.measures or driver.target.name not in RUNTIMES:
        return None
    if sum(map(_held_bytes, tensors(driver.model).values())) < _LEAST_LOADED:
        return None
    question = (
        *("opening", driver.environment, built.digest),
        *(fingerprint(driver.example), repr(driver.target)),
    )

    def compute() -> Answer:
        driver.progress(f"loading {built.path.name}", 0, 1)
        inputs = [x.detach().cpu().numpy() for x in built.signature.arguments(driver.example)]
        found = loading(driver.target.name, built.path, inputs, driver.target.threads_used)
        driver.progress(f"loading {built.path.name}", 1, 1)
        return Answer(None if found is None else dataclasses.astuple(found))

    found = driver.store.answer(question, compute).data
    return None if found is None else Loading(*found)


def _held_bytes(held: Any) -> int:
    """Bytes of a tensor as float32, which a runtime may hold it in."""
    return 4 * int(math.prod(held.shape))


def operators(driver: Driver, built: Built) -> list[Operator]:
    """What the runtime makes of a built file, each operator with its time on the example; remembered."""
    runtime, seconds = driver.target.runs, driver.target.seconds
    if runtime is None:
        return []
    question = ("operators", driver.environment, built.digest, fingerprint(driver.example), repr(driver.target))

    def compute() -> Answer:
        found = runtime.operators(built.path, built.signature, driver.example, seconds)
        return Answer([dataclasses.asdict(one) for one in found])

    rows = driver.store.answer(question, compute).data
    return [Operator(**{**row, "reads": tuple(row["reads"])}) for row in rows]


def latency(driver: Driver, before: Built, after: Built) -> Latencies:
    """Milliseconds of both on the example, taken in turns; remembered when a run is resumed, unless it was disturbed.

    What is not timed has no rounds, and says why: no work is lost to a timing that fails.
    """
    return _timed(driver, "timing", driver.target, driver.example, before, after)


def throughput(driver: Driver, before: Built, after: Built) -> Throughput | None:
    """Samples a second of both in batches on all cores, in turns; None where the target's runtime is not one that
    tells it.
    """
    if driver.target.name not in RUNTIMES:
        return None
    target = dataclasses.replace(driver.target, threads=None, seconds=min(driver.target.seconds, _THROUGHPUT_S))
    batch = _enlarged(driver)
    taken = _timed(driver, "timing batches", target, batch, before, after)
    return Throughput(batch_size(batch), target.threads_used, taken)


def _timed(driver: Driver, doing: str, target: Target, inputs: Inputs, before: Built, after: Built) -> Latencies:
    """Both sides called on `inputs` by `target`, which may be the driver's with other threads."""
    if target.runs is None or target.untimed:
        return Latencies({}, untimed=target.untimed)
    runtime = target.runs
    question = (doing, driver.environment, before.digest, after.digest, fingerprint(inputs), repr(target))

    def compute() -> Answer:
        driver.progress(doing, 0, 1)
        same = target == driver.target
        runs = {
            name: one.run if same else runtime.open(one.path, one.signature)
            for name, one in (("before", before), ("after", after))
        }
        taken = runtime.latencies(runs, inputs, target.seconds)
        driver.progress(doing, 1, 1)
        return Answer(_plain(taken))

    try:
        return _latencies(driver.store.answer(question, compute, lasting=_undisturbed).data)
    except MeasureError as error:
        return Latencies({}, untimed=str(error))


@dataclass(frozen=True)
class Throughput:
    """Calls on batches, timed or said not to be; `samples` in each."""

    samples: int
    threads: int
    taken: Latencies

    @property
    def untold(self) -> str:
        """Why nothing is known of it; empty where something is."""
        return "" if self.taken.known else self.taken.untimed or f"{self.taken.disturbance} while they were timed"

    def a_second(self, side: str) -> Measurement:
        """Samples a second, from the time of a call in each round."""
        ms = self.taken.ms(side)
        low = -math.inf if math.isinf(ms.high) else self._rate(ms.high)
        return Measurement(self._rate(ms.value), low, self._rate(ms.low), ms.samples, "samples/s")

    def _rate(self, ms: float) -> float:
        return 1e3 * self.samples / ms if ms > 0 else math.inf


def _enlarged(driver: Driver) -> Inputs:
    """The example, so often that there are samples enough for every core; as it is where its first axis is closed."""
    example, count = driver.example, batch_size(driver.example)
    opened = {driver.dynamic.get(key, {}).get(0) for key in example.tensors()}
    if None in opened or len(opened) != 1 or count >= _BATCH or {len(x) for x in example.tensors().values()} != {count}:
        return example
    times = -(-_BATCH // count)
    return example.map(lambda _, x: torch.cat([x] * times)[:_BATCH])


def _plain(taken: Latencies) -> dict[str, Any]:
    return dataclasses.asdict(taken)


def _latencies(found: Mapping[str, Any]) -> Latencies:
    rounds, processor = ({name: tuple(ms) for name, ms in found[key].items()} for key in ("rounds_ms", "processor_ms"))
    return Latencies(**{**found, "rounds_ms": rounds, "processor_ms": processor})


def _undisturbed(answer: Answer) -> bool:
    return not _latencies(answer.data).disturbance
