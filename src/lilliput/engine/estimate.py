"""What a run will take, found by planning it with one calibration batch; nothing is written."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from lilliput.engine.plan import Plan
from lilliput.engine.planned import planned
from lilliput.engine.run import Driver
from lilliput.errors import InputError
from lilliput.feeding import Batches, Source, batch_size
from lilliput.feeding.takes import ANY
from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.views.inputs import Inputs
from lilliput.recipe import Recipe

# seen with ONNX Runtime on EfficientNet-Lite0 and on eight linear layers of 2048 inputs
_BUILD_CAPTURES = 9  # captures that both builds take as long as
_BUILD_S = 1.5  # what building takes whatever the model
_BUILD_COPIES = 2  # copies of the model's tensors that building adds to the peak
_LOOKED = 60  # samples that go through the module to find where it loses
_ROUNDS, _ROUND_S, _WARM_S = 20, 0.17, 0.2  # of the timing


@dataclass(frozen=True)
class Estimate:
    """What a run would take, each to about a factor of two, without the user's own metric and what is `apart`."""

    seconds: float
    memory_bytes: int  # peak of the process
    disk_bytes: int  # of the folder, what is kept for resuming included
    stages_s: dict[str, float]  # seconds by stage: they add up to `seconds`
    apart: tuple[str, ...] = ()  # steps that search or round by what flows, which only doing it tells


class Timed:
    """One batch, and how long those who read it took over it."""

    def __init__(self, batch: Inputs) -> None:
        self.batch, self.seconds = batch, 0.0

    def __iter__(self) -> Iterator[Inputs]:
        began = perf_counter()
        yield self.batch
        self.seconds += perf_counter() - began


def estimated(recipe: Recipe, driver: Driver, *, compared: int, begun_s: float) -> tuple[Plan, Estimate]:
    """Plan the recipe with `driver`, calibrating with its first batch alone, and say what the whole run would take.

    `compared` samples are to be compared at the end; `begun_s` seconds went by before. The driver is left
    as planned.
    """
    original_bytes = tensor_bytes(driver.model)
    whole, timed = driver.calibrate, _first(driver)
    plan = planned(recipe, driver)
    began = perf_counter()
    driver.view()
    capture_s = perf_counter() - began
    share = 1.0 if whole is None or driver.calibrate is None else whole.samples / driver.calibrate.samples
    calibrating_s = 0.0 if timed is None else timed.seconds * share
    forward_s = _forward_s(driver)
    timing_s = 2 * (_WARM_S + _ROUNDS * max(_ROUND_S, 2 * forward_s))
    stages = {
        "reading the data, capturing": begun_s,
        "calibrating": calibrating_s,
        "encoding": 0.0,
        **plan.seconds,
        "building for the target": _BUILD_S + _BUILD_CAPTURES * capture_s,
        "comparing outputs": 2 * forward_s * compared,
        "finding where it loses": _LOOKED * forward_s,
        "timing": 0.0 if driver.target.untimed else min(timing_s, driver.target.seconds),
    }
    return plan, Estimate(
        seconds=sum(stages.values()),
        memory_bytes=_peak_bytes() + _BUILD_COPIES * original_bytes,
        disk_bytes=original_bytes + 3 * tensor_bytes(driver.model),
        stages_s=stages,
        apart=tuple(plan.apart),
    )


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, encoded ones before entropy coding, tied ones once."""
    parameters = sum(_bits(held) for held in tensors(model).values()) // 8
    inside = {id(x) for module in model.modules() if isinstance(module, EncodedTensor) for x in module.buffers()}
    return parameters + sum(x.nbytes for x in model.buffers() if id(x) not in inside)


def _bits(held: Any) -> int:
    shape = tuple(held.shape)
    if isinstance(held, EncodedTensor):
        return int(held.encoding.size_bits(shape))
    return int(8 * held.dtype.itemsize * math.prod(shape))


def _first(driver: Driver) -> Timed | None:
    """Let `driver` calibrate with its first batch alone, timed; that batch."""
    if driver.calibrate is None:
        return None
    first = next(iter(driver.calibrate), None)
    if first is None:
        raise InputError("holds no batches", where=driver.calibrate.field, next="give at least one batch")
    timed = Timed(first)
    source = Source(driver.calibrate.field, ANY, timed)
    driver.calibrate = Batches.checked(source, source.field, driver.example, driver.dynamic)
    timed.seconds = 0.0
    return timed


def _forward_s(driver: Driver) -> float:
    """Seconds of a run of the model, a sample."""
    inputs = driver.example if driver.calibrate is None else next(iter(driver.calibrate))
    began = perf_counter()
    with torch.no_grad():
        inputs.call(driver.model)
    return (perf_counter() - began) / max(1, batch_size(inputs))


def _peak_bytes() -> int:
    """The most memory that this process has held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else 1024 * peak
