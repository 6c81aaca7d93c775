"""Folding a batch normalisation into the convolution or linear layer before it, as edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lilliput.encodings import Sparse
from lilliput.model.carrier.carrier import owner_of
from lilliput.model.carrier.encoded_tensor import SUFFIX, EncodedTensor
from lilliput.model.edits.edit import Edit
from lilliput.model.edits.edits import EncodeTensor, SetTensor
from lilliput.model.edits.structure import Replace
from lilliput.model.views.view import CONVOLUTIONS, Call, View

Change = tuple[Edit, Mapping[str, Tensor]]


def fold_norms(view: View, root: nn.Module) -> Iterator[Change]:
    """Edits after which each batch norm that directly follows its one convolution is part of it.

    ``w' = w · γ/σ`` and ``b' = (b - μ) · γ/σ + β``, for inference statistics. A tensor that is encoded already keeps
    its normalisation, unless only its zeros are: they stay zero.
    """
    for call in view.calls:
        norm = view.only_reader(call)
        if call.op not in CONVOLUTIONS | {"linear"} or norm is None or norm.op != "batch_norm":
            continue
        found = _pair(view, root, call, norm)
        if found is None:
            continue
        layer, module = found
        weight, bias = _folded(layer, module, 1 if call.op.startswith("conv_transpose") else 0)
        (path,) = call.weights
        yield _set(layer, path, weight)
        yield SetTensor(f"{path.rpartition('.')[0]}.bias"), {"value": bias}
        yield Replace(norm.module), {}


def _pair(view: View, root: nn.Module, call: Call, norm: Call) -> tuple[nn.Module, _BatchNorm] | None:
    """The two modules, where the pattern is plain enough to be folded."""
    if not call.weights or not norm.value or norm.reads[0] != call.id:
        return None
    (path,) = call.weights
    layer, name = owner_of(root, path)
    module = root.get_submodule(norm.module)
    once = len(view.weights[path]) == 1 and sum(other.module == norm.module for other in view.calls) == 1
    tied = any(path in paths for paths in view.ties)
    held = layer._modules.get(name + SUFFIX)
    free = held is None or (isinstance(held, EncodedTensor) and held.encoding == Sparse())
    plain = isinstance(module, _BatchNorm) and module.running_mean is not None and name == "weight"
    grouped_transpose = call.op.startswith("conv_transpose") and getattr(layer, "groups", 1) != 1
    has_place = "bias" in layer._parameters
    if once and not tied and free and plain and has_place and not grouped_transpose:
        assert isinstance(module, _BatchNorm)
        return layer, module
    return None


@torch.no_grad()
def _folded(layer: nn.Module, norm: _BatchNorm, axis: int) -> tuple[Tensor, Tensor]:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and norm.running_mean is not None and norm.running_var is not None
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()  # type: ignore[operator]
    moved = shift * factor + (0 if norm.bias is None else norm.bias.double())
    spread = factor.reshape([-1 if i == axis else 1 for i in range(weight.dim())])
    return (weight.double() * spread).to(weight.dtype), moved.to(weight.dtype)


def _set(layer: nn.Module, path: str, weight: Tensor) -> Change:
    held = layer._modules.get("weight" + SUFFIX)
    if not isinstance(held, EncodedTensor):
        return SetTensor(path), {"value": weight}
    dtype = str(weight.dtype).removeprefix("torch.")
    parts = held.encoding.represent(weight).tensors()
    return EncodeTensor((path,), held.encoding, tuple(weight.shape), dtype), parts
