"""What flows into a layer, and its second moments, by which the damage of rounding is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.errors import InputError
from lilliput.model.capture import Inputs
from lilliput.model.view import Call, Window

_MOST = 1 << 25  # elements of patches that are made of one batch
_FOLDS = 16  # at most, into which batches are divided to see by how much they differ


class Stop:
    """A call at which the calibration batches wait: its inputs can be seen, and its weight can be changed.

    They come as the model stands, with all that was encoded before; `original`, as they were before the walk began.
    Nothing is computed until it is asked for.
    """

    absorbed = False  # whether a bias takes up what changes on average, so that only what varies counts

    def __init__(
        self,
        call: Call,
        inputs: Callable[[], Sequence[Tensor]],
        original: Callable[[], Sequence[Tensor]],
        before: Stop | None = None,
    ) -> None:
        self.call, self._inputs, self._original, self._before = call, inputs, original, before

    @cached_property
    def inputs(self) -> Sequence[Tensor]:
        """What the call multiplies by its weight, one tensor for each batch that reaches it."""
        return self._inputs()

    @cached_property
    def moments(self) -> Moments:
        """Of the inputs; where several calls read the same, as queries, keys and values do, computed once."""
        before, self._before = self._before, None
        if before is not None and before.call.window == self.call.window and "moments" in vars(before):
            same = len(before.inputs) == len(self.inputs)
            if same and all(a is b for a, b in zip(before.inputs, self.inputs, strict=True)):
                return before.moments
        return moments(self.inputs, self._original(), self.call)

    def leave(self) -> None:
        """Let go of the inputs."""
        vars(self).pop("inputs", None)
        self._before = None


@dataclass(frozen=True)
class Block:
    """A module whose weights are rounded together: its path, and the calls that multiply by them, by their paths.

    The calls of `biased` have biases of their own, which may move.
    """

    path: str
    calls: Mapping[str, Call]
    biased: frozenset[str] = frozenset()


class Entry:
    """A block at whose entry the calibration batches wait; it can be called alone, with other weights and biases.

    Nothing is computed until it is asked for.
    """

    def __init__(
        self,
        block: Block,
        inputs: Callable[[], Sequence[Inputs]],
        original: Callable[[], Sequence[Inputs]],
        answer: Callable[[Inputs, Mapping[str, Tensor]], Sequence[Tensor]],
        exact: Callable[[Inputs], Sequence[Tensor]],
        biases: Mapping[str, Tensor],
    ) -> None:
        self.block, self._inputs, self._original, self._answer, self._exact = block, inputs, original, answer, exact
        self.biases = biases  # by their paths

    @cached_property
    def inputs(self) -> Sequence[Inputs]:
        """What the block is called with, for each batch that reaches it, as the model stands."""
        return self._inputs()

    def answer(self, batch: int, tensors: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """What the block gives, its calls reading `tensors` in place of the operands of those names."""
        return self._answer(self.inputs[batch], tensors)

    def targets(self, correct: bool) -> Sequence[Sequence[Tensor]]:
        """What the block gave before the walk began, from what it then was called with or (not correct) is now.

        Raises InputError for a block that gives no floating-point tensor, or NaN or infinity.
        """
        found = [self._exact(inputs) for inputs in (self._original() if correct else self.inputs)]
        if len(found) != len(self.inputs):
            raise InputError(
                f"{len(self.inputs)} batches reach this block, and {len(found)} did before anything was rounded",
                where=self.block.path,
                next=f"use correct=False, or {self._without()}",
            )
        if not all(found):
            raise InputError(
                "this block gives no tensor of floating-point numbers", where=self.block.path, next=self._without()
            )
        if not all(bool(torch.isfinite(x).all()) for one in found for x in one):
            raise InputError(
                "what this block gives is NaN or infinite",
                where=self.block.path,
                next=f"look at the calibration batches, or {self._without()}",
            )
        return found

    def leave(self) -> None:
        """Let go of the inputs."""
        vars(self).pop("inputs", None)

    def _without(self) -> str:
        return f'leave it out of blocks=, with "!{self.block.path}"'


@dataclass(frozen=True)
class Moments:
    """Second moments of what a layer multiplies by its weights, [groups, K, K]; means, [groups, K].

    K are the inputs of one output, in the order of ``weight.flatten(1)``.
    """

    gram: Tensor  # E[x xᵀ]
    cross: Tensor  # E[o xᵀ], o being what x was before anything was rounded
    mean: Tensor
    original_mean: Tensor
    folds: tuple[tuple[int, Tensor, Tensor], ...] = ()  # rows, gram and mean of the batches in parts

    def centred(self) -> Moments:
        """Around the means."""
        away = self.mean[:, None]
        gram, cross = self.gram - self.mean[..., None] * away, self.cross - self.original_mean[..., None] * away
        folds = []
        for rows, part, mean in self.folds:
            product = mean[..., None] * away
            folds.append((rows, part - product - product.transpose(1, 2) + self.mean[..., None] * away, mean))
        return replace(self, gram=gram, cross=cross, folds=tuple(folds))

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
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        alive = diagonal > 1e-6 * diagonal.mean(1, keepdim=True)
        size = torch.where(alive, diagonal.clamp(min=1e-30).rsqrt(), 0.0)
        unit = size[..., None] * size[:, None]
        unit.diagonal(dim1=1, dim2=2).zero_()
        differ = torch.zeros(())
        for share, (_, part, _) in zip(shares, self.folds, strict=True):
            differ = differ + (share * (part - self.gram) * unit).square().sum()
        common = (self.gram * unit).square().sum()
        return float((differ / rest / common.clamp(min=1e-30)).clamp(max=1.0))


def moments(inputs: Sequence[Tensor], original: Sequence[Tensor], call: Call) -> Moments:
    """The moments over the inputs of a linear layer, or the patches that a convolution sees.

    Of large pictures, places are taken by chance, the same each time.

    Raises InputError for inputs that are NaN or infinite.
    """
    sums, rows = [torch.zeros(())] * 4, 0
    folds: dict[int, tuple[int, Tensor, Tensor]] = {}
    for i, pair in enumerate(zip(inputs, original, strict=True)):
        x, o = (patches(x.detach().float(), call.window) if call.window else _tokens(x) for x in pair)
        turned = x.transpose(1, 2)
        found = (turned @ x, o.transpose(1, 2) @ x, x.sum(1), o.sum(1))
        sums, rows = [a + b for a, b in zip(sums, found, strict=True)], rows + x.shape[1]
        fold = i * _FOLDS // max(_FOLDS, len(inputs))
        count, gram, mean = folds.get(fold, (0, torch.zeros(()), torch.zeros(())))
        folds[fold] = count + x.shape[1], gram + found[0], mean + found[2]
    if not all(bool(torch.isfinite(x).all()) for x in sums):
        raise InputError(
            "what flows into it is NaN or infinite",
            where=", ".join(call.weights),
            next="look at the calibration batches",
        )
    parts = tuple((count, gram / count, mean / count) for count, gram, mean in folds.values() if count)
    gram, cross, mean, before = (x / max(1, rows) for x in sums)
    return Moments(gram, cross, mean, before, parts)


def _tokens(x: Tensor) -> Tensor:
    return x.detach().float().flatten(0, -2)[None]


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
