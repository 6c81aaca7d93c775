"""What recipes are made of. Your own: a subclass of `Technique`."""

from lilliput.techniques.equalize import Equalize
from lilliput.techniques.factorize import Factorize
from lilliput.techniques.finetune import Finetune
from lilliput.techniques.prune import Prune
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.share import Share
from lilliput.techniques.technique import Technique

__all__ = ["Equalize", "Factorize", "Finetune", "Prune", "Quantize", "Share", "Technique"]
