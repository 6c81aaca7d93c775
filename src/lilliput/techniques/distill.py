"""Distillation as loss terms: what a student takes over from a teacher that is shown the same batch.

A term compares what both showed in one forward pass, and gives one number; a training step adds up its terms, each by
its weight. Terms of outputs (`Response`, `Decoupled`, `Correlation`) compare rows of scores; terms of layers (`Hint`,
`Relation`, `Attention`) compare the outputs of modules inside. None needs labels. All compute in float32 whatever the
models compute in, and send no gradient to the teacher.

The mean of several teachers is no case of its own: Σ KL(pᵢ ‖ q)/n differs from KL(Σ pᵢ/n ‖ q) by a number in which the
student does not occur. So one `Response` for each teacher, of weight 1/n, trains towards the mean of what they answer.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.errors import InputError, RecipeError, nearest
from lilliput.plain import check_types, short_repr
from lilliput.techniques.comparisons import (
    angles,
    decouple,
    distances,
    divergence,
    energy,
    flow,
    pearson,
    pooled,
    similarities,
)

NO_LABEL = -100  # what torch's losses ignore


@dataclass(frozen=True, eq=False)
class Seen:
    """What one forward pass showed."""

    output: Tensor  # the first output, [batch, …, classes]
    taps: Mapping[str, Tensor] = field(default_factory=dict)  # by module path, its first output, [batch, …]
    attention: Mapping[str, Tensor] = field(default_factory=dict)  # by module path, its `attention_of`


def attention_of(output: Any) -> Tensor | None:
    """The attention probabilities in what a module returned: the second of a tuple, of three or four axes.

    They are [batch, heads, queries, keys], or without heads where the module has averaged over them.

    >>> tokens = torch.ones(2, 5, 8)
    >>> attention_of(nn.MultiheadAttention(8, 2, batch_first=True)(tokens, tokens, tokens)).shape
    torch.Size([2, 5, 5])
    """
    second = output[1] if isinstance(output, tuple | list) and len(output) > 1 else None
    return second if isinstance(second, Tensor) and second.is_floating_point() and second.dim() in (3, 4) else None


def check_taps(model: nn.Module, paths: Iterable[str], field: str) -> None:
    """Refuse module paths that the model has not.

    >>> check_taps(nn.TransformerEncoderLayer(8, 2), ["self_atn"], "Hint, student")
    Traceback (most recent call last):
    lilliput.errors.RecipeError: Hint, student: there is no module 'self_atn'; did you mean 'self_attn'? (known: ...)
    """
    known = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    for path in paths:
        if path not in known and path != "":
            near = difflib.get_close_matches(path, known, n=8, cutoff=0.0)
            raise RecipeError(f"there is no module {path!r}", where=field, next=nearest(path, near))


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


# terms of outputs


@dataclass(frozen=True, repr=False, kw_only=True)
class OutputTerm(Term):
    """A term that compares rows of scores, one for each sample, token or pixel."""

    axis: int = -1  # of the classes in the output; 1 for pictures, [batch, classes, height, width]

    def rows(self, student: Seen, teacher: Seen) -> tuple[Tensor, Tensor]:
        """Both outputs as [rows, classes]."""
        s, t = (x[:, None] if x.dim() == 1 else x for x in (student.output, teacher.output))
        where = f"{type(self).__name__}, output"
        if s.shape[:1] != t.shape[:1]:
            raise _unlike(s, t, where, "show both the same batch")
        if s.shape != t.shape:
            raise _unlike(
                s, t, where, "take a teacher of the same classes, or compare layers: Hint, Relation, Attention"
            )
        if not -s.dim() < self.axis < s.dim() or self.axis == 0:
            raise InputError(
                f"shape {tuple(s.shape)} has no classes on axis {self.axis}", where=where, next="give axis=…"
            )
        s, t = s.movedim(self.axis, -1).flatten(0, -2).float(), _constant(t, s).movedim(self.axis, -1).flatten(0, -2)
        if s.shape[1] < 2 and self.shares:
            raise InputError(
                f"shape {tuple(student.output.shape)} has one class",
                where=where,
                why="its share is always 1",
                next='use Response(by="mse")',
            )
        return s, t

    @property
    def shares(self) -> bool:
        """Whether scores are compared as shares of probability."""
        return True


@dataclass(frozen=True, repr=False)
class Response(OutputTerm):
    """The student answers as the teacher does.

    ``kl``: T² · KL(softmax(t/T) ‖ softmax(s/T)), mean over rows; T² keeps gradients as large at any T (Hinton et al.,
    "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531). ``mse``: mean of (s - t)² (Ba and Caruana,
    "Do Deep Nets Really Need to be Deep?", 2013, arXiv 1312.6184).

    >>> student, teacher = Seen(torch.tensor([[0.0, 4.0]])), Seen(torch.tensor([[2.0, 4.0]]))
    >>> round(Response().loss(student, teacher).item(), 3), Response(by="mse").loss(student, teacher).item()
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
class Decoupled(OutputTerm):
    """The student's trust in the right class, and apart from it how it shares out the rest.

    T² · (α · KL(b(t) ‖ b(s)) + β · KL(p(t) ‖ p(s))), mean over rows, where b = (share of the target, share of all
    others) and p are the shares of the others among themselves, of softmax(·/T). The target is the label; where there
    is none (or -100), what the teacher answers. Source: Zhao et al., "Decoupled Knowledge Distillation", 2022, arXiv
    2203.08679; T² as in the authors' code.

    >>> student, teacher = Seen(torch.tensor([[0.0, 4.0, 0.0]])), Seen(torch.tensor([[2.0, 4.0, 0.0]]))
    >>> round(Decoupled(beta=1).loss(student, teacher, labels=torch.tensor([1])).item(), 3)
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
                where="Decoupled",
                next=f"give integers of shape {tuple(shape)}, or use Response",
            )
        given = labels.flatten().to(t.device).long()
        known = given != NO_LABEL
        outside = given[known & ((given < 0) | (given >= t.shape[1]))]
        if len(outside):
            raise InputError(
                f"the label {outside[0].item()} is no class of an output of shape {tuple(output.shape)}",
                where="Decoupled",
                next=f"number the classes from 0; {NO_LABEL} is a row without a label",
            )
        return torch.where(known, given, t.argmax(1))


@dataclass(frozen=True, repr=False)
class Correlation(OutputTerm):
    """The student ranks classes in each row, and rows in each class, as the teacher does, on a scale of its own.

    T² · (β · mean over rows (1 - ρ) + γ · mean over classes (1 - ρ)), ρ Pearson's correlation of softmax(·/T) between
    student and teacher. Batches of many rows tell more. Source: Huang et al., "Knowledge Distillation from A Stronger
    Teacher" (DIST), 2022, arXiv 2205.10536; T² as in the authors' code.

    >>> student, teacher = Seen(torch.tensor([[0.0, 2.0], [1.0, 0.0]])), Seen(torch.tensor([[0.0, 4.0], [2.0, 0.0]]))
    >>> Correlation().loss(student, teacher).item() < 1e-6
    True
    """

    beta: float = 1.0  # weight of the correlation in each row, over classes
    gamma: float = 1.0  # weight of the correlation in each class, over rows
    temperature: float = 1.0  # T

    def compare(self, student: Seen, teacher: Seen, projection: nn.Module | None, labels: Tensor | None) -> Tensor:
        s, t = ((x / self.temperature).softmax(1) for x in self.rows(student, teacher))
        inter, intra = (1 - pearson(s, t)).mean(), (1 - pearson(s.T, t.T)).mean()
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)


# terms of layers


@dataclass(frozen=True, repr=False)
class LayerTerm(Term):
    """A term that compares what modules return; the path "" is the model itself, and its first output.

    Over several layers it is the sum of what it is for each.
    """

    layers: str | tuple[str, ...]  # module paths in the student
    _: KW_ONLY
    teacher_layers: str | tuple[str, ...] = ()  # in the teacher, one for each of `layers`; (): of the same names
    channel_axis: int | None = None  # of what layers return; None: 1 of four axes or more, the last of two or three

    def __post_init__(self) -> None:
        super().__post_init__()
        ours, theirs = self.paths
        if not ours:
            raise RecipeError("names no layer", where=f"{type(self).__name__}.layers", next="give module paths")
        if len(ours) != len(theirs):
            raise RecipeError(
                f"names {len(theirs)} layers where the student has {len(ours)}",
                where=f"{type(self).__name__}.teacher_layers",
                next="give one for each of layers",
            )

    @property
    def paths(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The layers of the student, and those of the teacher beside them."""
        ours, theirs = ((x,) if isinstance(x, str) else x for x in (self.layers, self.teacher_layers))
        return ours, theirs or ours

    @property
    def student_taps(self) -> tuple[str, ...]:
        return tuple(path for path in self.paths[0] if path)

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        return tuple(path for path in self.paths[1] if path)

    def pairs(self, student: Seen, teacher: Seen, attention: bool = False) -> Iterator[tuple[str, Tensor, Tensor]]:
        """For each layer where it is, and what the student and the teacher showed there, in float32."""
        for path, teacher_path in zip(*self.paths, strict=True):
            s = _shown(student, path, attention, f"{type(self).__name__}, student").float()
            t = _constant(_shown(teacher, teacher_path, attention, f"{type(self).__name__}, teacher"), s)
            where = f"{type(self).__name__}, {path or 'output'!r}"
            if s.shape[:1] != t.shape[:1]:
                raise _unlike(s, t, where, "tap modules that see one row for each sample, in both models")
            yield where, s, t

    def channels_first(self, x: Tensor, where: str) -> Tensor:
        """What a layer returned as [batch, channels, *positions]."""
        axis = self.channel_axis if self.channel_axis is not None else 1 if x.dim() > 3 else -1
        if x.dim() < 2 or not -x.dim() < axis < x.dim() or axis == 0:
            raise InputError(
                f"shape {tuple(x.shape)} has no channels on axis {axis}", where=where, next="give channel_axis=…"
            )
        return x.movedim(axis, 1)

    def positions_alike(self, s: Tensor, t: Tensor, where: str) -> tuple[Tensor, Tensor]:
        """Both [batch, channels, *positions] averaged down to the smaller of each size; sequences must be as long."""
        if s.shape[2:] == t.shape[2:]:
            return s, t
        where += ", channels first"
        if s.dim() != t.dim() or s.dim() > 5:
            raise _unlike(s, t, where, "tap layers of like outputs")
        if s.dim() == 3 and self.channel_axis != 1:
            raise _unlike(
                s, t, where, "give both the same tokens; if these are [batch, channels, length], channel_axis=1"
            )
        size = tuple(map(min, s.shape[2:], t.shape[2:]))
        return pooled(s, size), pooled(t, size)


