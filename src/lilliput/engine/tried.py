"""What was tried on the target in place of its own recipe, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tried:
    """A choice as plain data: `rows` tell of each try how many times as fast as float it was."""

    recipe: str  # that was chosen, as TOML
    chosen: str = ""  # in words
    rows: list[dict[str, Any]] = field(default_factory=list)
    reasons: Mapping[str, str] = field(default_factory=dict)  # why layers stay in float, by the paths of weights
    why_not: str = ""  # why nothing was tried; then the recipe is the target's own

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return asdict(self)
