"""What the verbs give."""

from __future__ import annotations

from lilliput.blame.diagnosis import Diagnosis
from lilliput.delivery import Result
from lilliput.verbs import Trained

__all__ = ["Diagnosis", "Result", "Trained"]
