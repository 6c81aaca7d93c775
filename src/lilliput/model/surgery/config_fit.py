"""Finding the numbers of a config by which a network that shrank could be built again.

Nothing is known of what the numbers of a config mean. Each is changed in turn, the network built on the device that
holds no data, and the lengths that follow are seen; so the new lengths give the new numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import Any

import torch
from torch import nn

from lilliput.errors import reason
from lilliput.model.carrier.config import is_config
from lilliput.model.surgery.trial import same_chance

Key = tuple[str, str]  # a tensor and its axis, a list and "length", a module and its attribute
Leaf = tuple[str | int, ...]  # where a number of a config lies: attributes, and a place in a list
Values = Mapping[Leaf, int]
_MOST = 16  # assignments of numbers that are tried
_LENGTH = "length"


class Untold(Exception):
    """A config cannot tell what a network has become; the text is why."""


class Unmade(Exception):
    """A class makes no module of a config; the text is why, in the words of what refused it."""


def made(kind: type[nn.Module], config: Any, device: str = "cpu") -> nn.Module:
    """What a class makes of a config that went through a dict, as it does through a file.

    Raises Unmade where the class takes more than a config, or it or the config refuses the numbers.
    """
    try:
        with torch.device(device), same_chance():
            return kind(type(config).from_dict(copy.deepcopy(config).to_dict()))
    except Exception as error:  # somebody else's class
        raise Unmade(reason(error.__cause__ if isinstance(error.__cause__, Exception) else error)) from error


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: tuple(x.shape) for name, x in tensors}


def lengths(module: nn.Module) -> dict[Key, int]:
    """All lengths of a network: of axes, of lists of modules, and the whole numbers that modules hold."""
    found = {(name, f"[{i}]"): n for name, shape in shapes_of(module).items() for i, n in enumerate(shape)}
    for path, part in module.named_modules():
        if isinstance(part, nn.ModuleList | nn.Sequential):
            found[path, _LENGTH] = len(part)
        found |= {(path, name): n for name, n in vars(part).items() if type(n) is int and not name.startswith("_")}
    return found


def leaves(config: Any, at: Leaf = ()) -> Iterator[tuple[Leaf, int]]:
    """The whole numbers over 1 that a config holds, itself, in lists, and in configs within it."""
    for name, held in vars(config).items():
        if type(held) is int and held > 1:
            yield (*at, name), held
        elif type(held) is list and all(type(n) is int for n in held):
            yield from (((*at, name, i), n) for i, n in enumerate(held) if n > 1)
        elif is_config(held):
            yield from leaves(held, (*at, name))


def with_numbers(config: Any, values: Values, kept: Mapping[Leaf, tuple[int, ...]] | None = None) -> Any:
    """A copy of a config with other numbers, and with some entries alone of lists."""
    found = copy.deepcopy(config)
    for leaf, value in values.items():
        *way, last = leaf
        holder = found
        for name in way:
            holder = vars(holder)[name]
        (holder if isinstance(last, int) else vars(holder))[last] = value
    for leaf, places in (kept or {}).items():
        holder = found
        for name in leaf[:-1]:
            holder = vars(holder)[name]
        vars(holder)[leaf[-1]] = [vars(holder)[leaf[-1]][i] for i in places]
    return found


def lists(config: Any, length: int, at: Leaf = ()) -> Iterator[Leaf]:
    """The lists of a length that a config holds; but for those of tokens, which are as long as layers are by chance."""
    for name, held in vars(config).items():
        if type(held) is list and len(held) == length and "token" not in name:
            yield (*at, name)
        elif is_config(held):
            yield from lists(held, length, (*at, name))


@dataclass
class ConfigFit:
    """One module, `old` before it shrank and `new` afterwards, made by a config."""

    old: nn.Module
    new: nn.Module
    read: Mapping[str, Mapping[str, int]]  # what the forwards of modules inside read: the numbers that count
    kept: Mapping[str, tuple[int, ...]]  # of lists of modules that lost some, those that stay
    before: dict[Key, int] = field(default_factory=dict)
    wanted: dict[Key, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            base = made(type(self.old), self.config, "meta")
        except Unmade as error:
            raise Untold(f"{type(self.old).__name__} is not made by its config alone ({error})") from None
        if shapes_of(base) != shapes_of(self.old):
            raise Untold(f"{type(self.old).__name__} makes other tensors of its config than it has")
        self.before, run, after = lengths(base), lengths(self.old), lengths(self.new)
        for key in sorted(self.before.keys() & after.keys()):
            path, name = key
            if self.before[key] < 1:
                continue
            number = name in self.read.get(path, {}) and run.get(key) == self.before[key]  # that no forward sets
            if number or name.startswith("[") or name == _LENGTH:
                self.wanted[key] = after[key]

    @property
    def config(self) -> Any:
        return vars(self.old)["config"]

    def found(self) -> tuple[Any, dict[Leaf, tuple[int, ...]]]:
        """The config that makes the network as it is now, and the entries of its lists that were kept.

        Numbers that a forward reads stay what they are where that can be, or else only those that had to change.
        Raises Untold where there is none.
        """
        changed = {key: n for key, n in self.wanted.items() if n != self.before[key]}
        values = {a: v for a, v in leaves(self.config) if any(self.before[key] % v == 0 for key in changed)}
        depends = self._depends(values, {self.before[key] for key in changed if key[1] == _LENGTH})
        failed = ""
        for _ in range(2):
            ratios = {key: Fraction(self.wanted[key], self.before[key]) for key in depends.keys() & self.wanted.keys()}
            depends = {key: depends[key] for key in sorted(ratios)}
            apart = contradiction(ratios, depends)
            failed = self._worded(*apart, depends) if apart else ""
            for solution in islice(solutions(ratios, depends, values), _MOST):
                for kept in self._cuts(solution, values, depends):
                    config = with_numbers(self.config, solution, kept)
                    misfit = self._misfit(config)
                    if not misfit:
                        return config, kept
                    failed = failed or misfit
            self.wanted = {
                key: n for key, n in self.wanted.items() if n != self.before[key] or key[1].startswith(("[", _LENGTH))
            }
        raise Untold(failed or "no numbers of it give all these widths together")

    def _worded(self, one: Key, other: Key, depends: Mapping[Key, Mapping[Leaf, bool]]) -> str:
        names = " and ".join(sorted(".".join(map(str, leaf)) for leaf in depends[one]))
        two = (f"{_called(key)} is {self.wanted[key]} of {self.before[key]}" for key in (one, other))
        return f"{', '.join(two)}, and {names} stands for both"

    def _depends(self, values: Values, counts: set[int]) -> dict[Key, dict[Leaf, bool]]:
        """By which numbers each length is made; of each, whether the length is a multiple of it."""
        found: dict[Key, dict[Leaf, bool]] = {}
        for leaf, v in values.items():
            others = ([v - 1] if v in counts else []) + [2 * v, 3 * v] + ([v // 2] if v % 2 == 0 else [])
            for other in others:
                after = self._lengths_with(leaf, v, other)
                moved = {key for key in self.wanted if after.get(key, n := self.before[key]) != n} if after else set()
                for key in moved:
                    found.setdefault(key, {})[leaf] = after[key] * v == self.before[key] * other
                if moved:
                    break
        return found

    def _lengths_with(self, leaf: Leaf, v: int, other: int) -> dict[Key, int]:
        cut = {name: tuple(range(other)) for name in lists(self.config, v) if name != leaf[:-1]} if other < v else {}
        for kept in ({}, cut) if cut else ({},):
            try:
                return lengths(made(type(self.old), with_numbers(self.config, {leaf: other}, kept), "meta"))
            except Unmade:  # the class refuses such numbers: others are tried
                continue
        return {}

    def _cuts(
        self, solution: Values, values: Values, depends: Mapping[Key, Mapping[Leaf, bool]]
    ) -> Iterator[dict[Leaf, tuple[int, ...]]]:
        """What lists of a config may hold one entry for each layer that stays."""
        found: dict[Leaf, tuple[int, ...]] = {}
        for (path, name), by in depends.items():
            for leaf in by:
                if name == _LENGTH and path in self.kept and solution.get(leaf) == len(self.kept[path]):
                    found |= dict.fromkeys(lists(self.config, values[leaf]), self.kept[path])
        if found:
            yield found
        yield {}

    def _misfit(self, config: Any) -> str:
        try:
            small = made(type(self.old), config, "meta")
        except Unmade as error:
            return f"it refuses such numbers ({error})"
        one, other = shapes_of(small), shapes_of(self.new)
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                return f"{name} would be of shape {one.get(name)} for {other.get(name)}"
        numbers = lengths(small)
        for key, n in self.wanted.items():
            if numbers.get(key, n) != n:
                return f"{_called(key)} would be {numbers[key]} for {n}"
        return ""


def solutions(
    ratios: Mapping[Key, Fraction], depends: Mapping[Key, Mapping[Leaf, bool]], values: Values
) -> Iterator[dict[Leaf, int]]:
    """The numbers, of those that are `values` now, that make lengths by these ratios what they were.

    Of a length that is the product of two unknown numbers either may be what changed.

    >>> a, b = ("heads",), ("width",)
    >>> lengths = {("q", "[0]"): {a: True, b: True}, ("norm", "[0]"): {b: True}}
    >>> list(solutions({("q", "[0]"): Fraction(1, 4), ("norm", "[0]"): Fraction(1, 2)}, lengths, {a: 4, b: 12}))
    [{('heads',): 2, ('width',): 6}]
    """
    if contradiction(ratios, depends):
        return
    products = {frozenset(by): ratios[key] for key, by in depends.items() if all(by.values())}
    yield from ({**values, **found} for found in _solved(products, values, {}))


def _solved(products: Mapping[frozenset[Leaf], Fraction], values: Values, known: Values) -> Iterator[dict[Leaf, int]]:
    found = dict(known)
    progress = True
    while progress:
        progress = False
        for leaves, ratio in products.items():
            for leaf in leaves & found.keys():
                ratio /= Fraction(found[leaf], values[leaf])
            unknown = leaves - found.keys()
            if not unknown and ratio != 1:
                return
            if len(unknown) == 1:
                value = ratio * values[next(iter(unknown))]
                if value.denominator != 1 or not 0 < value <= values[next(iter(unknown))]:
                    return
                found[next(iter(unknown))] = int(value)
                progress = True
    open_ends = sorted({leaf for leaves in products for leaf in leaves - found.keys()}, key=str)
    if not open_ends:
        yield found
    for leaf in open_ends:
        yield from _solved(products, values, {**found, leaf: values[leaf]})


def contradiction(ratios: Mapping[Key, Fraction], depends: Mapping[Key, Mapping[Leaf, bool]]) -> tuple[Key, Key] | None:
    """Two lengths that are multiples of the same numbers and did not shrink alike, if there are."""
    first: dict[frozenset[Leaf], Key] = {}
    for key, by in depends.items():
        other = first.setdefault(frozenset(by), key)
        if all(by.values()) and ratios[other] != ratios[key]:
            return other, key
    return None


def _called(key: Key) -> str:
    path, name = key
    return f"{path}{name}" if name.startswith("[") else ".".join(filter(None, key))
