"""Answers are remembered within a bound: what fell out of memory is read from disk, or found anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lilliput.engine.store import Store
from lilliput.techniques.run import Answer

KB = 1 << 10


class Asked:
    """Questions of `n`, each answered by a tensor of a kilobyte that holds n; and how often one was computed."""

    def __init__(self, store: Store) -> None:
        self.store, self.computed = store, 0

    def __call__(self, n: int) -> float:
        def compute() -> Answer:
            self.computed += 1
            return Answer(n, {"x": torch.full((KB // 4,), float(n))})

        found = self.store.answer(("what", n), compute)
        assert found.data == n
        return float(found.tensors["x"].mean())


def held(store: Store) -> int:
    return sum(x.untyped_storage().nbytes() for one in store._memory.values() for x in one.tensors.values())


@pytest.mark.parametrize("disk", [True, False])
def test_memory_holds_what_was_asked_for_last(disk: bool, tmp_path: Path) -> None:
    store = Store(tmp_path if disk else None, most=4 * KB)
    ask = Asked(store)
    assert [ask(n) for n in range(10)] == list(range(10)) and held(store) == 4 * KB
    assert ask(6) == 6 and ask.computed == 10  # of the last four
    assert ask(10) == 10 and ask(6) == 6 and ask.computed == 11  # asked for just now, so that 7 fell out
    assert store.known(("what", 1)) is None or disk
    assert ask(1) == 1 and ask.computed == (11 if disk else 12)
    assert held(store) == 4 * KB


def test_what_is_larger_than_all_memory_is_answered_all_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path, most=KB // 2)
    ask = Asked(store)
    assert ask(3) == 3 and ask(3) == 3 and ask.computed == 1 and held(store) == 0


def test_answers_without_tensors_stay() -> None:
    """A timing that is not to be taken again, whatever large answers come after it; one question may hold another."""
    store, timed = Store(None, most=KB), list[int]()

    def timing() -> Answer:
        timed.append(1)
        return Answer(3.5)

    def outer() -> Answer:
        return store.answer(("same",), lambda: Answer(1, {"x": torch.zeros(KB // 4)}))

    store.answer(("timing",), timing, lambda found: False)
    store.answer(("same",), outer)
    assert [Asked(store)(n) for n in range(5)] == list(range(5)) and held(store) == KB
    assert store.answer(("timing",), timing).data == 3.5 and len(timed) == 1
