"""What a model costs before any clock is started: parameters and multiply-accumulates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lilliput.errors import MeasureError
from lilliput.model.carrier.carrier import encoded_tensors
from lilliput.modes import eval_mode

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one forward pass, in all and by module path (parents with their children)."""

    total: int
    by_module: Mapping[str, int]


def parameters(model: nn.Module) -> int:
    """How many numbers the model's parameters hold, a shared parameter counted once.

    >>> parameters(nn.Linear(10, 20))
    220
    """
    return sum(parameter.numel() for _, parameter in model.named_parameters())


def macs(model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object] | None = None) -> Cost:
    """Count the multiply-accumulates of matrix products and convolutions in `model(*args, **kwargs)`.

    A linear layer on [n, in] counts n · in · out, or n · rank · (in + out) where its weight is of low rank; biases,
    normalisations and activations count nothing.
    The model runs in eval mode without gradients; its modes and torch's random state are afterwards as
    they were. Raises MeasureError when the model fails on the example.

    >>> macs(nn.Sequential(nn.Linear(10, 20), nn.ReLU()), (torch.zeros(3, 10),))
    Cost(total=600, by_module={'0': 600})
    """
    counter = FlopCounterMode(display=False, custom_mapping=_VECTOR_PRODUCTS)
    with (
        eval_mode(model),
        _untrained(model),
        torch.random.fork_rng(),
        torch.no_grad(),
        _countable_kernels(model),
        counter,
    ):
        try:
            model(*args, **(kwargs or {}))
        except Exception as error:
            raise MeasureError(
                "the model fails on the example",
                why=f"{type(error).__name__}: {error}",
                next="where it was made smaller for a budget, leave what fails whole by where=",
            ) from error
    counts = _by_module(model, counter)
    less = _divided(model, counts)
    for path in counts:
        counts[path] -= sum(n for at, n in less.items() if f"{at}.".startswith(f"{path}."))
    return Cost(counter.get_total_flops() // 2 - sum(less.values()), counts)


def _by_module(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    """The counter names a shared module by its last path; ours is its first, as in `named_modules`."""
    first_path = {module: path for path, module in model.named_modules()}
    root = f"{type(model).__name__}."
    counts: dict[str, int] = {}
    for name, by_op in counter.get_flop_counts().items():
        if name.startswith(root):
            path = first_path[model.get_submodule(name.removeprefix(root))]
            counts[path] = sum(by_op.values()) // 2
    return {path: counts[path] for path in first_path.values() if path in counts}


def _divided(model: nn.Module, counts: Mapping[str, int]) -> dict[str, int]:
    """By how much less linear layers and convolutions compute whose weights are products, by their paths."""
    less: dict[str, int] = {}
    for paths, held in encoded_tensors(model):
        whole = max(1, math.prod(held.shape))
        share = (whole - held.encoding.products(tuple(held.shape))) / whole
        for path in paths:
            layer, _, name = path.rpartition(".")
            module = model.get_submodule(layer)
            if name == "weight" and isinstance(module, _LAYERS) and layer in counts:
                less[layer] = round(counts[layer] * share)
    return less


@contextmanager
def _untrained(model: nn.Module) -> Iterator[None]:
    """Without parameters that ask for gradients: the counter would look for those of views of them, and find none."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def _countable_kernels(model: nn.Module) -> Iterator[None]:
    """Without fused attention and recurrent kernels, into which the counter cannot see: it counts 0.

    oneDNN is left on for networks that are not recurrent: without it some convolutions take minutes.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        torch.backends.mha.set_fastpath_enabled(False)
        if recurrent:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


# torch has no formula for these; from shapes to floating-point operations
_VECTOR_PRODUCTS = {
    torch.ops.aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix),
    torch.ops.aten.dot: lambda vector, other, **_: 2 * math.prod(vector),
    torch.ops.aten.addmv: lambda bias, matrix, vector, **_: 2 * math.prod(matrix),
}
