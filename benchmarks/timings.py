"""Speeds that hold from one process to the next: the same files, timed in turns in several fresh ones.

Within a process the rounds agree to a percent, and the next process may say otherwise: memory lies elsewhere, and the
machine is at another temperature. So a figure is the median of what the processes say, and its interval lies between
them. A dry run takes one process, for it is a look and no figure.
"""

from __future__ import annotations

import functools
import math
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import table

from lilliput.measure import Latencies, Measurement, interleaved, median, median_ratio
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.targets import Target

PROCESSES = 3
_START = "import sys, timings; timings.answer(*sys.argv[1:])"


@dataclass(frozen=True)
class Request:
    """The files to time, and how they are opened, called and timed."""

    files: dict[str, Path]
    target: Target
    signature: Signature
    example: Inputs
    turns: dict[str, Any]  # what `interleaved` takes


@dataclass(frozen=True)
class Taken:
    """What each process took.

    >>> quiet = [Latencies({"float": (2.0,) * 9, "ours": (took,) * 9}) for took in (1.0, 1.01, 1.02)]
    >>> found = Taken(tuple(quiet)).ratio("float", "ours")
    >>> found.value > 1.98 and found.low < 1.96 and found.samples == 3
    True
    """

    processes: tuple[Latencies, ...]

    @property
    def others_cores(self) -> float | None:
        """Cores that others kept busy beside the process that had most of it; None where unknown."""
        return max((one.others_cores for one in self.processes if one.others_cores is not None), default=None)

    def ms(self, name: str) -> float:
        """The median over processes, in ms a call."""
        return median([one.ms(name).value for one in self.processes]).value

    def ratio(self, slow: str, fast: str) -> Measurement:
        """How many times faster `fast` is than `slow`, with the interval between processes; open where one was
        disturbed, or there is one alone.
        """
        each = [one.ratio(slow, fast).value for one in self.processes]
        found = median_ratio(each, [1.0] * len(each))
        disturbed = any(one.disturbance for one in self.processes)
        return replace(found, low=-math.inf, high=math.inf) if disturbed else found

    def row(self, name: str, slow: str, fast: str) -> dict[str, Any]:
        """The ratio as columns of a table, `name` and its ends, without what cannot be told; and the conditions."""
        found: Mapping[str, Any] = self.ratio(slow, fast).to_json()
        known = all(one.known for one in self.processes)
        return {
            name: found["value"] if known else None,
            f"{name}_low": found["low"] if known else None,
            f"{name}_high": found["high"] if known else None,
            "processes": len(self.processes),
            "others_cores": self.others_cores,
        }


def timed(
    files: Mapping[str, Path], target: Target, signature: Signature, example: Inputs, count: int = 0, **turns: Any
) -> Taken:
    """Time the files in turns, in `count` fresh processes (three, in a dry run one)."""
    request = Request(dict(files), target, signature, example, turns)
    with tempfile.TemporaryDirectory(prefix="timed-") as folder:
        asked, answered = Path(folder) / "request", Path(folder) / "answer"
        asked.write_bytes(pickle.dumps(request))
        paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-c", _START, str(asked), str(answered)]
        found = []
        for _ in range(count or (1 if table.DRY else PROCESSES)):
            environment = {**os.environ, "PYTHONPATH": paths}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"a process that times failed: {done.stderr.strip().splitlines()[-1]}")
            found.append(pickle.loads(answered.read_bytes()))
    return Taken(tuple(found))


def answer(asked: str, answered: str) -> None:
    """What this process takes, from one file to another."""
    request: Request = pickle.loads(Path(asked).read_bytes())
    opened = {name: request.target.runs.open(path, request.signature) for name, path in request.files.items()}
    calls = {name: functools.partial(request.example.call, run) for name, run in opened.items()}
    taken = interleaved(calls, threads=request.target.threads_used, **request.turns)
    Path(answered).write_bytes(pickle.dumps(taken))
