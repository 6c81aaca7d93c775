"""Reading the tensors of a large file on several cores.

What does ANS, a library or not, holds Python's lock, so threads would wait for each other: each thread here has a
process of its own that reads, checks and decodes chunks. They are started as plain programs and not by
`multiprocessing`, which would run the user's script again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import IO

import numpy as np

from lilliput import entropy
from lilliput.entropy import Array
from lilliput.errors import FormatError, LilliputError
from lilliput.file.container import Reader, decoded
from lilliput.file.index import Entry

_WORTH = 1 << 27  # bytes of tensors for which starting processes pays
_WORTH_IN_PYTHON = 1 << 22  # … without the library
_OK, _BAD = b"+", b"-"


def read_all(reader: Reader, names: Iterable[str], workers: int | None = None) -> dict[str, Array]:
    """The tensors called `names`, decoded by so many processes; None: as many as there are cores, if it pays."""
    listed = list(names)
    own = [reader.entry(name) for name in listed if name in reader.entries]
    if workers is None:
        _, slow = entropy.able("dense")
        large = sum(entry.unfolded_bytes for entry in own) >= (_WORTH_IN_PYTHON if slow else _WORTH)
        workers = (os.cpu_count() or 1) if large else 1
    if workers < 2 or isinstance(reader.file, bytes) or not sys.executable:
        return {name: reader.read(name) for name in listed}
    found = {entry.name: np.empty(entry.count, entropy.dtype_called(entry.dtype)) for entry in own}
    free: SimpleQueue[_Worker] = SimpleQueue()

    def fill(task: tuple[Entry, int, int, int]) -> None:
        entry, i, first, last = task
        worker = free.get()
        try:
            found[entry.name][first:last] = worker.decode(entry, i, last - first, reader.where)
        finally:
            free.put(worker)

    tasks = [(entry, i, first, last) for entry in own for i, (first, last) in enumerate(entry.spans())]
    with ExitStack() as stack:
        for _ in range(min(workers, len(tasks))):
            free.put(stack.enter_context(_worker(str(reader.file))))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        for _ in pool.map(fill, tasks):
            pass
    shaped = {entry.name: reader.completed(entry.name, found[entry.name].reshape(entry.shape)) for entry in own}
    return {name: shaped[name] if name in shaped else reader.read(name) for name in listed}


class _Worker:
    """A process that decodes chunks of one file."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.asks, self.answers = process.stdin, process.stdout

    def decode(self, entry: Entry, i: int, count: int, where: str) -> Array:
        """Chunk `i` of a tensor."""
        question = [entry.place(i), entry.chunks[i], entry.check(i).hex(), entry.dtype, entry.bits, count]
        try:
            self.asks.write(json.dumps(question).encode() + b"\n")
            self.asks.flush()
            sign, length = self.answers.read(1), int.from_bytes(self.answers.read(8), "little")
            answer = self.answers.read(length)
        except OSError:
            sign, answer = _BAD, b""
        if sign != _OK:
            raise FormatError(
                answer.decode(errors="replace") or "a process that decodes was ended",
                where=f"{where}: {entry.name}, chunk {i}",
            )
        return np.frombuffer(answer, entropy.dtype_called(entry.dtype))


@contextmanager
def _worker(path: str) -> Iterator[_Worker]:
    code = "from lilliput.file.parallel import serve; serve()"
    search = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, path],  # -P: modules that lie beside a file are not imported
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search},
    )
    try:
        yield _Worker(process)
    finally:
        process.kill()
        process.communicate()


def serve() -> None:
    """What such a process runs: questions come in as lines, answers go out with their length before them."""
    with open(sys.argv[-1], "rb") as file:
        for line in sys.stdin.buffer:
            _answer(file, sys.stdout.buffer, *json.loads(line))


def _answer(
    file: IO[bytes], out: IO[bytes], place: int, size: int, expected: str, dtype: str, bits: int, count: int
) -> None:
    file.seek(place)
    try:
        sign, answer = _OK, decoded(file.read(size), bytes.fromhex(expected), dtype, bits, count).tobytes()
    except LilliputError as error:
        sign, answer = _BAD, str(error).encode()
    out.write(sign + len(answer).to_bytes(8, "little") + answer)
    out.flush()
