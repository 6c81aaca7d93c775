"""LiteRT on a CPU: docs/edge.md tells what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lilliput.targets.edge import EdgePreferences, EdgeRuntime, EdgeWriter
from lilliput.targets.elsewhere import Elsewhere
from lilliput.targets.target import Target

_TITLE = "LiteRT"


@dataclass(frozen=True)
class LiteRtWriter(EdgeWriter):
    """A `.tflite`, int8 in and out where the first and last values are encoded."""

    format: ClassVar[str] = "tflite"
    title: ClassVar[str] = _TITLE


@dataclass(frozen=True)
class LiteRtRuntime(EdgeRuntime):
    """LiteRT's interpreter, with XNNPACK."""

    title: ClassVar[str] = _TITLE


@dataclass(frozen=True)
class LiteRt(Target):
    """LiteRT on a CPU: int8 from the first value to the last, written and run in an environment of its own.

    `python` is that environment's; None: what the variable LITERT_PYTHON names, or else this one. Files have the
    lengths of the example. Raises InputError, when work begins, where litert-torch is not installed there.

    >>> LiteRt(threads=1).writes.format
    'tflite'
    """

    python: str | None = None

    name: ClassVar[str] = "litert"

    def check(self) -> None:
        super().check()
        self._elsewhere.check()

    @property
    def prefers(self) -> EdgePreferences:
        return EdgePreferences(_TITLE, 2)

    @property
    def writes(self) -> LiteRtWriter:
        return LiteRtWriter(self._elsewhere)

    @property
    def runs(self) -> LiteRtRuntime:
        return LiteRtRuntime(self._elsewhere)

    @property
    def _elsewhere(self) -> Elsewhere:
        return Elsewhere("litert-torch", "0.10", "with_litert", "LITERT_PYTHON", self.python, self.threads_used)
