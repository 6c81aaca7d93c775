"""A process in another environment, which writes, opens, runs and times files by a package that is there."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lilliput.errors import ExportError, InputError, reason
from lilliput.targets.elsewhere import serving

_TELL = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


@dataclass(frozen=True)
class Elsewhere:
    """A package, and the Python that has it.

    `variable` is one of the environment that names that Python where no option does; without either it is this one.
    """

    title: str  # as people call it
    package: str  # as pip knows it
    least: str  # version
    module: str  # the file here that knows how the package is called
    variable: str
    python: str | None
    threads: int

    @property
    def interpreter(self) -> str:
        return self.python or os.environ.get(self.variable) or sys.executable

    def check(self) -> None:
        """Raises InputError where the Python cannot be run, or has no such package, or an older one."""
        found = _version(self.interpreter, self.package)
        if _numbers(found) < _numbers(self.least):
            raise InputError(
                f"{self.package} {found} is older than {self.least}",
                where=self.interpreter,
                next=f"{self.interpreter} -m pip install '{self.package}>={self.least}'",
            )

    def ask(self, told: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What the process answers; raises ExportError with what the package raised."""
        self.check()
        return _process(self.interpreter, self.module, self.threads).ask(told, arrays)


def _numbers(version: str) -> list[int]:
    """The leading numbers of a version.

    >>> _numbers("1.10.2rc1") > _numbers("1.9")
    True
    """
    first = (part for part in version.replace("+", ".").split("."))
    return [int(digits) for part in first if (digits := "".join(c for c in part if c.isdigit())) and part[0].isdigit()]


@cache
def _version(python: str, package: str) -> str:
    try:
        done = subprocess.run([python, "-c", _TELL, package], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(
            "this Python cannot be run", where=python, why=reason(error), next="name the Python that has the package"
        ) from None
    if done.returncode:
        raise InputError(
            f"{package} is not installed",
            where=python,
            next=f"{python} -m pip install {package}, or name by python= the Python of an environment that has it",
        )
    return done.stdout.strip()


@cache
def _process(python: str, module: str, threads: int) -> _Process:
    return _Process(python, module, threads)


class _Process:
    """One process; requests of several threads wait for one another."""

    def __init__(self, python: str, module: str, threads: int) -> None:
        self.python, self.lock = python, threading.Lock()
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [python, str(Path(serving.__file__)), module, str(threads)]
        self.running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, env=variables
        )
        atexit.register(self.end)
        self._read()

    def ask(self, told: dict[str, Any], arrays: Sequence[np.ndarray]) -> tuple[dict[str, Any], list[np.ndarray]]:
        with self.lock:
            with contextlib.suppress(OSError):  # it has ended, which reading tells
                serving.write(self.running.stdin, told, arrays)  # type: ignore[arg-type]
            answer, given = self._read()
        if "error" in answer:
            raise ExportError(f"could not {told['do']} it", where=self.python, why=answer["error"])
        return answer, given

    def _read(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        answer = serving.read(self.running.stdout)  # type: ignore[arg-type]
        if answer is None:
            self.end()
            _process.cache_clear()
            self.said.seek(0)
            lines = self.said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ExportError(f"the process ended with {self.running.returncode}", where=self.python, why=lines[-1])
        return answer

    def end(self) -> None:
        for stream in (self.running.stdin, self.running.stdout):
            if stream is not None:
                stream.close()
        self.running.terminate()
        self.running.wait()
