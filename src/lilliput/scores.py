"""What a slice is worth to `Prune(score=…)`. Your own: a subclass of `Score`."""

from __future__ import annotations

from lilliput.techniques.scores import Fisher, Magnitude, Random, Score, Sensitivity, Taylor

__all__ = ["Fisher", "Magnitude", "Random", "Score", "Sensitivity", "Taylor"]
