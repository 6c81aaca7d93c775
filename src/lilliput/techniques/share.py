"""Weights that share few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lilliput.encodings import Codebook, Encoding
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.ranges import MSE, Range
from lilliput.techniques.run import Run
from lilliput.techniques.technique import Technique


@dataclass(frozen=True, repr=False)
class Share(Technique):
    """Let weights share `levels` numbers, fitted to them: short for ``Quantize(weights=Codebook(levels, …))``.

    >>> Share(16, per="channel")
    Share(per='channel')
    """

    levels: int = 16  # 2 … 256
    per: Literal["channel", "tensor"] | None = None  # None: one list for the tensor, or one for each group
    group: int | None = None  # inputs that have a list of their own
    held: Encoding | None = None  # how the numbers are held; None: float32
    fit: Range = MSE()  # how they are found: by Lloyd's algorithm, or Quantiles(), Intervals()
    together: bool = False  # one list for all tensors that `where` means, a stage of a network say

    def __post_init__(self) -> None:
        self.quantize()

    def quantize(self) -> Quantize:
        """The step that it is short for."""
        weights = Codebook(self.levels, self.group, self.per, held=self.held)
        return Quantize(weights=weights, fit=self.fit, together=self.together, where=self.where)

    @property
    def rounds(self) -> bool:
        return True

    @property
    def needs(self) -> Mapping[str, str]:
        return self.quantize().needs

    @property
    def needs_whole(self) -> str:
        return self.quantize().needs_whole

    def apply(self, run: Run) -> None:
        self.quantize().apply(run)
