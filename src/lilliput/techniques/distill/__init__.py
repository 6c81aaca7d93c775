"""Distillation as loss terms: what a student takes over from a teacher that is shown the same batch.

A term compares what both showed in one forward pass, and gives one number; a training step adds up its terms, each by
its weight. Terms of outputs (`Response`, `Decoupled`, `Correlation`) compare rows of scores; terms of layers (`Hint`,
`Relation`, `Attention`) compare the outputs of modules inside. None needs labels. All compute in float32 whatever the
models compute in, and send no gradient to the teacher.

The mean of several teachers is no case of its own: Σ KL(pᵢ ‖ q)/n differs from KL(Σ pᵢ/n ‖ q) by a number in which the
student does not occur. So one `Response` for each teacher, of weight 1/n, trains towards the mean of what they answer.
"""

from lilliput.techniques.distill.layers import Attention, Hint, LayerTerm, Relation
from lilliput.techniques.distill.outputs import Correlation, Decoupled, OutputTerm, Response
from lilliput.techniques.distill.seen import Seen, attention_of, check_taps
from lilliput.techniques.distill.term import Term

TERMS: dict[str, type[Term]] = {
    "Response": Response,
    "Decoupled": Decoupled,
    "Correlation": Correlation,
    "Hint": Hint,
    "Relation": Relation,
    "Attention": Attention,
}

__all__ = [
    "TERMS",
    "Attention",
    "Correlation",
    "Decoupled",
    "Hint",
    "LayerTerm",
    "OutputTerm",
    "Relation",
    "Response",
    "Seen",
    "Term",
    "attention_of",
    "check_taps",
]
