"""What a run tells of what it did and did not do, for the report; what is told by paths follows modules that move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from lilliput.model.edits.edit import Edit
from lilliput.model.edits.edits import EncodeTensor
from lilliput.model.edits.origins import MOVES, children, of_tensor, origins, parts, renamed
from lilliput.model.edits.structure import KeepChildren


@dataclass
class Told:
    """Notes, what was skipped, and facts of other kinds."""

    origins: dict[str, str]  # modules, with the paths that they had first
    skipped: dict[str, str] = field(default_factory=dict)
    facts: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    _lasting: set[str] = field(default_factory=set)  # of those skipped, which stay so when they are encoded
    _notes: dict[str, dict[str, bool]] = field(default_factory=dict)  # texts, and which outlast another encoding

    @classmethod
    def of(cls, model: nn.Module) -> Told:
        return cls(origins(model, ()))

    @property
    def notes(self) -> dict[str, str]:
        """What was done to layers that their encodings do not say, by the paths of tensors."""
        return {path: "; ".join(texts) for path, texts in self._notes.items() if texts}

    def note(self, path: str, text: str, lasting: bool) -> None:
        self._notes.setdefault(path, {})[text] = lasting

    def skip(self, path: str, reason: str, lasting: bool) -> None:
        self.skipped[path] = reason
        (self._lasting.add if lasting else self._lasting.discard)(path)

    def tell(self, kind: str, fact: Any, path: str) -> None:
        """A fact of the module or tensor at a path is told with the path that it had first."""
        if path:
            fact = {"path": self.origins.get(path) or of_tensor(path, self.origins) or path, **fact}
        self.facts[kind].append(fact)

    def copy(self) -> Self:
        """The same, told on by another run."""
        facts = defaultdict(list, {kind: list(found) for kind, found in self.facts.items()})
        notes = {path: dict(texts) for path, texts in self._notes.items()}
        return type(self)(dict(self.origins), dict(self.skipped), facts, set(self._lasting), notes)

    def follow(self, edit: Edit) -> None:
        """An edit is made: what a tensor had no use for is told of it no more once it is encoded."""
        if isinstance(edit, EncodeTensor):
            path = edit.paths[0]
            if path not in self._lasting:
                self.skipped.pop(path, None)
            self._notes[path] = {text: lasting for text, lasting in self._notes.get(path, {}).items() if lasting}
        if isinstance(edit, MOVES):
            self._rename(edit)

    def _rename(self, edit: Edit) -> None:
        """What is known by paths follows modules; of what goes, or is divided, nothing is told any more."""
        names = children(self.origins, edit.container) if isinstance(edit, KeepChildren) else ()

        def moved(known: Mapping[str, Any]) -> dict[str, Any]:
            found = {renamed(path, edit, names): x for path, x in known.items()}
            return {path: x for path, x in found.items() if path is not None}

        self.origins = moved(self.origins) | parts(self.origins, edit)
        self._notes, self.skipped = moved(self._notes), moved(self.skipped)
        self._lasting = set(moved(dict.fromkeys(self._lasting)))
