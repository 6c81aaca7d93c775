"""What makes a whole run of the tests quick, and changes nothing that they look at."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from time import perf_counter

import pytest

from lilliput.errors import RAISE_OWN
from lilliput.measure import Clocks
from lilliput.targets import onnx_file

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before a test imports it by itself
os.environ[RAISE_OWN] = "1"  # a mistake of ours must not pass for a property of a model


@pytest.fixture(autouse=True, scope="session")
def _short_timings() -> Iterator[None]:
    """Latencies are taken as ever, but from few calls, and as if nobody else were at work: what they are, and what is
    told where somebody is, is looked at with clocks of their own in tests/measure and tests/reports alone.
    """
    interleaved = onnx_file.interleaved
    quiet = Clocks(perf_counter, perf_counter, lambda: 0.0)
    short = functools.partial(interleaved, rounds=3, warmup_s=0.0, settle_s=0.0, round_s=0.01, clocks=quiet)
    onnx_file.interleaved = short  # type: ignore[assignment]
    yield
    onnx_file.interleaved = interleaved


def pytest_collection_finish() -> None:
    """Modules are never garbage: without this, every collection looks at all that torch brings."""
    gc.collect()
    gc.freeze()
