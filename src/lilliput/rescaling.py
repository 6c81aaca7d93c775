"""What is multiplied at one place and divided at another before rounding: `Equalize(…)`. Your own: `Scaling`."""

from __future__ import annotations

from lilliput.techniques.scalings import AWQ, CrossLayer, Scaling, SmoothQuant

__all__ = ["AWQ", "CrossLayer", "Scaling", "SmoothQuant"]
