"""Configs that follow what a network has become, so that what its library saves can be loaded again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from lilliput.errors import CaptureError, raise_own, reason
from lilliput.model.carrier.carrier import plain_class
from lilliput.model.carrier.config import is_config
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.edits.held import passing_buffers
from lilliput.model.edits.structure import KeepChildren, KeepEntries, SetFactor, SetNumber
from lilliput.model.surgery.config_fit import ConfigFit, Leaf, Unmade, Untold, leaves, made, shapes_of
from lilliput.model.surgery.trial import Change, answers, changed
from lilliput.model.views.inputs import Inputs
from lilliput.modes import exact_products
from lilliput.outputs import departure

TOLERANCE = 1e-4  # of the largest answer: what the order of sums may change


def described(
    model: nn.Module,
    made: list[Change],
    inputs: Inputs,
    read: Callable[[nn.Module, Inputs], Mapping[str, Mapping[str, int]]],
    again: Callable[[list[Change]], list[Change]],
) -> tuple[list[Change], str]:
    """The edits `made` with those by which configs tell the new sizes; or without, and why they cannot.

    `read` tells the numbers that the forward of each module reads, `again` makes the edits with others behind them and
    raises CaptureError or Untold where the network then computes something else.
    """
    small = changed(model, made)
    try:
        also = _told(model, small, made, read(small, inputs))
        if not also:
            return made, ""
        whole = again(also)
        _check_made_again(model, changed(model, whole), inputs)
    except (Untold, CaptureError) as error:
        lost = _lost(model, small)
        why = f"{lost} is computed from sizes alone and lost parts (where=('*', '!{lost}') leaves it whole)"
        return made, why if lost else reason(error).partition(": ")[2]
    return whole, ""


def _lost(before: nn.Module, after: nn.Module) -> str:
    """A buffer that no file of a library holds, such as frequencies of positions, that lost some of its numbers."""
    held, left = passing_buffers(before), passing_buffers(after)
    return next((name for name, x in left.items() if name in held and x.shape != held[name].shape), "")


def _told(
    before: nn.Module, after: nn.Module, changes: Iterable[Change], read: Mapping[str, Mapping[str, int]]
) -> list[Change]:
    """The edits by which the configs of `after`, and modules beside them, hold the numbers that `changes` led to."""
    kept = {edit.container: edit.kept for edit, _ in changes if isinstance(edit, KeepChildren)}
    found: list[Change] = []
    for path in _owners(before, after):
        fit = ConfigFit(before.get_submodule(path), after.get_submodule(path), _inside(read, path), _inside(kept, path))
        config, entries = fit.found()
        found += _of_config(path, fit.config, config, entries)
        found += _of_modules(path, changed(after, found), made(type(fit.old), config, "meta"), entries)
    return found


def _check_made_again(before: nn.Module, after: nn.Module, inputs: Inputs) -> None:
    """Raise Untold where what classes make of the configs in `after` computes something else, given the same tensors.

    That is what saving a network by its library and loading it comes to.
    """
    for path in _owners(before, after):
        owner = after.get_submodule(path)
        try:
            again = made(plain_class(owner), vars(owner)["config"])
        except Unmade as error:
            raise Untold(f"made again by it, the network fails ({error})") from error
        try:
            again.load_state_dict(owner.state_dict(), assign=True)
            again.to(next(x.device for x in owner.parameters()))
            with exact_products():
                apart = departure(answers(after, inputs), answers(duplicate(after, {id(owner): again}), inputs))
        except Exception as error:  # somebody else's class
            raise_own(error)
            raise Untold(f"made again by it, the network fails ({reason(error)})") from error
        if not apart <= TOLERANCE:
            raise Untold(
                f"made again by it, the network answers otherwise ({apart:.2g} of the largest apart): it computes"
                " something from its sizes alone"
            )


def _owners(before: nn.Module, after: nn.Module) -> list[str]:
    """The outermost modules that are made by the config they hold, those that `after` has otherwise.

    Modules that hold a config and are not made by it alone are passed by: those inside are made by it, or else there
    are none, and Untold is raised.
    """
    found, passed, work = list[str](), list[str](), [""]
    there = dict(after.named_modules())
    while work:
        path = work.pop()
        module = before.get_submodule(path)
        config = vars(module).get("config")
        if is_config(config) and path in there and shapes_of(module) != shapes_of(there[path]):
            if _is_made(plain_class(module), config):
                found.append(path)
                continue
            passed.append(path)
        work += [f"{path}.{name}" if path else name for name, _ in module.named_children()]
    if passed and not found:
        kind = type(before.get_submodule(passed[0])).__name__
        raise Untold(f"{kind} is not made by its config alone")
    return found


def _is_made(kind: type[nn.Module], config: Any) -> bool:
    try:
        made(kind, config, "meta")
    except Unmade:
        return False
    return True


def _inside(found: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What is told of modules by path, of those within one, by their path there."""
    prefix = f"{path}." if path else ""
    inner = {name.removeprefix(prefix): held for name, held in found.items() if name.startswith(prefix)}
    return inner | ({"": found[path]} if path and path in found else {})


