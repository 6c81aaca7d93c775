"""Layers that could be left out: children of a list that give what they take, and how much each changes it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lilliput.model.capture import Inputs
from lilliput.model.config_fit import Untold
from lilliput.model.configured import TOLERANCE, described
from lilliput.model.coupling.sizes import numbers_read
from lilliput.model.structure import KeepChildren, KeepEntries
from lilliput.model.trial import Change, answers, changed
from lilliput.modes import eval_mode
from lilliput.outputs import departure


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


def relied_on(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """Repeated layers that others need for more than what flows through, and what reads that of each.

    Such as the first of T5, which makes the biases of positions that all layers are given.
    """
    layers = {path: model.get_submodule(path) for path in repeated(model)}
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are held so that no other takes their place
    given: dict[str, set[int]] = {}
    found: dict[str, str] = {}

    def before(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given[path] = {id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            for maker in (made[x][0] for x in given[path] & made.keys()):
                if not path.startswith(f"{maker}."):
                    found.setdefault(maker, path)

        return hook

    def after(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            for x in tree_leaves(output)[1:]:
                if isinstance(x, Tensor) and id(x) not in given[path]:
                    made.setdefault(id(x), (path, x))

        return hook

    hooks = [layer.register_forward_pre_hook(before(path), with_kwargs=True) for path, layer in layers.items()]
    hooks += [layer.register_forward_hook(after(path)) for path, layer in layers.items()]
    try:
        answers(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


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


def with_configs(model: nn.Module, made: list[Change], inputs: Inputs) -> tuple[list[Change], str]:
    """Edits that leave layers out, with those by which configs tell it; or without, and why they cannot."""

    def again(also: list[Change]) -> list[Change]:
        one, other = (answers(changed(model, edits), inputs) for edits in (made, [*made, *also]))
        kinds = any(isinstance(edit, KeepEntries) for edit, _ in also)  # a layer is of another kind without them
        if not kinds and not departure(one, other) <= TOLERANCE:
            raise Untold("layers compute by their number")
        return [*made, *also]

    return described(model, made, inputs, numbers_read, again)
