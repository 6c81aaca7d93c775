"""What a loader gives, as inputs of a model: one way for all fields of a task, and for whoever else reads batches."""

from lilliput.feeding.asked import ask
from lilliput.feeding.batches import Batches, check_like, first_sample
from lilliput.feeding.content import batch_size, fingerprint
from lilliput.feeding.read import batched, read_batches
from lilliput.feeding.source import Source, example_of
from lilliput.feeding.takes import Takes

__all__ = [
    "Batches",
    "Source",
    "Takes",
    "ask",
    "batch_size",
    "batched",
    "check_like",
    "example_of",
    "fingerprint",
    "first_sample",
    "read_batches",
]