def _of_config(path: str, old: Any, new: Any, entries: Mapping[Leaf, tuple[int, ...]]) -> list[Change]:
    """The edits that lead from one config, held by the module at `path`, to another."""
    found: list[Change] = []
    for leaf, kept in entries.items():
        found.append((KeepEntries(path, _dotted(leaf), len(_at(old, leaf)), kept), {}))
    done = set(entries)
    for leaf, value in leaves(old):
        name: Leaf = leaf[:-1] if isinstance(leaf[-1], int) else leaf
        if name in done or _at(new, name) == _at(old, name):
            continue
        done.add(name)
        held = _at(new, name)
        smaller = (
            held <= value if isinstance(held, int) else all(a <= b for a, b in zip(held, _at(old, name), strict=True))
        )
        if not smaller:
            raise Untold(f"{_dotted(name)} would have to grow")
        found.append((SetNumber(path, _dotted(name), (held,) if isinstance(held, int) else tuple(held)), {}))
    return found


def _at(config: Any, leaf: Leaf) -> Any:
    for name in leaf:
        config = vars(config).get(name)
    return config


def _dotted(leaf: Leaf) -> str:
    return ".".join(("config", *map(str, leaf)))


def _of_modules(path: str, trial: nn.Module, again: nn.Module, entries: Mapping[Leaf, tuple[int, ...]]) -> list[Change]:
    """The edits that give modules, and configs of their own, the numbers that those made again have."""
    found: list[Change] = []
    owner = trial.get_submodule(path)
    seen = {id(vars(owner)["config"])}
    for name, module in owner.named_modules():
        other, here = vars(again.get_submodule(name)), ".".join(filter(None, (path, name)))
        config = vars(module).get("config")
        if is_config(config) and id(config) not in seen:
            seen.add(id(config))
            kept = {leaf: places for leaf, places in entries.items() if _at(other["config"], leaf) != _at(config, leaf)}
            found += _of_config(here, config, other["config"], kept)
        for attribute, held in vars(module).items():
            edit = _followed(here, attribute, held, other.get(attribute))
            if edit is not None and not attribute.startswith("_"):
                found.append((edit, {}))
    return found


def _followed(path: str, name: str, held: Any, other: Any) -> SetNumber | SetFactor | None:
    """The edit that makes an attribute what it is where the module is made anew, if it is a number that may change."""
    if type(held) is float and type(other) is float:
        return SetFactor(path, name, other) if held != other and held > 0 and other > 0 else None
    if type(held) not in (int, tuple, list) or type(held) is not type(other):
        return None
    one, two = ((x,) if type(x) is int else x for x in (held, other))
    if not all(type(n) is int for n in (*one, *two)) or len(one) != len(two) or one == two:
        return None
    return SetNumber(path, name, tuple(two)) if all(0 < b <= a for a, b in zip(one, two, strict=True)) else None
