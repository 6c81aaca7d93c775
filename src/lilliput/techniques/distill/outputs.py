"""Terms of outputs: rows of scores, one for each sample, token or pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.errors import InputError
from lilliput.techniques.distill.comparisons import decouple, divergence, pearson
from lilliput.techniques.distill.seen import Seen, constant, unlike
from lilliput.techniques.distill.term import Term

NO_LABEL = -100  # what torch's losses ignore


@dataclass(frozen=True, repr=False, kw_only=True)
class OutputTerm(Term):
    """A term that compares rows of scores, one for each sample, token or pixel."""

    axis: int = -1  # of the classes in the output; 1 for pictures, [batch, classes, height, width]

    def rows(self, student: Seen, teacher: Seen) -> tuple[Tensor, Tensor]:
        """Both outputs as [rows, classes]."""
        s, t = (x[:, None] if x.dim() == 1 else x for x in (student.output, teacher.output))
        where = f"{type(self).__name__}, output"
        if s.shape[:1] != t.shape[:1]:
            raise unlike(s, t, where, "show both the same batch")
        if s.shape != t.shape:
            raise unlike(
                s,
                t,
                where,
                "take a teacher of the same classes, or compare layers: FitNet, RelationalKD, AttentionTransfer",
            )
        if not -s.dim() < self.axis < s.dim() or self.axis == 0:
            raise InputError(
                f"shape {tuple(s.shape)} has no classes on axis {self.axis}", where=where, next="give axis=…"
            )
        s, t = s.movedim(self.axis, -1).flatten(0, -2).float(), constant(t, s).movedim(self.axis, -1).flatten(0, -2)
        if s.shape[1] < 2 and self.shares:
            raise InputError(
                f"shape {tuple(student.output.shape)} has one class",
                where=where,
                why="its share is always 1",
                next='use LogitKD(by="mse")',
            )
        return s, t

    @property
    def shares(self) -> bool:
        """Whether scores are compared as shares of probability."""
        return True


@dataclass(frozen=True, repr=False)
class LogitKD(OutputTerm):
    """The student answers as the teacher does.

    ``kl``: T² · KL(softmax(t/T) ‖ softmax(s/T)), mean over rows; T² keeps gradients as large at any T (Hinton et al.,
    "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531). ``mse``: mean of (s - t)² (Ba and Caruana,
    "Do Deep Nets Really Need to be Deep?", 2013, arXiv 1312.6184).

    >>> student, teacher = Seen(torch.tensor([[0.0, 4.0]])), Seen(torch.tensor([[2.0, 4.0]]))
    >>> round(LogitKD().loss(student, teacher).item(), 3), LogitKD(by="mse").loss(student, teacher).item()
    (0.447, 2.0)
    """

    temperature: float = 4.0  # T of kl: the higher, the more the small probabilities count
    by: Literal["kl", "mse"] = "kl"

    @property
    def shares(self) -> bool:
        return self.by == "kl"

    def compare(self, student: Seen, teacher: Seen, projection: nn.Module | None, labels: Tensor | None) -> Tensor:
        s, t = self.rows(student, teacher)
        if self.by == "mse":
            return F.mse_loss(s, t)
        logs, logt = (s / self.temperature).log_softmax(1), (t / self.temperature).log_softmax(1)
        return self.temperature**2 * divergence(logs, logt).mean()


@dataclass(frozen=True, repr=False)
class DKD(OutputTerm):
    """The student's trust in the right class, and apart from it how it shares out the rest.

    T² · (α · KL(b(t) ‖ b(s)) + β · KL(p(t) ‖ p(s))), mean over rows, where b = (share of the target, share of all
    others) and p are the shares of the others among themselves, of softmax(·/T). The target is the label; where there
    is none (or -100), what the teacher answers. Source: Zhao et al., "Decoupled Knowledge Distillation", 2022, arXiv
    2203.08679; T² as in the authors' code.

    >>> student, teacher = Seen(torch.tensor([[0.0, 4.0, 0.0]])), Seen(torch.tensor([[2.0, 4.0, 0.0]]))
    >>> round(DKD(beta=1).loss(student, teacher, labels=torch.tensor([1])).item(), 3)
    0.642
    """

    alpha: float = 1.0  # weight of the target's share
    beta: float = 8.0  # weight of how the others share the rest
    temperature: float = 4.0  # T

    def compare(self, student: Seen, teacher: Seen, projection: nn.Module | None, labels: Tensor | None) -> Tensor:
        s, t = self.rows(student, teacher)
        target = t.argmax(1) if labels is None else self._targets(labels, student.output, t)
        logs, logt = (s / self.temperature).log_softmax(1), (t / self.temperature).log_softmax(1)
        (both_s, rest_s), (both_t, rest_t) = decouple(logs, target), decouple(logt, target)
        apart = self.alpha * divergence(both_s, both_t) + self.beta * divergence(rest_s, rest_t)
        return self.temperature**2 * apart.mean()

    def _targets(self, labels: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """Class of each row, [rows]."""
        shape = output.movedim(self.axis, -1).shape[:-1]
        if labels.shape != shape or labels.is_floating_point():
            raise InputError(
                f"{labels.dtype} labels of shape {tuple(labels.shape)} for an output of shape {tuple(output.shape)}",
                where="DKD",
                next=f"give integers of shape {tuple(shape)}, or use LogitKD",
            )
        given = labels.flatten().to(t.device).long()
        known = given != NO_LABEL
        outside = given[known & ((given < 0) | (given >= t.shape[1]))]
        if len(outside):
            raise InputError(
                f"the label {outside[0].item()} is no class of an output of shape {tuple(output.shape)}",
                where="DKD",
                next=f"number the classes from 0; {NO_LABEL} is a row without a label",
            )
        return torch.where(known, given, t.argmax(1))


@dataclass(frozen=True, repr=False)
class DIST(OutputTerm):
    """The student ranks classes in each row, and rows in each class, as the teacher does, on a scale of its own.

    T² · (β · mean over rows (1 - ρ) + γ · mean over classes (1 - ρ)), ρ Pearson's correlation of softmax(·/T) between
    student and teacher. Batches of many rows tell more. Source: Huang et al., "Knowledge Distillation from A Stronger
    Teacher" (DIST), 2022, arXiv 2205.10536; T² as in the authors' code.

    >>> student, teacher = Seen(torch.tensor([[0.0, 2.0], [1.0, 0.0]])), Seen(torch.tensor([[0.0, 4.0], [2.0, 0.0]]))
    >>> DIST().loss(student, teacher).item() < 1e-6
    True
    """

    beta: float = 1.0  # weight of the correlation in each row, over classes
    gamma: float = 1.0  # weight of the correlation in each class, over rows
    temperature: float = 1.0  # T

    def compare(self, student: Seen, teacher: Seen, projection: nn.Module | None, labels: Tensor | None) -> Tensor:
        s, t = ((x / self.temperature).softmax(1) for x in self.rows(student, teacher))
        inter, intra = (1 - pearson(s, t)).mean(), (1 - pearson(s.T, t.T)).mean()
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)
