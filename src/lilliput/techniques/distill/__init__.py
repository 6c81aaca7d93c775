"""Distillation as loss terms: what a student takes over from a teacher that is shown the same batch.

A term compares what both showed in one forward pass, and gives one number; a training step adds up its terms, each by
its weight. Terms of outputs (`LogitKD`, `DKD`, `DIST`) compare rows of scores; terms of layers (`FitNet`,
`RelationalKD`, `AttentionTransfer`) compare the outputs of modules inside. None needs labels. All compute in float32
whatever the models compute in, and send no gradient to the teacher.

The mean of several teachers is no case of its own: Σ KL(pᵢ ‖ q)/n differs from KL(Σ pᵢ/n ‖ q) by a number in which the
student does not occur. So one `LogitKD` for each teacher, of weight 1/n, trains towards the mean of what they answer.
"""

from lilliput.techniques.distill.layers import AttentionTransfer, FitNet, LayerTerm, RelationalKD
from lilliput.techniques.distill.outputs import DIST, DKD, LogitKD, OutputTerm
from lilliput.techniques.distill.seen import Seen, attention_of, check_taps
from lilliput.techniques.distill.term import Term

TERMS: dict[str, type[Term]] = {
    "LogitKD": LogitKD,
    "DKD": DKD,
    "DIST": DIST,
    "FitNet": FitNet,
    "RelationalKD": RelationalKD,
    "AttentionTransfer": AttentionTransfer,
}

__all__ = [
    "DIST",
    "DKD",
    "TERMS",
    "AttentionTransfer",
    "FitNet",
    "LayerTerm",
    "LogitKD",
    "OutputTerm",
    "RelationalKD",
    "Seen",
    "Term",
    "attention_of",
    "check_taps",
]
