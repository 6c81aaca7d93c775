"""A judge of shrunk networks that shares nothing with what shrinks them: the original, with what went set to zero.

It is told the edits' data: of each tensor, by its path, the places that were kept along each axis that lost some. All
other slices are zeroed literally in a copy of the user's module, which then runs eagerly, in float64, on several
inputs. What the shrunk network answers must be the same. Nothing of Lilliput is imported here.

Zeros are as good as gone wherever numbers are summed (products, convolutions, attention, whose scale must stay that of
the full width, recurrence) and wherever each channel is for itself. They are not where a number is computed of how
many channels there are. There the copy gets a computation over the survivors, written out below:

* Layer norms and RMS norms: mean and variance are over the survivors. A network with fewer channels has its gains
  multiplied by √(before / after), as if the variance were still divided by the full width; so the result is here. Norms
  that have no gains of their own to multiply must be named as `unscaled`; it is then left as it is.
* Group norms: the survivors of each group, whose gains stay. Groups of which none survives give zero.
* A mean over channels (the global response of ConvNeXt V2): over the survivors.
* Standardised weights (BiT): each filter has mean 0 and variance 1 over the inputs that survive.

Batch norms in eval mode and instance norms look at one channel at a time. A softmax over channels would be another
kind; no network may lose channels there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Kept = Mapping[str, Mapping[int, Tensor]]  # of tensors by path: the places kept along axes that lost some
Inputs = tuple[Tensor, ...]
TOLERANCE = 1e-6  # of the range of answers: what rounding rows to float32 leaves that make up for a scale


def departure(
    model: nn.Module, small: nn.Module, kept: Kept, inputs: Iterable[Inputs], unscaled: Collection[str] = ()
) -> float:
    """The furthest that any answer of `small` is from that of `model` without what is not kept, of its range.

    `inputs` are several; `unscaled` are the modules whose norm keeps its gains though it has fewer channels.
    """
    with torch.no_grad():
        exact, expected = doubled(small), zeroed(model, kept, unscaled)
    with in_float64(), torch.no_grad():
        found = [apart(exact(*given), expected(*given)) for given in map(_doubled_inputs, inputs)]
    return max(found)


def apart(out: Any, expected: Any) -> float:
    """The largest difference in any output, as a share of the range of that output; infinite where it has none."""
    worst = 0.0
    for a, b in zip(tree_leaves(out), tree_leaves(expected), strict=True):
        if a.shape != b.shape or not bool((torch.isfinite(a) & torch.isfinite(b)).all()) or b.max() == b.min():
            return math.inf
        worst = max(worst, float((a - b).abs().max() / (b.max() - b.min())))
    return worst


def zeroed(model: nn.Module, kept: Kept, unscaled: Collection[str] = ()) -> nn.Module:
    """A copy in float64 with zeros in all that is not kept, its norms over the survivors."""
    full = doubled(model)
    tensors = {**dict(full.named_parameters(remove_duplicate=False)), **dict(full.named_buffers())}
    for path, axes in kept.items():
        for axis, places in axes.items():
            gone = torch.ones(tensors[path].shape[axis], dtype=torch.bool).index_fill(0, places, False)
            tensors[path].data.index_fill_(axis, gone.nonzero().flatten(), 0)
    for path, module in full.named_modules():
        places = {name.rpartition(".")[2]: axes for name, axes in kept.items() if name.rpartition(".")[0] == path}
        written = _written(module, places.get("weight", {}), path in unscaled)
        if written is not None:
            module.forward = written
    return full


# what counts channels, over the survivors


def _written(module: nn.Module, lost: Mapping[int, Tensor], unscaled: bool) -> Callable[[Tensor], Tensor] | None:
    """What a module computes once its weight has lost slices, where zeros in them are not enough."""
    named = type(module).__name__
    if not lost:
        return None
    if named == "WeightStandardizedConv2d":
        return _standardized(module, lost.get(1))
    if named.endswith("GRN"):
        return _response(module, lost[3])
    if isinstance(module, nn.GroupNorm):
        return _group_norm(module, lost[0])
    centred = isinstance(module, nn.LayerNorm)
    if not centred and not named.endswith(("RMSNorm", "T5LayerNorm")):
        return None
    factor = 1 if unscaled else math.sqrt(module.weight.numel() / len(lost[0]))
    return _norm(module, lost[0], factor, centred)


def _norm(module: Any, left: Tensor, factor: float, centred: bool) -> Callable[[Tensor], Tensor]:
    named = type(module).__name__
    axis = 1 if getattr(module, "data_format", "") == "channels_first" or named == "SqueezeBertLayerNorm" else -1
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6))  # or in the source, as the zoo's own
    gain = (factor * module.weight).float().double()  # the shrunk network's are float32, multiplied or not
    gain = 1 + module.weight if named == "GemmaRMSNorm" else gain
    bias = getattr(module, "bias", None)

    def normalised(x: Tensor) -> Tensor:
        x = x.movedim(axis, -1)
        y = x[..., left]
        y = y - y.mean(-1, keepdim=True) if centred else y
        y = y / (y.square().mean(-1, keepdim=True) + epsilon).sqrt()
        full = torch.zeros_like(x).index_copy(-1, left, y) * gain
        return (full if bias is None else full + bias).movedim(-1, axis)

    return normalised


def _group_norm(module: nn.GroupNorm, left: Tensor) -> Callable[[Tensor], Tensor]:
    activation = getattr(module, "activation", nn.Identity())  # BiT's norms end with one
    size = module.num_channels // module.num_groups
    groups = [left[left // size == i] for i in range(module.num_groups)]

    def normalised(x: Tensor) -> Tensor:
        full = torch.zeros_like(x)
        for channels in groups:
            if len(channels):
                y = x[:, channels].flatten(1)
                y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + module.eps).sqrt()
                full[:, channels] = y.view_as(full[:, channels])
        shape = [-1 if i == 1 else 1 for i in range(x.dim())]
        return activation(full * module.weight.view(shape) + module.bias.view(shape))

    return normalised


def _response(module: Any, left: Tensor) -> Callable[[Tensor], Tensor]:
    def response(x: Tensor) -> Tensor:  # [batch, height, width, channels]
        lengths = x.square().sum((1, 2), keepdim=True).sqrt()
        return module.weight * x * lengths / (lengths[..., left].mean(-1, keepdim=True) + 1e-6) + module.bias + x

    return response


def _standardized(module: Any, left: Tensor | None) -> Callable[[Tensor], Tensor]:
    inputs = torch.arange(module.weight.shape[1]) if left is None else left
    w = module.weight[:, inputs].flatten(1)  # [out, in × height × width]
    w = (w - w.mean(1, keepdim=True)) / (w.var(1, keepdim=True, correction=0) + module.eps).sqrt()
    weight = torch.zeros_like(module.weight).index_copy(1, inputs, w.view_as(module.weight[:, inputs]))

    def convolved(x: Tensor) -> Tensor:
        x = x if module.pad is None else module.pad(x)
        return F.conv2d(x, weight, module.bias, module.stride, module.padding, module.dilation, module.groups)

    return convolved


# in double precision


def doubled(model: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode whose parametrizations are folded: edits know tensors by the names they had."""
    made = copy.deepcopy(model)
    for module in list(made.modules()):
        if parametrize.is_parametrized(module):  # torch's own removal would change the class, which the original shares
            held = {name: getattr(module, name).detach() for name in module.parametrizations}
            del module.parametrizations
            module.__class__ = type(module).__base__
            for name, x in held.items():
                module.register_parameter(name, nn.Parameter(x))
    return made.double().eval()


def _doubled_inputs(given: Inputs) -> Inputs:
    return tuple(x.double() if x.is_floating_point() else x for x in given)


class _Wider(TorchFunctionMode):
    """Where code asks for float32, as many norms and softmaxes do, it gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = {Tensor.float: Tensor.double, torch._grouped_mm: _grouped}.get(func, func)
        args, kwargs = ([_wider(x) for x in args], {key: _wider(x) for key, x in (kwargs or {}).items()})
        return func(*args, **kwargs)


def _grouped(x: Tensor, weight: Tensor, offs: Tensor, **_: Any) -> Tensor:
    """What torch has in float32 alone: each group of rows, up to an offset, times a matrix of its own."""
    return torch.cat([rows @ w for rows, w in zip(x.tensor_split(offs[:-1].long()), weight, strict=True)])


def _wider(x: Any) -> Any:
    return torch.float64 if x is torch.float32 else x


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside, tensors are made in float64, and nothing computes in less; nor does torch fuse modules into one call."""
    default, fused = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    torch.set_default_dtype(torch.float64)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _Wider():
            yield
    finally:
        torch.set_default_dtype(default)
        torch.backends.mha.set_fastpath_enabled(fused)
