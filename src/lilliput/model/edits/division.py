"""The edit by which a convolution becomes several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from lilliput.encodings.blocks import whole
from lilliput.errors import FormatError
from lilliput.model.edits.edit import SAME, Edit
from lilliput.model.edits.structure import placed

_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # by their axes of space
_PARTS = 3  # at most, one behind the other
_MOST = 4  # times as many numbers as the layer had, that its parts may have: no form needs more at full rank


@dataclass(frozen=True, repr=False)
class Divide(Edit):
    """A convolution gives way to several, one behind the other, under its path: ``conv`` to ``conv.0``, ``conv.1`` …

    What it does along an axis of space, by its kernel, stride, padding and dilation, one part does in its place; there
    the others are points. The last has its bias. Tensors travel as ``0.weight`` and so on; without them the parts get
    their shapes alone: a file holds what is in them otherwise.
    """

    path: str
    outputs: tuple[int, ...]  # channels that each part gives, the last as many as the layer
    axes: tuple[tuple[int, ...], ...]  # of space, from 0, that each part goes over; each axis stands once
    groups: tuple[int, ...]  # of channels, in each part

    def _change(self, root: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
        owner, name = placed(root, self.path)
        held = owner._modules[name]
        assert held is not None
        weight = self._check(held)
        before = (weight.shape[1], *self.outputs)
        parts = [self._part(i, held, before[i], tensors) for i in range(len(self.outputs))]
        owner._modules[name] = nn.Sequential(*parts).train(held.training)
        return True

    def places(self) -> tuple[str, ...]:
        return (self.path,)

    def _check(self, held: nn.Module) -> Tensor:
        """The weight; refuses what is no plain convolution, and parts that could not stand in its place."""
        weight = held._parameters.get("weight")
        if type(held) not in _CONVOLUTIONS or weight is None or held.groups != 1:
            kinds = "a plain convolution in one group"
            raise FormatError(f"{type(held).__name__} is not {kinds}", where=self.path, next=SAME)
        count, inputs = len(self.outputs), (weight.shape[1], *self.outputs)
        sound = (
            1 < count <= _PARTS
            and count == len(self.axes) == len(self.groups)
            and all(whole(n, 1) for n in (*self.outputs, *self.groups))
            and self.outputs[-1] == weight.shape[0]
            and sorted(axis for part in self.axes for axis in part) == list(range(weight.dim() - 2))
            and all(inputs[i] % self.groups[i] == 0 == self.outputs[i] % self.groups[i] for i in range(count))
        )
        if not sound or sum(map(prod, self._shapes(weight))) > _MOST * weight.numel():
            raise FormatError(
                f"parts of {self.outputs} channels along {self.axes} in groups of {self.groups}",
                where=self.path,
                why=f"its weight is {tuple(weight.shape)}",
                next=SAME,
            )
        return weight

    def _shapes(self, weight: Tensor) -> list[tuple[int, ...]]:
        """Of the weights of the parts."""
        inputs = (weight.shape[1], *self.outputs)
        kernels = [[n if i in own else 1 for i, n in enumerate(weight.shape[2:])] for own in self.axes]
        return [(self.outputs[i], inputs[i] // self.groups[i], *kernel) for i, kernel in enumerate(kernels)]

    def _part(self, i: int, held: nn.Module, inputs: int, tensors: Mapping[str, Tensor]) -> nn.Module:
        own, last = self.axes[i], i == len(self.outputs) - 1

        def along(numbers: tuple[int, ...], point: int) -> tuple[int, ...]:
            return tuple(n if axis in own else point for axis, n in enumerate(numbers))

        part = type(held)(
            inputs,
            self.outputs[i],
            along(held.kernel_size, 1),  # type: ignore[arg-type]
            stride=along(held.stride, 1),  # type: ignore[arg-type]
            padding=held.padding if isinstance(held.padding, str) else along(held.padding, 0),  # type: ignore[arg-type]
            dilation=along(held.dilation, 1),  # type: ignore[arg-type]
            groups=self.groups[i],
            bias=last and held.bias is not None,
            padding_mode=held.padding_mode,
            device="meta",
        )
        for name, shaped in list(part.named_parameters()):
            like: nn.Parameter = held._parameters[name]  # type: ignore[assignment]
            given = tensors.get(f"{i}.{name}", torch.zeros(shaped.shape))
            if given.shape != shaped.shape:
                what = f"a tensor of shape {tuple(given.shape)} for one of {tuple(shaped.shape)}"
                raise FormatError(what, where=f"{self.path}.{i}.{name}", next=SAME)
            setattr(part, name, nn.Parameter(given.to(like.device, like.dtype, copy=True), like.requires_grad))
        return part
