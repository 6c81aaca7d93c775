"""Which slices of which tensors can only be removed together: found by following the axes through a captured graph.

Every axis of every tensor of the model starts as atoms of its own (`atoms.py`). Each call of the graph joins those of
what it reads and tells those of what it returns, by the rule of its operator (`rules.py`); what a rule does not
know, nothing is removed from. What is left are groups: sets of slices that are alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from lilliput.model.carrier.carrier import owner_of, stored_of, tensors
from lilliput.model.surgery.coupling.atoms import NONE, Atoms, Axis
from lilliput.model.surgery.coupling.flow import ENCODED, Flow, Number, follow
from lilliput.model.surgery.coupling.rules import RULES
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.program import program, quiet
from lilliput.modes import eval_mode

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one tensor of the model, and where the slices of a group lie along it."""

    path: str
    axis: int
    positions: tuple[Positions, ...]  # for each slice of the group those that go with it, as many for each

    def sums(self, x: Tensor) -> Tensor:
        """Of the numbers `x`, one for each element of the tensor, the sum over each slice, [slices]."""
        along = x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1).sum(1)
        return along[torch.from_numpy(np.stack(self.positions)).to(x.device)].sum(1)


@dataclass(frozen=True, eq=False)
class Group:
    """Slices that are alike: each may be removed, from all members at once, and is then gone from the network."""

    atoms: tuple[int, ...]
    members: tuple[Member, ...]
    heads: bool = False  # of attention: what it multiplies, it multiplies for each slice apart
    normalised: bool = False  # something is normalised over them: what is left is normalised over fewer

    @property
    def size(self) -> int:
        return len(self.atoms)


@dataclass
class Coupling:
    """What is coupled in one network."""

    flow: Flow
    captured: ExportedProgram
    held: Mapping[str, Sequence[Axis]]  # of each tensor of the model, the axes
    groups: tuple[Group, ...]
    tensors: Mapping[str, Tensor]
    protected: Mapping[str, str] = field(default_factory=dict)  # "path[axis]" -> why nothing goes there

    @property
    def atoms(self) -> Atoms:
        return self.flow.atoms

    @property
    def numbers(self) -> Sequence[Number]:
        return self.flow.numbers

    def lengths(self) -> list[dict[Group, int]]:
        """Groups whose lengths are one number in the source: for each the positions that a slice has along its axis."""
        by_atom = {atom: group for group in self.groups for atom in group.atoms}
        by_number: dict[tuple[str, int], dict[Group, int]] = defaultdict(dict)
        for number in self.numbers:
            parts = self.atoms.parts(number.axis)
            along = {group for atom in np.unique(parts) if (group := by_atom.get(int(atom)))}
            if len(along) == 1 and (group := along.pop()):
                each = int(np.isin(parts, np.array(group.atoms[:1])).any(1).sum())
                by_number[number.module, number.value].setdefault(group, each)
        return [tied for tied in by_number.values() if len(tied) > 1]

    def left(self, axis: Axis, gone: Iterable[int]) -> npt.NDArray[np.bool_]:
        """Which positions of an axis are left once these atoms are gone."""
        return self.atoms.left(axis, np.array(list(gone), np.int64))


def coupling(model: nn.Module, inputs: Inputs) -> Coupling:
    """The groups of `model`, a network in eval mode, as it runs on `inputs`.

    Raises what torch.export raises where the network cannot be captured whole.
    """
    with eval_mode(model), quiet():
        captured = program(model, inputs, {})
    first = {path: paths[0] for paths in tensors(model) for path in paths}
    flow, held = followed(captured, first, lambda name: stored_of(model, name) != name)
    return _found(flow, captured, held, {path: held_tensor(model, path) for path in held}, set(first))


def held_tensor(model: nn.Module, path: str) -> Tensor:
    """A parameter or buffer of `model` that is not encoded."""
    owner, name = owner_of(model, path)
    held = owner._parameters[name] if name in owner._parameters else owner._buffers[name]
    assert held is not None
    return held.detach()