@dataclass(frozen=True, repr=False)
class Hint(LayerTerm):
    """The student's layers hold what the teacher's hold, seen through a learned linear map where widths differ.

    Mean of (r(s) - t)²; r is a linear layer over the channels (on pictures: a 1×1 convolution), none where widths are
    equal. Where pictures differ in size, both are averaged down to the smaller. Source: Romero et al., "FitNets: Hints
    for Thin Deep Nets", 2014, arXiv 1412.6550; for transformers Jiao et al., 2019, arXiv 1909.10351.

    >>> hint = Hint("body", teacher_layers="encoder")
    >>> student = Seen(torch.zeros(2, 3), {"body": torch.ones(2, 8, 4, 4)})
    >>> teacher = Seen(torch.zeros(2, 3), {"encoder": torch.ones(2, 16, 8, 8)})
    >>> projection = hint.projection(student, teacher)
    >>> projection, hint.loss(student, teacher, projection).shape
    (ModuleList(
      (0): Linear(in_features=8, out_features=16, bias=True)
    ), torch.Size([]))
    """

    def projection(self, student: Seen, teacher: Seen) -> nn.Module | None:
        """One linear map for each layer, none where the widths are equal."""
        widths = [
            (self.channels_first(s, where).shape[1], self.channels_first(t, where).shape[1])
            for where, s, t in self.pairs(student, teacher)
        ]
        if all(ours == theirs for ours, theirs in widths):
            return None
        device = student.output.device
        return nn.ModuleList(nn.Identity() if a == b else nn.Linear(a, b, device=device) for a, b in widths)

    def compare(self, student: Seen, teacher: Seen, projection: nn.Module | None, labels: Tensor | None) -> Tensor:
        learned = list(projection) if isinstance(projection, nn.ModuleList) else [None] * len(self.paths[0])
        losses = []
        for part, (where, s, t) in zip(learned, self.pairs(student, teacher), strict=True):
            s, t = self.positions_alike(self.channels_first(s, where), self.channels_first(t, where), where)
            if part is not None:
                s = part(s.movedim(1, -1)).movedim(-1, 1)
            if s.shape != t.shape:
                what = "give the projection that projection() makes from a first batch"
                raise _unlike(s, t, f"{where}, channels first", what)
            losses.append(F.mse_loss(s, t))
        return torch.stack(losses).sum()


