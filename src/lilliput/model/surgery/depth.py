"""What a network could do without: layers of its lists, and blocks within those that give what they take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lilliput.model.edits.stand_in import first_tensor, given_as
from lilliput.model.edits.structure import KeepChildren, KeepEntries, LeaveOut
from lilliput.model.surgery.config_fit import Untold
from lilliput.model.surgery.configured import TOLERANCE, described
from lilliput.model.surgery.coupling.sizes import numbers_read
from lilliput.model.surgery.trial import Change, answers, changed
from lilliput.model.views.inputs import Inputs
from lilliput.modes import eval_mode
from lilliput.outputs import departure
from lilliput.progress import Progress, silent


@dataclass(frozen=True)
class Dispensable:
    """A module that might be left out, and how much that changes: 1 minus a cosine, 0 … 2."""

    path: str
    change: float
    by: LeaveOut | None = None  # what stands in for it; None: it stands in a list, which gets shorter

    @property
    def told(self) -> str:
        """How much it changes, in words."""
        return f"changes {'its input' if self.by is None else 'the answers'} by {self.change:.3f}"


def repeated(model: nn.Module) -> list[str]:
    """Paths of the children of lists and sequences of which there are several of one class."""
    return _listed(model, 2)


def _listed(model: nn.Module, least: int) -> list[str]:
    """Paths of the children of lists and sequences of which there are at least so many of one class."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            kinds = Counter(map(type, module))
            children = module.named_children()
            found += [f"{path}.{name}" if path else name for name, child in children if kinds[type(child)] >= least]
    return found


def layers(model: nn.Module, batches: Iterable[Inputs]) -> list[Dispensable]:
    """The repeated layers of several modules, with 1 minus the mean cosine of what goes in and comes out.

    The "block influence" of Men et al. 2024, "ShortGPT"; over all positions, the last axis being that of features (the
    second, of pictures). Layers that give another shape than they take are none.
    """
    paths = [path for path in repeated(model) if _several(model.get_submodule(path))]
    sums: dict[str, list[float]] = {path: [] for path in paths}

    def visit(path: str, given: Tensor | None, got: Any) -> None:
        x = _alike(given, got)
        if given is None or x is None or given.dim() < 2:
            sums.pop(path, None)
        elif path in sums:
            cosine = torch.cosine_similarity(given.double(), x.double(), dim=1 if given.dim() == 4 else -1)
            sums[path].append(1 - float(cosine.mean()))

    with torch.no_grad(), eval_mode(model), _watched(model, paths, visit):
        for inputs in batches:
            inputs.call(model)
    return [Dispensable(path, sum(found) / len(found)) for path, found in sums.items() if found]


def blocks(model: nn.Module, batches: Iterable[Inputs], progress: Progress = silent) -> list[Dispensable]:
    """The outermost modules within those of lists that give what they take, such as attention or feed-forward.

    With 1 minus the mean cosine, over samples, of what the network answers with and without it; where what went in
    stands in for it or else zeros, whichever changes less: zeros for a branch that is added to what goes past it.
    """
    batches = list(batches)
    found = _blocks(model, batches[0])
    exact = [answers(model, inputs) for inputs in batches]
    changed = []
    for done, (path, outputs) in enumerate(found.items()):
        progress("comparing blocks", done, len(found))
        ways = [LeaveOut(path, zeros, outputs) for zeros in (True, False)]
        change = {way: _turned(model, way, batches, exact) for way in ways}
        best = min(ways, key=change.__getitem__)
        changed.append(Dispensable(path, change[best], best))
    return changed


def _blocks(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Paths of blocks that are called once, and the lengths of the tuples that they give; 0 of those that give none."""
    within = [
        f"{layer}.{name}"
        for layer in _listed(model, 1)
        for name, module in model.get_submodule(layer).named_modules()
        if name and _several(module)
    ]
    calls: dict[str, list[int | None]] = defaultdict(list)

    def visit(path: str, given: Tensor | None, got: Any) -> None:
        calls[path].append(None if _alike(given, got) is None else len(got) if isinstance(got, tuple) else 0)

    with torch.no_grad(), eval_mode(model), _watched(model, within, visit):
        inputs.call(model)
    found = {path: seen[0] for path, seen in calls.items() if len(seen) == 1 and seen[0] is not None}
    return {path: n for path, n in found.items() if not any(path.startswith(f"{other}.") for other in found)}


def _several(module: nn.Module) -> bool:
    """Whether several layers with weights are in it."""
    return sum(any(p.dim() > 1 for p in part.parameters(recurse=False)) for part in module.modules()) > 1


def _alike(given: Tensor | None, got: Any) -> Tensor | None:
    """What a module gives, first or alone, if it is of the shape of what it was given."""
    x = got[0] if isinstance(got, tuple) and got else got
    return x if given is not None and isinstance(x, Tensor) and x.shape == given.shape else None


def _turned(model: nn.Module, way: LeaveOut, batches: Sequence[Inputs], exact: Sequence[Sequence[Tensor]]) -> float:
    """How far the answers turn once a module is left out."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        x = first_tensor((*args, *kwargs.values()))
        assert x is not None
        return given_as(torch.zeros_like(x) if way.zeros else x, way.outputs)

    handle = model.get_submodule(way.path).register_forward_hook(hook, with_kwargs=True)
    found = []
    try:
        for inputs, expected in zip(batches, exact, strict=True):
            got, wanted = first_tensor(answers(model, inputs)), first_tensor(expected)
            assert got is not None and wanted is not None
            rows = len(wanted) if wanted.dim() else 1
            cosine = torch.cosine_similarity(got.double().reshape(rows, -1), wanted.double().reshape(rows, -1))
            found.append(1 - float(cosine.mean()))
    finally:
        handle.remove()
    return sum(found) / len(found)


@contextmanager
def _watched(model: nn.Module, paths: Iterable[str], visit: Any) -> Iterator[None]:
    """Inside, `visit` is told what the modules at these paths are given, the first tensor of it, and what they give."""

    def hook(path: str) -> Any:
        def told(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            visit(path, first_tensor((*args, *kwargs.values())), output)

        return told

    handles = [model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def without(model: nn.Module, gone: Iterable[Dispensable]) -> list[Change]:
    """The edits that leave these out; those within a layer that goes are no matter."""
    found: list[Change] = []
    shorter: dict[str, set[str]] = defaultdict(set)
    for one in gone:
        if one.by is None:
            container, _, name = one.path.rpartition(".")
            shorter[container].add(name)
        else:
            found.append((one.by, {}))
    for container, names in shorter.items():
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
