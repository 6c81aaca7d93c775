"""Terms of layers: what modules inside return, features or the probabilities of attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.errors import InputError, RecipeError
from lilliput.techniques.distill.comparisons import angles, distances, divergence, energy, flow, pooled, similarities
from lilliput.techniques.distill.seen import Seen, constant, unlike
from lilliput.techniques.distill.term import Term


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
            t = constant(_shown(teacher, teacher_path, attention, f"{type(self).__name__}, teacher"), s)
            where = f"{type(self).__name__}, {path or 'output'!r}"
            if s.shape[:1] != t.shape[:1]:
                raise unlike(s, t, where, "tap modules that see one row for each sample, in both models")
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
            raise unlike(s, t, where, "tap layers of like outputs")
        if s.dim() == 3 and self.channel_axis != 1:
            raise unlike(
                s, t, where, "give both the same tokens; if these are [batch, channels, length], channel_axis=1"
            )
        size = tuple(map(min, s.shape[2:], t.shape[2:]))
        return pooled(s, size), pooled(t, size)


@dataclass(frozen=True, repr=False)
class FitNet(LayerTerm):
    """The student's layers hold what the teacher's hold, seen through a learned linear map where widths differ.

    Mean of (r(s) - t)²; r is a linear layer over the channels (on pictures: a 1×1 convolution), none where widths are
    equal. Where pictures differ in size, both are averaged down to the smaller. Source: Romero et al., "FitNets: Hints
    for Thin Deep Nets", 2014, arXiv 1412.6550; for transformers Jiao et al., 2019, arXiv 1909.10351.

    >>> hint = FitNet("body", teacher_layers="encoder")
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
                raise unlike(s, t, f"{where}, channels first", what)
            losses.append(F.mse_loss(s, t))
        return torch.stack(losses).sum()


@dataclass(frozen=True, repr=False)
class RelationalKD(LayerTerm):
    """The samples of a batch, or the channels of two layers, stand to each other as they do in the teacher.

    ``distances``: Huber loss of ‖xᵢ - xⱼ‖/μ, μ their mean, over pairs of samples. ``angles``: Huber loss of the cosine
    of the angle at xⱼ, over triplets; memory grows with batch³ (Park et al., "Relational Knowledge Distillation", 2019,
    arXiv 1904.05068). ``similarities``: mean square between the matrices xxᵀ with rows of length 1 (Tung and Mori,
    "Similarity-Preserving Knowledge Distillation", 2019, arXiv 1907.09682). For these a sample is all that the layer
    returns of it, and widths may differ. ``flow``: mean square between the matrices Σ aᵢbⱼ/positions of the channels of
    each layer and the next, for which widths must agree (Yim et al., "A Gift from Knowledge Distillation", CVPR 2017).
    A batch too small for a pair or triplet adds nothing.

    >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]])
    >>> RelationalKD("").loss(Seen(x), Seen(2 * x)).item() < 1e-6
    True
    """

    by: Literal["distances", "angles", "similarities", "flow"] = "distances"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == "flow" and len(self.paths[0]) < 2:
            raise RecipeError(
                "flow is between two layers", where="RelationalKD.layers", next='name both: layers=("first", "second")'
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
            raise unlike(s, t, where, 'take layers as wide as the teacher\'s, or by="similarities"')
        return s, t


@dataclass(frozen=True, repr=False)
class AttentionTransfer(LayerTerm):
    """The student looks where the teacher looks.

    ``energy``: of what layers return, ‖Q(s)/‖Q(s)‖ - Q(t)/‖Q(t)‖‖², mean over samples, Q the sum of squares over the
    channels at each position; widths may differ (Zagoruyko and Komodakis, "Paying More Attention to Attention", 2016,
    arXiv 1612.03928; squared as in the authors' code). ``kl`` and ``mse``: of the attention probabilities of
    transformers, KL(t ‖ s) a query (Wang et al., "MiniLM", 2020, arXiv 2002.10957) or mean square (as Jiao et al.,
    "TinyBERT", 2019, arXiv 1909.10351, do with the scores before softmax, which modules do not return). Where the
    numbers of heads differ, their means are compared.

    >>> student = Seen(torch.zeros(1, 3), {"body": torch.ones(1, 8, 4, 4)})
    >>> teacher = Seen(torch.zeros(1, 3), {"body": torch.ones(1, 32, 8, 8)})
    >>> AttentionTransfer("body").loss(student, teacher).item() < 1e-6
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
            raise unlike(s, t, where, "tap layers that return pictures or tokens: here is nowhere to look")
        s, t = self.positions_alike(energy(s), energy(t), where)
        return (F.normalize(s.flatten(1)) - F.normalize(t.flatten(1))).square().sum(1).mean()

    def _probabilities(self, where: str, s: Tensor, t: Tensor) -> Tensor:
        s, t = (x[:, None] if x.dim() == 3 else x for x in (s, t))  # [batch, heads, queries, keys]
        if s.dim() != 4 or t.dim() != 4 or s.shape[2:] != t.shape[2:]:
            raise unlike(s, t, where, "give both models the same tokens")
        if s.shape[1] != t.shape[1]:
            s, t = s.mean(1), t.mean(1)
        if self.by == "mse":
            return F.mse_loss(s, t)
        least = torch.finfo(s.dtype).tiny
        return divergence(s.clamp(min=least).log(), t.clamp(min=least).log()).mean()


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