@dataclass(frozen=True, repr=False)
class Relation(LayerTerm):
    """The samples of a batch, or the channels of two layers, stand to each other as they do in the teacher.

    ``distances``: Huber loss of ‖xᵢ - xⱼ‖/μ, μ their mean, over pairs of samples. ``angles``: Huber loss of the cosine
    of the angle at xⱼ, over triplets; memory grows with batch³ (Park et al., "Relational Knowledge Distillation", 2019,
    arXiv 1904.05068). ``similarities``: mean square between the matrices xxᵀ with rows of length 1 (Tung and Mori,
    "Similarity-Preserving Knowledge Distillation", 2019, arXiv 1907.09682). For these a sample is all that the layer
    returns of it, and widths may differ. ``flow``: mean square between the matrices Σ aᵢbⱼ/positions of the channels of
    each layer and the next, for which widths must agree (Yim et al., "A Gift from Knowledge Distillation", CVPR 2017).
    A batch too small for a pair or triplet adds nothing.

    >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]])
    >>> Relation("").loss(Seen(x), Seen(2 * x)).item() < 1e-6
    True
    """

    by: Literal["distances", "angles", "similarities", "flow"] = "distances"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == "flow" and len(self.paths[0]) < 2:
            raise RecipeError(
                "flow is between two layers", where="Relation.layers", next='name both: layers=("first", "second")'
            )

    def compare(self, student: Seen, teacher: Seen, projection: nn.Module | None, labels: Tensor | None) -> Tensor:
        relate = {"distances": distances, "angles": angles, "similarities": similarities}
        pairs = list(self.pairs(student, teacher))
        if self.by == "flow":
            flows = [self._flows(a, b) for a, b in pairwise(pairs)]
        else:
            flows = [(relate[self.by](s.flatten(1)), relate[self.by](t.flatten(1))) for _, s, t in pairs]
        compare = F.huber_loss if self.by in ("distances", "angles") else F.mse_loss
        return torch.stack([compare(s, t) if s.numel() else s.sum() for s, t in flows]).sum()

    def _flows(self, a: tuple[str, Tensor, Tensor], b: tuple[str, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Those of the student and of the teacher, each [batch, channels of one layer, channels of the next]."""
        where = f"{a[0]} to {b[0]}"

        def between(first: Tensor, second: Tensor) -> Tensor:
            ends = self.channels_first(first, where), self.channels_first(second, where)
            return flow(*self.positions_alike(*ends, where))

        s, t = between(a[1], b[1]), between(a[2], b[2])
        if s.shape != t.shape:
            raise _unlike(s, t, where, 'take layers as wide as the teacher\'s, or by="similarities"')
        return s, t


@dataclass(frozen=True, repr=False)
class Attention(LayerTerm):
    """The student looks where the teacher looks.

    ``energy``: of what layers return, ‖Q(s)/‖Q(s)‖ - Q(t)/‖Q(t)‖‖², mean over samples, Q the sum of squares over the
    channels at each position; widths may differ (Zagoruyko and Komodakis, "Paying More Attention to Attention", 2016,
    arXiv 1612.03928; squared as in the authors' code). ``kl`` and ``mse``: of the attention probabilities of
    transformers, KL(t ‖ s) a query (Wang et al., "MiniLM", 2020, arXiv 2002.10957) or mean square (as Jiao et al.,
    "TinyBERT", 2019, arXiv 1909.10351, do with the scores before softmax, which modules do not return). Where the
    numbers of heads differ, their means are compared.

    >>> student = Seen(torch.zeros(1, 3), {"body": torch.ones(1, 8, 4, 4)})
    >>> teacher = Seen(torch.zeros(1, 3), {"body": torch.ones(1, 32, 8, 8)})
    >>> Attention("body").loss(student, teacher).item() < 1e-6
    True
    """

    by: Literal["energy", "kl", "mse"] = "energy"

    def compare(self, student: Seen, teacher: Seen, projection: nn.Module | None, labels: Tensor | None) -> Tensor:
        compare = self._energies if self.by == "energy" else self._probabilities
        pairs = self.pairs(student, teacher, attention=self.by != "energy")
        return torch.stack([compare(where, s, t) for where, s, t in pairs]).sum()

    def _energies(self, where: str, s: Tensor, t: Tensor) -> Tensor:
        s, t = self.channels_first(s, where), self.channels_first(t, where)
        if s.dim() < 3 or t.dim() < 3:
            raise _unlike(s, t, where, "tap layers that return pictures or tokens: here is nowhere to look")
        s, t = self.positions_alike(energy(s), energy(t), where)
        return (F.normalize(s.flatten(1)) - F.normalize(t.flatten(1))).square().sum(1).mean()

    def _probabilities(self, where: str, s: Tensor, t: Tensor) -> Tensor:
        s, t = (x[:, None] if x.dim() == 3 else x for x in (s, t))  # [batch, heads, queries, keys]
        if s.dim() != 4 or t.dim() != 4 or s.shape[2:] != t.shape[2:]:
            raise _unlike(s, t, where, "give both models the same tokens")
        if s.shape[1] != t.shape[1]:
            s, t = s.mean(1), t.mean(1)
        if self.by == "mse":
            return F.mse_loss(s, t)
        least = torch.finfo(s.dtype).tiny
        return divergence(s.clamp(min=least).log(), t.clamp(min=least).log()).mean()


TERMS: dict[str, type[Term]] = {
    "Response": Response,
    "Decoupled": Decoupled,
    "Correlation": Correlation,
    "Hint": Hint,
    "Relation": Relation,
    "Attention": Attention,
}


# what was shown, as it is compared


def _constant(t: Tensor, like: Tensor) -> Tensor:
    """What a teacher showed, in float32 where the student is, without a gradient."""
    return t.detach().to(like.device, torch.float32)


def _shown(seen: Seen, path: str, attention: bool, where: str) -> Tensor:
    held = seen.attention if attention else {**seen.taps, "": seen.output}
    if path in held:
        return held[path]
    if attention:
        raise InputError(
            f"{path!r} returned no attention probabilities",
            where=where,
            why="fused kernels compute none",
            next='load transformers with attn_implementation="eager", call MultiheadAttention with need_weights=True',
        )
    raise InputError(
        f"{path!r} showed nothing",
        where=where,
        why="it did not run, or returned no tensor",
        next="tap a module through which every batch goes",
    )


def _unlike(s: Tensor, t: Tensor, where: str, next: str) -> InputError:
    shapes = f"the student has shape {tuple(s.shape)}, the teacher {tuple(t.shape)}"
    return InputError(shapes, where=where, next=next)
