"""Answers remembered by the content of the question, in memory and, given a folder, on disk.

A killed run is resumed by asking again: what was answered is not computed twice. Only plain data and tensors are kept.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lilliput.errors import FormatError
from lilliput.file.container import Part, Reader, write
from lilliput.model.carrier.arrays import to_array, to_tensor
from lilliput.plain import digest
from lilliput.techniques.run import Answer

MOST = 64 << 20  # bytes of tensors held in memory


class Store:
    """Answers by key; `folder=None` keeps them in memory only.

    Memory holds `most` bytes of tensors, of the answers that were asked for last: what else is asked again is read
    from disk, or computed again. Answers without tensors all stay.
    """

    def __init__(self, folder: Path | None = None, most: int = MOST) -> None:
        self.folder, self.most = folder, most
        self._memory: dict[str, Answer] = {}
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of those with tensors; the one asked for last is the last

    def answer(
        self,
        question: tuple[Any, ...],
        compute: Callable[[], Answer],
        lasting: Callable[[Answer], bool] = lambda found: True,
    ) -> Answer:
        """The remembered answer to `question` (plain data), or what `compute` finds, from now on remembered.

        In memory alone where it is not `lasting`: another run is to ask again.
        """
        found = self.known(question)
        if found is None:
            key, found = digest(*question), compute()
            if self.folder is not None and lasting(found):
                parts = [Part.of(name, to_array(tensor)) for name, tensor in found.tensors.items()]
                header = {"kind": "answer", "data": json.dumps(found.data)}
                write(self.folder / f"{key}.answer", header, parts, "fast")
            self._hold(key, found)
        return found

    def known(self, question: tuple[Any, ...]) -> Answer | None:
        """The remembered answer to `question`, if there is one."""
        key = digest(*question)
        found = self._memory.get(key) or self._from_disk(key)
        if found is not None:
            self._hold(key, found)
        return found

    def _hold(self, key: str, found: Answer) -> None:
        self._memory[key] = found
        if size := sum(x.numel() * x.element_size() for x in found.tensors.values()):
            self._sizes[key] = size
            self._sizes.move_to_end(key)
        while sum(self._sizes.values()) > self.most:
            del self._memory[self._sizes.popitem(last=False)[0]]

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
