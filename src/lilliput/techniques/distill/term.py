"""What every distillation term is: knobs, and one number for how far a student is from its teacher."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from lilliput.errors import RecipeError, nearest
from lilliput.plain import check_types, short_repr
from lilliput.techniques.distill.seen import Seen


@dataclass(frozen=True, repr=False, kw_only=True)
class Term(ABC):
    """One part of the loss: knobs, and a comparison of what student and teacher showed."""

    weight: float = 1.0  # of this term in the sum
    teacher: int = 0  # which of several, counted from 0

    def __post_init__(self) -> None:
        name, hints = type(self).__name__, get_type_hints(type(self))
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for key, value in given.items():
            known = get_args(hints[key]) if get_origin(hints[key]) is Literal else (value,)
            if value not in known:
                raise RecipeError(f"is {value!r}", where=f"{name}.{key}", next=nearest(str(value), known))
        check_types(self, name)
        for key, value in given.items():
            if hints[key] is float and not (0 < value < math.inf or (value == 0 and key != "temperature")):
                raise RecipeError(f"is {value}", where=f"{name}.{key}", next="give a finite number above 0")
        if self.teacher < 0:
            raise RecipeError(f"is {self.teacher}", where=f"{name}.teacher", next="teachers are counted from 0")

    @property
    def student_taps(self) -> tuple[str, ...]:
        """The modules of the student that must be tapped."""
        return ()

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """The modules of its teacher that must be tapped."""
        return ()

    def projection(self, student: Seen, teacher: Seen) -> nn.Module | None:
        """What must be learned beside the student to compare it, made once from the shapes of a first batch.

        It is trained with the student and then dropped. None where nothing is needed.
        """
        return None

    def loss(
        self, student: Seen, teacher: Seen, projection: nn.Module | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """How far the student is from the teacher, a scalar in float32, before `weight`.

        `labels` are classes, [batch, …] int64, where there are any. Raises InputError where shapes do not fit.
        """
        with torch.autocast(student.output.device.type, enabled=False):
            return self.compare(student, teacher, projection, labels)

    @abstractmethod
    def compare(self, student: Seen, teacher: Seen, projection: nn.Module | None, labels: Tensor | None) -> Tensor:
        """The loss, with autocast off; what was seen comes as the models computed it."""

    def __repr__(self) -> str:
        return short_repr(self)
