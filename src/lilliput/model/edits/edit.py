"""What a change to a model is, as data, and what is noted in a model of the changes that no constructor repeats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lilliput.errors import FormatError
from lilliput.model.carrier.carrier import note_reshaped, owner_of
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.views.values import ValueEncoder, ValueEncodings
from lilliput.plain import short_repr

_STRUCTURE = "_lilliput_structure"  # attribute of a root: the edits that `structure` tells
SAME = "give the constructor, with the arguments, used for saving"
CARRIERS = (EncodedTensor, ValueEncoder, ValueEncodings)  # modules that are none of the user's


@dataclass(frozen=True, repr=False)
class Edit(ABC):
    """One change to a model; its tensors travel beside it."""

    def apply(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Make the change in `root`, in place; one that no constructor repeats is noted there (`structure`)."""
        if self._change(root, tensors):  # an earlier one of its kind that made the same change gives way
            others = (
                edit for edit in structure(root) if type(edit) is not type(self) or edit.places() != self.places()
            )
            vars(root)[_STRUCTURE] = (*others, self)
            note_reshaped(root)

    @abstractmethod
    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        """Make the change; tell whether the model now has other modules or parameters, encodings aside."""

    def stored(self, names: Iterable[str]) -> dict[str, str]:
        """Under which of `names`, those of the changed model's tensors, each of this edit's tensors is held."""
        return {}

    @abstractmethod
    def places(self) -> tuple[str, ...]:
        """What it changes: paths, or the name of a value."""

    def __repr__(self) -> str:
        return short_repr(self)


def structure(root: nn.Module) -> tuple[Edit, ...]:
    """The changes that gave `root` other modules and parameters than its constructor makes, encodings aside."""
    return vars(root).get(_STRUCTURE, ())  # type: ignore[no-any-return]


def owner_at(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    try:
        owner, name = owner_of(root, path)
    except AttributeError:
        raise FormatError("the model has no such module", where=path, next=SAME) from None
    if isinstance(owner, CARRIERS):
        raise FormatError("leads into an encoding", where=path, next="edits change what the model itself holds")
    return owner, name
