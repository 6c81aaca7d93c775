"""Which weights of a model are rounded together: the blocks that it is made of."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence

from lilliput.errors import RecipeError
from lilliput.model.view import MULTIPLIES, Call
from lilliput.techniques.inputs import Block


def blocks(
    weights: Mapping[str, Sequence[Call]],
    repeated: Sequence[str],
    patterns: str | tuple[str, ...],
    biased: Collection[str],
) -> list[Block]:
    """The blocks, by `patterns` of module paths, or else the innermost of the `repeated` modules with many weights.

    A weight that is used twice, or by calls outside, belongs to none; nor does one whose use cannot be looked into.

    Raises RecipeError where there is no block.
    """
    named = (patterns,) if isinstance(patterns, str) else patterns
    own = {path: calls[0] for path, calls in weights.items() if len(calls) == 1 and _replaceable(calls[0])}
    modules = _ancestors(call.module for call in own.values())
    inside = {module: {path: call for path, call in own.items() if _within(call.module, module)} for module in modules}
    if named:
        meant = {module for module in modules if _meant(module, named)}
        found = [module for module in meant if not any(module != other and _within(module, other) for other in meant)]
    else:
        meant = {module for module in repeated if len(inside.get(module, ())) > 1}
        found = [module for module in meant if not any(module != other and _within(other, module) for other in meant)]
    if not found and named:
        listing = ", ".join(sorted(modules)[:8])
        raise RecipeError(
            f"blocks={patterns!r} matches no module with weights to round", next=f"modules are called {listing} …"
        )
    if not found:
        raise RecipeError(
            "no blocks found",
            why="no module of a list or sequence, of a class that occurs there twice, holds two weights to round",
            next="name modules in blocks=, or use AdaRound()",
        )
    order = {path: i for i, path in enumerate(own)}
    return [
        Block(module, inside[module], frozenset(inside[module]) & frozenset(biased))
        for module in sorted(found, key=lambda module: min(order[path] for path in inside[module]))
    ]


def _replaceable(call: Call) -> bool:
    return call.op in MULTIPLIES and call.value is not None and len(call.weights) == 1


def _ancestors(modules: Iterable[str]) -> set[str]:
    """The modules and all that hold them, but for the root."""
    parts = [module.split(".") for module in modules if module]
    return {".".join(names[: i + 1]) for names in parts for i in range(len(names))}


def _within(module: str, other: str) -> bool:
    return module == other or module.startswith(f"{other}.")


def _meant(module: str, patterns: tuple[str, ...]) -> bool:
    wanted = [p for p in patterns if not p.startswith("!")] or ["*"]
    refused = [p.removeprefix("!") for p in patterns if p.startswith("!")]
    return any(fnmatch.fnmatchcase(module, p) for p in wanted) and not any(
        fnmatch.fnmatchcase(module, p) for p in refused
    )
