"""What of a network is in memory at a time, and how it is called there by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lilliput.errors import InputError
from lilliput.model.carrier.carrier import tensors
from lilliput.model.surgery.depth import repeated
from lilliput.model.views.inputs import Inputs
from lilliput.structures import is_plain


@dataclass(frozen=True)
class Section:
    """A block, or a layer outside of blocks, with all that is tied to it: the paths of its modules in the network.

    A module that has several paths is there under each.
    """

    paths: tuple[str, ...]
    block: bool

    def holds(self, name: str) -> bool:
        """Whether a tensor of that name is in it."""
        return any(name.startswith(f"{path}.") for path in self.paths)


def sections(model: nn.Module) -> list[Section]:
    """The outermost blocks, modules of a list or sequence with others of their class; and the layers outside of them.

    Raises InputError where blocks hold one tensor together, and where there is no section at all.
    """
    listed = repeated(model)
    blocks = [path for path in listed if not any(path.startswith(f"{other}.") for other in listed)]
    inside = {id(part) for path in blocks for part in model.get_submodule(path).modules()}
    of = {id(model.get_submodule(path)): path for path in blocks}
    paths: dict[str, list[str]] = {}  # of each first module, those of all that is tied to it
    for path, module in model.named_modules(remove_duplicate=False):
        if path and (id(module) in of or (id(module) not in inside and _is_layer(module))):
            paths.setdefault(of.setdefault(id(module), path), []).append(path)
    found = _joined(model, {first: Section(tuple(own), first in blocks) for first, own in paths.items()})
    if not found:
        raise InputError("has neither layers nor blocks inside", where="model", next="give the network as a whole")
    return found


def _is_layer(module: nn.Module) -> bool:
    return not module._modules and any(x.dim() > 1 for x in module._parameters.values() if x is not None)


def _joined(model: nn.Module, found: Mapping[str, Section]) -> list[Section]:
    """Sections that hold one tensor made one."""
    of = {first: first for first in found}
    for tie in tensors(model):
        firsts = list(dict.fromkeys(of[first] for path in tie for first in of if found[first].holds(path)))
        if len(firsts) > 1 and any(found[first].block for first in firsts):
            raise InputError(
                "one tensor is held by several blocks",
                where=", ".join(tie),
                why="they are not in memory together",
                next="compress the whole network: lp.apply",
            )
        of = {first: firsts[0] if held in firsts else held for first, held in of.items()}
    return [
        Section(tuple(path for other, held in of.items() if held == first for path in found[other].paths), one.block)
        for first, one in found.items()
        if of[first] == first
    ]


@dataclass(frozen=True)
class Arguments:
    """What a module is called with, its tensors apart: these are the inputs of a network that is that module alone."""

    tensors: tuple[Tensor, ...]
    plain: tuple[Any, ...]  # all leaves, None where a tensor stands
    places: tuple[int, ...]  # of the tensors among them
    spec: TreeSpec

    @classmethod
    def of(cls, where: str, args: Any, kwargs: Any) -> Arguments:
        """Raises InputError for an argument that is neither a tensor nor a plain value."""
        leaves, spec = tree_flatten((args, dict(kwargs)))
        for leaf in leaves:
            if not isinstance(leaf, Tensor) and not is_plain(leaf):
                raise InputError(
                    f"is called with a {type(leaf).__name__}",
                    where=where,
                    why="a block that is called by itself is given tensors and plain values",
                    next="let the network make none: of transformers model.config.use_cache = False",
                )
        places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        plain = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(tuple(leaves[i] for i in places), plain, places, spec)

    def __deepcopy__(self, memo: Any) -> Arguments:
        return self  # nothing of it is ever changed

    def inputs(self) -> Inputs:
        return Inputs(self.tensors, {})

    def like(self, other: Arguments) -> bool:
        return (self.plain, self.places, self.spec) == (other.plain, other.places, other.spec)

    def filled(self, given: Sequence[Tensor]) -> tuple[Any, Any]:
        """Positional and named arguments with these tensors."""
        leaves = list(self.plain)
        for place, x in zip(self.places, given, strict=True):
            leaves[place] = x
        found: tuple[Any, Any] = tree_unflatten(leaves, self.spec)
        return found


class Alone(nn.Module):
    """Modules of a network, under the paths that they have there, and called with tensors alone.

    `calls` are the paths of those that are called, in turn, and what each is called with.
    """

    def __init__(self, modules: Mapping[str, nn.Module], calls: Sequence[tuple[str, Arguments]]) -> None:
        super().__init__()
        for path, module in modules.items():
            *parents, name = path.split(".")
            owner: nn.Module = self
            for parent in parents:
                if parent not in owner._modules:
                    owner.add_module(parent, nn.Module())
                owner = owner._modules[parent]  # type: ignore[assignment]
            owner.add_module(name, module)
        self._lilliput_calls = [(path, replace(one, tensors=())) for path, one in calls]  # a name of no other module

    def forward(self, *given: Tensor) -> Any:
        answers, rest = [], list(given)
        for path, arguments in self._lilliput_calls:
            taken, rest = rest[: len(arguments.places)], rest[len(arguments.places) :]
            args, kwargs = arguments.filled(taken)
            answers.append(self.get_submodule(path)(*args, **kwargs))
        return answers[0] if len(answers) == 1 else tuple(answers)


def alone(section: Section, modules: Mapping[str, nn.Module]) -> tuple[Alone, Inputs]:
    """Every layer of a section on an example of its own, where nothing tells what flows: weights are seen so.

    Layers of classes of others than torch are not called.
    """
    calls = []
    for root in section.paths:
        for path, layer in modules[root].named_modules(prefix=root):
            example = _example(layer)
            if example is not None:
                calls.append((path, Arguments.of(path, (example,), {})))
    return Alone(modules, calls), Inputs(tuple(x for _, one in calls for x in one.tensors), {})


def _example(layer: nn.Module) -> Tensor | None:
    return next((make(layer) for kind, make in _EXAMPLES.items() if isinstance(layer, kind)), None)


def _image(layer: Any) -> Tensor:
    kernel, dilation = layer.kernel_size, layer.dilation
    return torch.zeros(1, layer.in_channels, *(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)))


_EXAMPLES: dict[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Any], Tensor]] = {
    nn.Linear: lambda layer: torch.zeros(1, layer.in_features),
    nn.Embedding: lambda layer: torch.zeros(1, dtype=torch.long),
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): _image,
    (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d): _image,
    nn.RNNBase: lambda layer: torch.zeros(1, 1, layer.input_size),
}


def weights_of(model: nn.Module, parts: Iterable[Section]) -> list[list[str]]:
    """For each section, the names of its parameters that may be weights of layers, each tensor by its first."""
    found = [paths[0] for paths, x in tensors(model).items() if len(x.shape) > 1]
    return [[path for path in found if part.holds(path)] for part in parts]
