"""ExecuTorch with XNNPACK, on a CPU: docs/edge.md tells what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lilliput.targets.edge import EdgePreferences, EdgeRuntime, EdgeWriter
from lilliput.targets.elsewhere import Elsewhere
from lilliput.targets.target import Target

_TITLE = "ExecuTorch"


@dataclass(frozen=True)
class ExecuTorchWriter(EdgeWriter):
    """A `.pte`, of which XNNPACK runs all that it takes."""

    format: ClassVar[str] = "pte"
    title: ClassVar[str] = _TITLE


@dataclass(frozen=True)
class ExecuTorchRuntime(EdgeRuntime):
    """ExecuTorch's runtime for Python."""

    title: ClassVar[str] = _TITLE


@dataclass(frozen=True)
class ExecuTorch(Target):
    """ExecuTorch with XNNPACK on a CPU: int8 from layer to layer, written and run in an environment of its own.

    `python` is that environment's; None: what the variable EXECUTORCH_PYTHON names, or else this one. Files have the
    lengths of the example. Raises InputError, when work begins, where ExecuTorch is not installed there.

    >>> ExecuTorch(threads=1).writes.format
    'pte'
    """

    python: str | None = None

    name: ClassVar[str] = "executorch"

    def check(self) -> None:
        super().check()
        self._elsewhere.check()

    @property
    def prefers(self) -> EdgePreferences:
        return EdgePreferences("XNNPACK", 2)

    @property
    def writes(self) -> ExecuTorchWriter:
        return ExecuTorchWriter(self._elsewhere)

    @property
    def runs(self) -> ExecuTorchRuntime:
        return ExecuTorchRuntime(self._elsewhere)

    @property
    def _elsewhere(self) -> Elsewhere:
        return Elsewhere("executorch", "1.5", "with_executorch", "EXECUTORCH_PYTHON", self.python, self.threads_used)
