"""How weights are rounded by what flows: `Quantize(rounding=…)`. Your own: a subclass of `Rounding`."""

from __future__ import annotations

from lilliput.techniques.rounding import BRECQ, GPTQ, AdaRound, Rounding

__all__ = ["BRECQ", "GPTQ", "AdaRound", "Rounding"]
