"""Distillation in the training loop: the student is watched, its teachers are asked, and terms compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lilliput.errors import InputError
from lilliput.techniques.distill import Seen, check_taps
from lilliput.techniques.finetune import Finetune
from lilliput.training.data import labels_of
from lilliput.training.hooks import Hook
from lilliput.training.processes import on_device
from lilliput.training.teachers import Live, Saved, Watcher


class Distilling(Hook):
    """The terms of a step over a student, and its teachers, or the answers that these have given before."""

    def __init__(
        self,
        step: Finetune,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        answers: tuple[Path, str] | None,
        autocast: Callable[[], AbstractContextManager[Any]],
        device: Any,
    ) -> None:
        super().__init__()
        self.terms, self.autocast, self.device = step.distill, autocast, device
        self.watcher = Watcher(student, [tap for term in self.terms for tap in term.student_taps])
        live = Live([on_device(teacher, device) for teacher in teachers], self.terms)
        self.teachers: Live | Saved = live if answers is None else Saved(*answers, live)
        self._taught: list[Seen] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        with self.watcher.watching():
            yield

    def project(self, where: str) -> None:
        """Make what the terms learn besides the student, for the shapes of the batch that it was called on."""
        student, teachers = self.watcher.seen(where), self._asked()
        for term in self.terms:
            self.learned.append(term.projection(student, teachers[term.teacher]) or nn.Identity())

    def look(self, where: str) -> None:
        self._taught = self._asked()

    def loss(self, batch: Any, where: str) -> Tensor | None:
        student = self.watcher.seen(where)
        total = student.output.new_zeros(())
        for term, projection in zip(self.terms, self.learned, strict=True):
            given = None if isinstance(projection, nn.Identity) else projection
            total = total + term.weight * term.loss(student, self._taught[term.teacher], given, labels_of(batch))
        self._taught = []
        return total

    def _asked(self) -> list[Seen]:
        assert self.watcher.called is not None
        with self.autocast():
            found = self.teachers.answer(*self.watcher.called)
        return [replace(seen, output=seen.output.to(self.device)) for seen in found]


def check_terms(step: Finetune, student: nn.Module, teachers: Sequence[nn.Module]) -> None:
    """Refuse terms that name teachers or modules which are not there."""
    for term in step.distill:
        if not 0 <= term.teacher < len(teachers):
            raise InputError(
                f"{type(term).__name__} names teacher {term.teacher}",
                where="Finetune",
                why=f"there are {len(teachers)}, counted from 0",
            )
        check_taps(student, term.student_taps, f"{type(term).__name__}, student")
        check_taps(teachers[term.teacher], term.teacher_taps, f"{type(term).__name__}, teacher")
        if step.save_teacher and term.teacher_taps:
            raise InputError(
                f"{type(term).__name__} looks inside the teacher",
                next="only outputs are saved: leave save_teacher=",
            )
