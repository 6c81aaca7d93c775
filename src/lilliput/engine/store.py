"""Answers remembered by the content of the question, in memory and, given a folder, on disk.

A killed run is resumed by asking again: what was answered is not computed twice. Only plain data and tensors are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lilliput.errors import FormatError
from lilliput.file.container import Part, Reader, write
from lilliput.model.arrays import to_array, to_tensor
from lilliput.plain import digest
from lilliput.techniques.run import Answer


class Store:
    """Answers by key; `folder=None` keeps them in memory only."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.memory: dict[str, Answer] = {}

    def answer(
        self,
        question: tuple[Any, ...],
        compute: Callable[[], Answer],
        lasting: Callable[[Answer], bool] = lambda found: True,
    ) -> Answer:
        """The remembered answer to `question` (plain data), or what `compute` finds, from now on remembered.

        In memory alone where it is not `lasting`: another run is to ask again.
        """
        key = digest(*question)
        found = self.memory.get(key) or self._from_disk(key)
        if found is None:
            found = compute()
            if self.folder is not None and lasting(found):
                parts = [Part.of(name, to_array(tensor)) for name, tensor in found.tensors.items()]
                header = {"kind": "answer", "data": json.dumps(found.data)}
                write(self.folder / f"{key}.answer", header, parts, "fast")
        self.memory[key] = found
        return found

    def _from_disk(self, key: str) -> Answer | None:
        path = None if self.folder is None else self.folder / f"{key}.answer"
        if path is None or not path.exists():
            return None
        try:
            reader = Reader(path)
            data = json.loads(reader.header["data"])
            return Answer(data, {name: to_tensor(reader.read(name)) for name in reader.names()})
        except (FormatError, KeyError, TypeError, ValueError):  # damaged, by a full disk say: compute it again
            path.unlink(missing_ok=True)
            return None
