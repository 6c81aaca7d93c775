"""What flows into a layer, and its second moments, by which the damage of rounding is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.errors import InputError
from lilliput.model.view import Call, Window

_MOST = 1 << 25  # elements of patches that are made of one batch


Flowing = Mapping[int, Tensor]  # by the number of the batch, what a call multiplies by its weight


class Stop:
    """A call at which the calibration batches wait: its inputs can be seen, and its weight can be changed.

    They come as the model stands, with all that was encoded before; `original`, as they were before the walk began.
    Nothing is computed until it is asked for, and nothing of the original for the inputs and their `gram`.
    """

    absorbed = False  # whether a bias takes up what changes on average, so that only what varies counts

    def __init__(
        self,
        call: Call,
        inputs: Callable[[], Flowing],
        original: Callable[[], Flowing],
        before: Stop | None = None,
    ) -> None:
        self.call, self._inputs, self._original, self._before = call, inputs, original, before

    @cached_property
    def inputs(self) -> Flowing:
        """What the call multiplies by its weight, of each batch that reaches it."""
        return self._inputs()

    @cached_property
    def batches(self) -> Sequence[int]:
        """Those that reach it now as they did before: a branch that depends on data may have led others elsewhere."""
        now, then = self.inputs, self._original()
        return [i for i, x in now.items() if i in then and then[i].shape == x.shape]

    @property
    def told(self) -> str:
        """What is to be said of batches that are left out; empty where all count that reach it."""
        apart = len(self.inputs.keys() | self._original().keys()) - len(self.batches)
        if not apart:
            return "" if self.batches else "no calibration batch reaches it"
        which = f"{apart} calibration batches do not reach it" if self.batches else "no calibration batch reaches it"
        return f"{which} as they did before other layers were rounded"

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
        if before is None or name not in vars(before) or before.call.window != self.call.window:
            return None
        known = before.inputs.keys() if name == "gram" else before.batches
        same = set(known) == set(batches) and all(before.inputs[i] is self.inputs[i] for i in batches)
        return vars(before)[name] if same else None

    def leave(self) -> None:
        """Let go of the inputs."""
        vars(self).pop("inputs", None)
        self._before = None


@dataclass(frozen=True)
class Moments:
    """Second moments of what a layer multiplies by its weights, [groups, K, K]; means, [groups, K].

    K are the inputs of one output, in the order of ``weight.flatten(1)``.
    """

    gram: Tensor  # E[x xᵀ]
    cross: Tensor  # E[o xᵀ], o being what x was before anything was rounded
    mean: Tensor
    original_mean: Tensor

    def centred(self) -> Moments:
        """Around the means."""
        away = self.mean[:, None]
        gram, cross = self.gram - self.mean[..., None] * away, self.cross - self.original_mean[..., None] * away
        return replace(self, gram=gram, cross=cross)


def moments(pairs: Sequence[tuple[Tensor, Tensor]], call: Call) -> Moments:
    """The moments over the inputs of a linear layer, or the patches that a convolution sees, each beside what it was.

    Of large pictures, places are taken by chance, the same each time.

    Raises InputError for inputs that are NaN or infinite.
    """
    rows = ((_rows(x, call), _rows(o, call)) for x, o in pairs)
    sums = ((x.shape[1], [x.mT @ x, o.mT @ x, x.sum(1), o.sum(1)]) for x, o in rows)
    return Moments(*_means(sums, call))


def gram(inputs: Sequence[Tensor], call: Call) -> Tensor:
    """E[x xᵀ] alone, [groups, K, K]; otherwise as `moments`."""
    return _means(((x.shape[1], [x.mT @ x]) for x in (_rows(x, call) for x in inputs)), call)[0]


def _means(found: Iterable[tuple[int, list[Tensor]]], call: Call) -> list[Tensor]:
    """Sums over so many rows each, as means over all rows."""
    rows, sums = 0, list[Tensor]()
    for count, part in found:
        rows, sums = rows + count, [a + b for a, b in zip(sums, part, strict=True)] if sums else part
    if not all(bool(torch.isfinite(x).all()) for x in sums):
        raise InputError(
            "what flows into it is NaN or infinite",
            where=", ".join(call.weights),
            next="look at the calibration batches",
        )
    return [x / max(1, rows) for x in sums]


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
