"""What makes a whole run of the tests quick, and changes nothing that they look at."""

from __future__ import annotations

import functools
import gc
import os
from collections import defaultdict
from collections.abc import Iterator
from time import perf_counter
from zlib import crc32

import pytest

from lilliput.errors import RAISE_OWN
from lilliput.measure import Clocks
from lilliput.targets import eager
from lilliput.targets import onnx as onnx_files

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before a test imports it by itself
os.environ[RAISE_OWN] = "1"  # a mistake of ours must not pass for a property of a model


_MANY, _PART = 8, 3  # cases of one test; of more, one in so many is run by `--thin`


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thin", action="store_true", help="of tests with many cases, a fixed third of the cases")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Many tests are one function over every number format, network or trouble. A third of the cases, always the same,
    is quick enough to be run at each change; all are run before anything lands (`make test-all`).
    """
    if not config.getoption("--thin", default=False):
        return
    cases = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    left = {
        id(item) for own in cases.values() if len(own) > _MANY for item in own if crc32(item.nodeid.encode()) % _PART
    }
    left -= {id(own[0]) for own in cases.values()}  # so that no test is left out whole
    config.hook.pytest_deselected(items=[item for item in items if id(item) in left])
    items[:] = [item for item in items if id(item) not in left]


@pytest.fixture(autouse=True, scope="session")
def _short_timings() -> Iterator[None]:
    """Latencies are taken as ever, but from few calls, and as if nobody else were at work: what they are, and what is
    told where somebody is, is looked at with clocks of their own in tests/measure and tests/reports alone.
    """
    interleaved = onnx_files.interleaved
    quiet = Clocks(perf_counter, perf_counter, lambda: 0.0)
    short = functools.partial(interleaved, rounds=3, warmup_s=0.0, settle_s=0.0, round_s=0.01, clocks=quiet)
    onnx_files.interleaved = eager.interleaved = short  # type: ignore[assignment]
    yield
    onnx_files.interleaved = eager.interleaved = interleaved


def pytest_collection_finish() -> None:
    """Modules are never garbage: without this, every collection looks at all that torch brings."""
    gc.collect()
    gc.freeze()
