"""The text of a module, written production by production: what a draw is made of, and what a failure is shown as."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from keyword import iskeyword
from random import Random
from typing import Any

Step = Sequence[Any]  # [the name of a production, {parameter: value}]
NESTED = "steps"  # the parameter of a production that holds others

FLOATS = ("image", "signal", "sequence", "vector")
FIRST = ("linear", "conv2d", "conv1d", "embedding")
SHAPES = {"image": (3, 8, 8), "signal": (4, 12), "sequence": (6, 8), "vector": (12,), "tokens": (6,)}


class Unfit(Exception):
    """The production does not take what flows here; it is left out."""


@dataclass
class Source:
    """What stands so far: one module with its `forward`, in which `x` is what flows."""

    layout: str  # image [n, C, H, W], signal [n, C, T], sequence [n, T, C], vector [n, C], tokens [n, T]
    shape: tuple[int, ...]  # without the batch
    names: Mapping[str, str] = field(default_factory=dict)  # number of a layer -> its odd name
    inits: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)  # done to `net` once it stands
    classes: list[str] = field(default_factory=list)
    arguments: list[tuple[str, ...]] = field(default_factory=list)  # in the signature, name, value, another value
    layers: list[str] = field(default_factory=list)  # expressions of layers that give one tensor: `self.a0`
    counted: list[int] = field(default_factory=lambda: [0])

    @property
    def channels(self) -> int:
        return self.shape[-1] if self.layout in ("sequence", "vector") else self.shape[0]

    @property
    def along(self) -> str:
        """How a vector of channels is laid along what flows: an index to write behind it."""
        return {"image": "[:, None, None]", "signal": "[:, None]"}.get(self.layout, "")

    @property
    def floats(self) -> bool:
        return self.layout in FLOATS

    def fresh(self, prefix: str = "v") -> str:
        self.counted[0] += 1
        return f"{prefix}{self.counted[0]}"

    def hold(self, expression: str, *, gives_tensor: bool = True) -> str:
        """Keep a module under the next name; the expression that reads it."""
        number = self.counted[0]
        plain = self.fresh("a")
        name = self.names.get(str(number), plain)
        plainly = name.isidentifier() and not iskeyword(name) and not name.startswith("__")  # which Python mangles
        read = f"self.{name}" if plainly else f"getattr(self, {name!r})"
        self.inits.append(
            f"self.add_module({name!r}, {expression})" if name != plain else f"self.{name} = {expression}"
        )
        if gives_tensor:
            self.layers.append(read)
        return read

    def init(self, line: str) -> None:
        self.inits.append(line)

    def line(self, line: str) -> None:
        self.lines.append(line)

    def becomes(self, layout: str, *shape: int) -> None:
        if any(n < 1 for n in shape) or max(shape, default=1) > 4096:
            raise Unfit
        self.layout, self.shape = layout, tuple(shape)

    def wide(self, channels: int) -> None:
        """The same but for its channels."""
        kept = self.shape[:-1] if self.layout in ("sequence", "vector") else self.shape[1:]
        after = (*kept, channels) if self.layout in ("sequence", "vector") else (channels, *kept)
        self.becomes(self.layout, *after)

    @contextmanager
    def apart(self) -> Iterator[list[str]]:
        """Inside, lines of `forward` are gathered apart."""
        kept, self.lines = self.lines, []
        try:
            yield self.lines
        finally:
            self.lines = kept

    def indented(self, head: str, body: Sequence[str]) -> None:
        self.lines += [head, *(f"    {line}" for line in body or ["pass"])]


@dataclass(frozen=True)
class Production:
    """One idea: how it is written, what flows that it takes, and what its parameters are drawn from."""

    name: str
    write: Callable[..., None]
    takes: tuple[str, ...]
    choices: Mapping[str, Sequence[Any]]
    weight: float


PRODUCTIONS: dict[str, Production] = {}


def production(*takes: str, weight: float = 1.0, **choices: Sequence[Any]) -> Callable[[Any], Any]:
    """Enter a function ``(source, **parameters)`` under its name."""

    def enter(write: Callable[..., None]) -> Callable[..., None]:
        name = write.__name__.rstrip("_")
        PRODUCTIONS[name] = Production(name, write, takes, choices, weight)
        return write

    return enter


def write_steps(source: Source, steps: Sequence[Step]) -> None:
    """Each step in turn; one that does not fit leaves nothing behind, so that any selection of steps is a module."""
    for name, parameters in steps:
        before = copy.deepcopy(source)
        try:
            if source.layout not in PRODUCTIONS[name].takes:
                raise Unfit
            PRODUCTIONS[name].write(source, **parameters)
        except Unfit:
            source.__dict__.update(before.__dict__)


def draw_steps(random: Random, source: Source, least: int, most: int, depth: int = 0) -> list[Step]:
    """Steps that fit one another, written to `source` as they are drawn; the first at the top is a layer."""
    steps: list[Step] = []
    for i in range(random.randint(least, most)):
        fitting = [
            p for p in PRODUCTIONS.values() if source.layout in p.takes and (NESTED not in p.choices or depth < 2)
        ]
        if i == depth == 0:
            fitting = [p for p in fitting if p.name in FIRST]
        (chosen,) = random.choices(fitting, [p.weight for p in fitting])
        drawn: dict[str, Any] = {}
        for key, choices in chosen.choices.items():
            if key == NESTED:
                drawn[key] = draw_steps(random, copy.deepcopy(source), 1, 2, depth + 1)
            else:
                drawn[key] = random.choice(list(choices))
        steps.append([chosen.name, drawn])
        write_steps(source, steps[-1:])
    return steps
