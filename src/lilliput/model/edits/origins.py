"""Where modules stood before lists got shorter and layers were divided, and what they are called since."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lilliput.model.edits.division import Divide
from lilliput.model.edits.edit import Edit
from lilliput.model.edits.structure import KeepChildren, LeaveOut

MOVES = KeepChildren | LeaveOut | Divide  # the edits after which modules are called otherwise


def origins(base: nn.Module, edits: Iterable[Edit]) -> dict[str, str]:
    """The modules of `base` that are left after `edits`: their paths now, with those that they had in `base`."""
    found = {path: path for path, _ in base.named_modules(remove_duplicate=False)}
    for edit in edits:
        if isinstance(edit, MOVES):
            names = children(found, edit.container) if isinstance(edit, KeepChildren) else ()
            moved = {renamed(path, edit, names): was for path, was in found.items()}
            found = {path: was for path, was in moved.items() if path is not None} | parts(found, edit)
    return found


def parts(known: Mapping[str, str], edit: Edit) -> dict[str, str]:
    """The modules that a divided layer became, with the path that the layer had first.

    >>> parts({"a.conv": "conv"}, Divide("a.conv", (2, 8), ((0,), (1,)), (1, 1)))
    {'a.conv.0': 'conv', 'a.conv.1': 'conv'}
    """
    if not isinstance(edit, Divide) or edit.path not in known:
        return {}
    return {f"{edit.path}.{i}": known[edit.path] for i in range(len(edit.outputs))}


def children(paths: Iterable[str], container: str) -> list[str]:
    """The names of a module's children among the paths of modules, in their order."""
    prefix = f"{container}." if container else ""
    below = (path.removeprefix(prefix) for path in paths if path.startswith(prefix) and path != container)
    return [name for name in below if name and "." not in name]


def renamed(name: str, edit: Edit, children: Sequence[str]) -> str | None:
    """What a module, tensor or value is called after `edit`; None where it is gone.

    `children` are the names that the children of a list had before.

    >>> renamed("layers.2.weight", KeepChildren("layers", 3, (0, 2)), ["0", "1", "2"])
    'layers.1.weight'
    """
    if isinstance(edit, LeaveOut | Divide):  # what was known of a divided layer holds of none of its parts
        return None if name.startswith((f"{edit.path}.", f"{edit.path}:")) else name
    if not isinstance(edit, KeepChildren) or len(children) != edit.count:
        return name
    prefix = f"{edit.container}." if edit.container else ""
    child = re.split("[.:]", name.removeprefix(prefix))[0]
    if not name.startswith(prefix) or child not in children:
        return name
    places = {children[k]: i for i, k in enumerate(edit.kept)}
    return f"{prefix}{places[child]}{name.removeprefix(prefix)[len(child) :]}" if child in places else None


def of_tensor(path: str, modules: Mapping[str, str]) -> str | None:
    """The path that a tensor had, by those that `origins` tells of modules; None where there was no such module."""
    module, _, name = path.rpartition(".")
    was = modules.get(module)
    return None if was is None else f"{was}.{name}" if was else name
