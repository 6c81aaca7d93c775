"""How ranges and lists of numbers are fitted: `Quantize(fit=…, calibration=…)`. Your own: a subclass of `Range`."""

from __future__ import annotations

from lilliput.techniques.hqq import HQQ
from lilliput.techniques.ranges import MSE, Entropy, Intervals, MinMax, Percentile, Quantiles, Range

__all__ = ["HQQ", "MSE", "Entropy", "Intervals", "MinMax", "Percentile", "Quantiles", "Range"]