def followed(
    captured: ExportedProgram, first: Mapping[str, str], encoded: Callable[[str], bool]
) -> tuple[Flow, dict[str, Sequence[Axis]]]:
    """The axes of all that flows in a captured graph, and those of the model's tensors by their first path.

    `encoded` tells which names of the `state_dict` are parts of encoded tensors.
    """
    flow, held = Flow(), dict[str, Sequence[Axis]]()
    signature = captured.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    module: Any = captured.graph_module
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            flow.axes[node] = _given(flow, held, node, names, first, encoded)
    follow(flow, captured.graph, module, RULES)
    return flow, held


def _given(
    flow: Flow,
    held: dict[str, Sequence[Axis]],
    node: Node,
    names: Mapping[str, str],
    first: Mapping[str, str],
    encoded: Callable[[str], bool],
) -> Any:
    """The axes of what the graph is given: a tensor of the model, an input, a constant."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    name = names.get(node.name)
    if name is None:
        why = "an axis of an input" if not node.name.startswith("c_") else "a constant of the source"
        return [flow.atoms.fixed(n, why) for n in value.shape]
    if encoded(name):
        return [flow.atoms.fixed(n, ENCODED) for n in value.shape]
    if not node.users:  # training, or another method, may
        return [flow.atoms.fixed(n, "nothing reads it") for n in value.shape]
    path = first.get(name, name)
    if path not in held:
        held[path] = [flow.atoms.new(n) for n in value.shape]
    return list(held[path])


def _found(
    flow: Flow,
    captured: ExportedProgram,
    held: Mapping[str, Sequence[Axis]],
    values: Mapping[str, Tensor],
    parameters: Container[str],
) -> Coupling:
    atoms = flow.atoms
    places: dict[int, list[_Place]] = defaultdict(list)
    for path, axes in held.items():
        for i, axis in enumerate(axes):
            for atom, positions, column in _places(atoms.parts(axis)):
                places[atom].append(_Place(path, i, column, positions))
                if len(positions) == len(axis) and len(axis) > 1:
                    atoms.keep(np.array([atom]), "without it nothing would be left")
    protected = {
        f"{path}[{i}]": atoms.why_kept(int(atoms.parts(axis)[0].max()))
        for path, axes in held.items()
        for i, axis in enumerate(axes)
        if len(axis) > 1 and atoms.fixed_whole(axis)
    }
    alike: dict[Any, list[int]] = defaultdict(list)
    for atom, found in places.items():
        if not atoms.why_kept(atom) and any(place.path in parameters for place in found):
            alike[tuple((place.path, place.axis, place.column, len(place.positions)) for place in found)].append(atom)
    heads, normalised = (
        set(map(int, np.unique(atoms.parts(np.concatenate(axes))))) if axes else set[int]()
        for axes in (flow.heads, flow.normalised)
    )
    groups = []
    for same in alike.values():
        if len(same) > 1:
            members = tuple(
                Member(first.path, first.axis, tuple(places[atom][k].positions for atom in same))
                for k, first in enumerate(places[same[0]])
            )
            groups.append(Group(tuple(same), members, same[0] in heads, same[0] in normalised))
    return Coupling(flow, captured, held, tuple(groups), values, protected)


class _Place(NamedTuple):
    """Where one atom lies along one axis of one tensor."""

    path: str
    axis: int
    column: int  # among the parts of a position: rows before columns
    positions: Positions


def _places(parts: Axis) -> Iterator[tuple[int, Positions, int]]:
    """Each atom of an axis, with the positions that it is a part of, and as which part it comes first."""
    rows, columns = (x.ravel() for x in np.indices(parts.shape))
    flat = parts.ravel()
    known = flat != NONE
    order = np.lexsort((columns[known], rows[known], flat[known]))
    atoms, rows, columns = flat[known][order], rows[known][order], columns[known][order]
    new = np.ones(len(atoms), bool)  # an atom may be several parts of one position
    new[1:] = (atoms[1:] != atoms[:-1]) | (rows[1:] != rows[:-1])
    atoms, rows, columns = atoms[new], rows[new], columns[new]
    found, starts = np.unique(atoms, return_index=True)
    ends = [*starts[1:], len(rows)] if len(starts) else []  # of an axis without elements there are none
    for atom, first, last in zip(found.tolist(), starts, ends, strict=True):
        yield atom, rows[first:last], int(columns[first])
