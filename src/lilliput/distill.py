"""What a student takes over from a teacher: `Finetune(distill=…)`. Your own: a subclass of `Term`."""

from __future__ import annotations

from lilliput.techniques.distill import DIST, DKD, AttentionTransfer, FitNet, LogitKD, RelationalKD, Term

__all__ = ["DIST", "DKD", "AttentionTransfer", "FitNet", "LogitKD", "RelationalKD", "Term"]
