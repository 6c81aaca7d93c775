"""Layers that could be left out: children of a list that give what they take, and how much each changes it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.model.capture import Inputs
from lilliput.model.structure import KeepChildren
from lilliput.model.trial import Change
from lilliput.modes import eval_mode


def repeated(model: nn.Module) -> list[str]:
    """Paths of the children of lists and sequences of which there are several of one class."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            kinds = Counter(map(type, module))
            children = module.named_children()
            found += [f"{path}.{name}" if path else name for name, child in children if kinds[type(child)] > 1]
    return found


def changes(model: nn.Module, batches: Iterable[Inputs]) -> dict[str, float]:
    """How much each repeated layer of several modules changes what it is given: 1 minus the mean cosine of in and out.

    The "block influence" of Men et al. 2024, "ShortGPT"; over all positions, the last axis being that of features (the
    second, of pictures). Layers that give another shape than they take are left out.
    """
    sums: dict[str, list[float]] = defaultdict(list)
    unlike: set[str] = set()

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = next(
                (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()), None
            )
            got = output[0] if isinstance(output, tuple | list) and output else output
            if given is None or not isinstance(got, Tensor) or given.shape != got.shape or given.dim() < 2:
                unlike.add(path)
                return
            axis = 1 if given.dim() == 4 else -1
            cosine = torch.cosine_similarity(given.double(), got.double(), dim=axis)
            sums[path].append(1 - float(cosine.mean()))

        return hook

    layers = {path: model.get_submodule(path) for path in repeated(model)}
    hooks = [
        layer.register_forward_hook(watch(path), with_kwargs=True)
        for path, layer in layers.items()
        if any(True for _ in layer.children())
    ]
    try:
        with torch.no_grad(), eval_mode(model):
            for inputs in batches:
                inputs.call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: sum(found) / len(found) for path, found in sums.items() if path not in unlike}


def without(model: nn.Module, paths: Iterable[str]) -> list[Change]:
    """The edits that leave these children of lists out; those within a layer that goes are no matter."""
    gone: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        container, _, name = path.rpartition(".")
        gone[container].add(name)
    found: list[Change] = []
    for container, names in gone.items():
        children = [name for name, _ in model.get_submodule(container).named_children()]
        kept = tuple(i for i, name in enumerate(children) if name not in names)
        found.append((KeepChildren(container, len(children), kept), {}))
    return found
