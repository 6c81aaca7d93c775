"""What a slice is worth to `Prune(score=…)`. Your own: a subclass of `Score`."""

from __future__ import annotations

from lilliput.techniques.scores import Magnitude, Random, Score

__all__ = ["Magnitude", "Random", "Score"]
