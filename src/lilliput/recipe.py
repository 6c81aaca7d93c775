"""An ordered list of techniques, in Python or in TOML."""

from __future__ import annotations

import tomllib
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lilliput.encodings import ENCODINGS
from lilliput.errors import RecipeError
from lilliput.plain import check_types, from_plain, to_plain, to_toml, toml_of
from lilliput.techniques.combinations import FITS
from lilliput.techniques.distill import TERMS
from lilliput.techniques.equalize import Equalize
from lilliput.techniques.factorize import Factorize
from lilliput.techniques.finetune import Finetune
from lilliput.techniques.gradual import Gradual
from lilliput.techniques.group_lasso import GroupLasso
from lilliput.techniques.l2sp import L2SP
from lilliput.techniques.plugin import Plugin
from lilliput.techniques.prune import Prune
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.rounding import ROUNDINGS
from lilliput.techniques.scalings import SCALINGS
from lilliput.techniques.scores import SCORES
from lilliput.techniques.share import Share
from lilliput.techniques.technique import Technique

TECHNIQUES: dict[str, type[Technique]] = {
    "Equalize": Equalize,
    "Factorize": Factorize,
    "Finetune": Finetune,
    "Prune": Prune,
    "Quantize": Quantize,
    "Share": Share,
}
PLUGINS: dict[str, type[Plugin]] = {"GroupLasso": GroupLasso, "Gradual": Gradual, "L2SP": L2SP}
KINDS: Mapping[str, type] = ChainMap[str, Any](TECHNIQUES, ENCODINGS, FITS, ROUNDINGS, SCALINGS, SCORES, TERMS, PLUGINS)


@dataclass(frozen=True, init=False)
class Recipe:
    """Techniques in the order in which they are applied; an order that cannot work is refused here, before any work.

    >>> from lilliput.encodings import Int
    >>> recipe = Recipe([Prune("weights", 0.5), Quantize(weights=Int(4, group=32))])
    >>> Recipe.from_toml(recipe.to_toml()) == recipe
    True
    """

    steps: tuple[Technique, ...]

    def __init__(self, steps: Iterable[Technique]) -> None:
        if not isinstance(steps, Iterable) or isinstance(steps, type):
            raise RecipeError(f"a recipe of {steps!r}", next="give a list of steps: Recipe([Quantize(weights=Int(8))])")
        object.__setattr__(self, "steps", tuple(steps))
        if not self.steps:
            raise RecipeError("a recipe without steps", next="give at least one, such as Quantize(weights=Int(8))")
        given: tuple[Any, ...] = self.steps
        for i, step in enumerate(given):
            if not isinstance(step, Technique):
                known = ", ".join(sorted(TECHNIQUES))
                if isinstance(step, type) and issubclass(step, Technique):
                    raise RecipeError(f"step {i + 1} is a class", next=f"make a step of it: {step.__name__}(…)")
                raise RecipeError(f"step {i + 1} is {step!r}", next=f"known techniques: {known}")
            check_types(step, f"step {i + 1}, {type(step).__name__}")
            _check_order(given[:i], step)

    def to_toml(self) -> str:
        """The recipe as a TOML document: one ``[[steps]]`` table each."""
        blocks = [
            "\n".join(["[[steps]]", *(f"{k} = {to_toml(v)}" for k, v in to_plain(step).items())]) for step in self.steps
        ]
        return "\n\n".join(blocks) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """The recipe that a TOML document describes; unknown names are refused with the nearest known one."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError("the recipe is not TOML", why=str(error)) from None
        steps = data.get("steps")
        if not isinstance(steps, list) or set(data) != {"steps"}:
            raise RecipeError(f"the recipe has {sorted(data)}", next="give its steps as [[steps]] tables")
        return cls(from_plain(step, KINDS, f"steps[{i}]") for i, step in enumerate(steps))

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        return cls.from_toml(toml_of(path, "recipe"))


def _check_order(before: tuple[Technique, ...], step: Technique) -> None:
    """Refuse a step that makes stale what an earlier one found."""
    for earlier in before:
        for stale in sorted(earlier.establishes & step.disturbs):
            raise RecipeError(
                f"step {len(before) + 1}, {type(step).__name__}, after {type(earlier).__name__}",
                why=f"it would make the {stale} stale that the earlier step found",
                next=f"put {type(earlier).__name__} last, or join the two steps",
            )
