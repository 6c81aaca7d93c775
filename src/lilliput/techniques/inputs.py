"""What flows into a layer, and its second moments, by which the damage of rounding is measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from lilliput.errors import InputError
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.view import Call, Window

_MOST = 1 << 25  # elements of patches that are made of one batch
_FOLDS = 16  # at most, into which batches are divided to see by how much they differ

Flowing = TypeVar("Flowing", Tensor, Inputs)  # into a call beside its weight, or into a module


class Waiting(Generic[Flowing]):
    """A place of the model at which the calibration batches wait, and what flows into it, by the number of the batch.

    That is seen as the model stands, with all that was encoded before, and as it was before the walk began. Nothing is
    computed until it is asked for, and nothing of the original for the inputs alone.
    """

    def __init__(
        self,
        inputs: Callable[[], Mapping[int, Flowing]],
        original: Callable[[], Mapping[int, Flowing]],
        before: Waiting[Any] | None = None,
    ) -> None:
        self._inputs: Callable[[], Mapping[int, Flowing]] = inputs
        self._original: Callable[[], Mapping[int, Flowing]] = original
        self._before = before  # the place where they waited last

    @cached_property
    def inputs(self) -> Mapping[int, Flowing]:
        """What flows in, of each batch that reaches it as the model stands."""
        return self._inputs()

    @cached_property
    def batches(self) -> Sequence[int]:
        """Those that reach it now as they did before: a branch that depends on data may have led others elsewhere."""
        now, then = self.inputs, self._original()
        return [i for i, x in now.items() if i in then and _shapes(then[i]) == _shapes(x)]

    @property
    def told(self) -> str:
        """What is to be said of batches that are left out; empty where all count that reach it."""
        apart = len(self.inputs.keys() | self._original().keys()) - len(self.batches)
        if not apart:
            return "" if self.batches else "no calibration batch reaches it"
        which = f"{apart} calibration batches do not reach it" if self.batches else "no calibration batch reaches it"
        return f"{which} as they did before other layers were rounded"

    def leave(self) -> None:
        """Let go of the inputs."""
        vars(self).pop("inputs", None)
        self._before = None


def _shapes(flowing: Tensor | Inputs) -> list[torch.Size]:
    held = flowing if isinstance(flowing, Tensor) else (flowing.args, dict(flowing.kwargs))
    return [x.shape for x in tree_leaves(held) if isinstance(x, Tensor)]


class Stop(Waiting[Tensor]):
    """A call at which the batches wait: what it multiplies by its weight can be seen, and the weight can be changed.

    What it reads as the stop `before` did is looked at once. Nothing of the original is asked for by `gram`.
    """

    absorbed = False  # whether a bias takes up what changes on average, so that only what varies counts

    def __init__(
        self,
        call: Call,
        inputs: Callable[[], Mapping[int, Tensor]],
        original: Callable[[], Mapping[int, Tensor]],
        before: Waiting[Any] | None = None,
    ) -> None:
        super().__init__(inputs, original, before)
        self.call = call

    @cached_property
    def gram(self) -> Tensor:
        """E[x xᵀ] of the inputs as the model stands, [groups, K, K]."""
        shared: Tensor | None = self._shared("gram", self.inputs.keys())
        return gram(list(self.inputs.values()), self.call) if shared is None else shared

    @cached_property
    def moments(self) -> Moments:
        """Of the inputs and what they were."""
        shared: Moments | None = self._shared("moments", self.batches)
        if shared is not None:
            return shared
        original = self._original()
        return moments([(self.inputs[i], original[i]) for i in self.batches], self.call)

    def _shared(self, name: str, batches: Iterable[int]) -> Any:
        """What the stop before knows already, if both read the same, as queries, keys and values do."""
        before = self._before
        if not isinstance(before, Stop) or name not in vars(before) or before.call.window != self.call.window:
            return None
        known = before.inputs.keys() if name == "gram" else before.batches
        same = set(known) == set(batches) and all(before.inputs[i] is self.inputs[i] for i in batches)
        return vars(before)[name] if same else None


@dataclass(frozen=True)
class Moments:
    """Second moments of what a layer multiplies by its weights, [groups, K, K]; means, [groups, K].

    K are the inputs of one output, in the order of ``weight.flatten(1)``. What varies is held apart from the means:
    where inputs hardly vary, nothing would be left of it between products of means in float32.
    """

    varying: Tensor  # E[(x - mean)(x - mean)ᵀ]
    cross_varying: Tensor  # E[(o - its mean)(x - mean)ᵀ], o being what x was before anything was rounded
    mean: Tensor
    original_mean: Tensor
    folds: tuple[tuple[int, Tensor, Tensor], ...] = ()  # rows, E[(x - mean)(x - mean)ᵀ] and E[x - mean], in parts

    @property
    def gram(self) -> Tensor:
        """E[x xᵀ]."""
        return self.varying + _product(self.mean, self.mean)

    @property
    def cross(self) -> Tensor:
        """E[o xᵀ]."""
        return self.cross_varying + _product(self.original_mean, self.mean)

    def centred(self) -> Moments:
        """Around the means."""
        none = torch.zeros_like(self.mean)
        return replace(self, mean=none, original_mean=none)

    def chance(self) -> float:
        """How much of what the inputs have in common may be chance, by how the folds differ: 0 … 1, 0 for one fold.

        The share by which correlations are best shrunk: Schäfer and Strimmer, "A shrinkage approach to large-scale
        covariance matrix estimation", 2005, with folds in place of samples, which need not be independent.
        """
        rows = sum(count for count, _, _ in self.folds)
        shares = [count / rows for count, _, _ in self.folds]
        rest = 1 - sum(share**2 for share in shares)
        if rest <= 0:
            return 0.0
        gram = self.gram
        diagonal = gram.diagonal(dim1=1, dim2=2)
        alive = diagonal > 1e-6 * diagonal.mean(1, keepdim=True)
        size = torch.where(alive, diagonal.double().rsqrt(), 0.0)
        unit = size[..., None] * size[:, None]
        unit.diagonal(dim1=1, dim2=2).zero_()
        differ = torch.zeros((), dtype=torch.float64)
        for share, (_, part, aside) in zip(shares, self.folds, strict=True):
            apart = part - self.varying + _product(aside, self.mean) + _product(self.mean, aside)
            differ = differ + (share * apart * unit).square().sum()
        common = (gram * unit).square().sum()
        return float((differ / rest / common.clamp(min=1e-30)).clamp(max=1.0))


def _product(a: Tensor, b: Tensor) -> Tensor:  # [groups, K] twice -> [groups, K, K]
    return a[..., None] * b[:, None]


def moments(pairs: Sequence[tuple[Tensor, Tensor]], call: Call) -> Moments:
    """The moments over the inputs of a linear layer, or the patches that a convolution sees, each beside what it was.

    Of large pictures, places are taken by chance, the same each time.

    Raises InputError for inputs that are NaN or infinite.
    """
    whole, folds = _Sums(), defaultdict[int, _Sums](_Sums)
    start: list[Tensor] = []  # a point among the inputs, and one among what they were: sums are taken from there
    for i, pair in enumerate(pairs):
        both = [_rows(one, call) for one in pair]
        start = start or [one[:, :1].clone() for one in both]
        x, o = (one - point for one, point in zip(both, start, strict=True))
        gram, mean = x.mT @ x, x.sum(1)
        whole.add(x.shape[1], gram, o.mT @ x, mean, o.sum(1))
        folds[i * _FOLDS // max(_FOLDS, len(pairs))].add(x.shape[1], gram, mean)
    gram, cross, mean, before = whole.means(call)
    parts = []
    for fold in (one for one in folds.values() if one.rows):
        part, own = fold.means(call)
        around = part - _product(own, mean) - _product(mean, own) + _product(mean, mean)
        parts.append((fold.rows, around, own - mean))
    point, origin = (one[:, 0] for one in start)
    varying, crossing = gram - _product(mean, mean), cross - _product(before, mean)
    return Moments(varying, crossing, point + mean, origin + before, tuple(parts))


def gram(inputs: Iterable[Tensor], call: Call) -> Tensor:
    """E[x xᵀ] alone, [groups, K, K]; otherwise as `moments`."""
    whole = _Sums()
    for x in (_rows(x, call) for x in inputs):
        whole.add(x.shape[1], x.mT @ x)
    return whole.means(call)[0]


class _Sums:
    """Tensors summed over rows, some rows at a time."""

    def __init__(self) -> None:
        self.rows, self.sums = 0, list[Tensor]()

    def add(self, rows: int, *parts: Tensor) -> None:
        self.rows += rows
        self.sums = [a + b for a, b in zip(self.sums, parts, strict=True)] if self.sums else list(parts)

    def means(self, call: Call) -> list[Tensor]:
        if not all(bool(torch.isfinite(x).all()) for x in self.sums):
            raise InputError(
                "what flows into it is NaN or infinite",
                where=", ".join(call.weights),
                next="look at the calibration batches",
            )
        return [x / max(1, self.rows) for x in self.sums]


def _rows(x: Tensor, call: Call) -> Tensor:  # [groups, rows, K]
    x = x.detach().float()
    return patches(x, call.window) if call.window else x.flatten(0, -2)[None]


def patches(x: Tensor, window: Window) -> Tensor:
    """What a convolution multiplies its weights by, [groups, places, K], at as many places as fit, by chance."""
    axes = len(window.kernel)
    if x.dim() == axes + 1:
        x = x[None]
    x = functional.pad(x, [n for ends in reversed(window.padding) for n in ends])
    for i, (size, stride, step) in enumerate(zip(window.kernel, window.stride, window.dilation, strict=True)):
        x = x.unfold(2 + i, step * (size - 1) + 1, stride)[..., ::step]
    space = x.shape[2 : 2 + axes]  # x is [batch, channels, *space, *kernel]
    places = torch.arange(space.numel())
    most = max(1, _MOST // (x.shape[0] * x.shape[1] * math.prod(window.kernel)))
    if len(places) > most:
        places = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:most].sort().values
    at: list[Any] = [slice(None), slice(None), *torch.unravel_index(places, space)]
    picked = x[tuple(at)]  # [batch, channels, places, *kernel]
    grouped: Tensor = picked.flatten(3).unflatten(1, (window.groups, -1))  # [batch, groups, channels, places, kernel]
    return grouped.permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)  # [groups, batch · places, channels · kernel]
