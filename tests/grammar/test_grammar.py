"""Whatever module is drawn from the grammar, with whatever recipe: right, or refused by an error of ours.

A draw that fails is printed as a script. `make bench NAME=grammar ARGS='--draws 3000'` tries more, and `--reduce N`
makes one smaller and keeps it in `failures/`, where it is tried here for ever.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import judge
from spec import Spec

FAILURES = sorted((Path(__file__).parent / "failures").glob("*.json"))
DRAWS = int(os.environ.get("GRAMMAR_DRAWS", "40"))  # two minutes


def hold(spec: Spec) -> None:
    outcome = judge(spec)
    assert not outcome.failed, f"{outcome.kind}: {outcome.what}: {outcome.detail}\n{spec.script()}"


@pytest.mark.parametrize("path", FAILURES, ids=lambda path: path.stem)
def test_what_failed_once(path: Path) -> None:
    hold(Spec.from_json(path.read_text(encoding="utf-8")))


@settings(
    max_examples=DRAWS,
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    phases=(Phase.generate,),  # a draw takes seconds: `--reduce` knows better what may be left out
    suppress_health_check=list(HealthCheck),
)
@given(st.randoms(use_true_random=False).map(Spec.drawn))
def test_whatever_is_drawn(spec: Spec) -> None:
    hold(spec)


def test_a_spec_is_the_same_after_it_was_saved() -> None:
    for number in range(20):
        spec = Spec.drawn(Random(number))
        assert Spec.from_json(spec.to_json()).script() == spec.script()


def test_scripts_are_python() -> None:
    for number in range(100):
        compile(Spec.drawn(Random(number)).script(), "script", "exec")


@pytest.mark.parametrize("what", ["scaled", "constant", "another module"])
def test_a_wrong_answer_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is no oracle if what is opened may answer as it likes."""
    import lilliput as lp

    opened = lp.open
    answers: dict[str, Any] = {
        "scaled": lambda y: y * 1.3,
        "constant": lambda y: y * 0 + 1,
        "another module": lambda y: y.flip(-1),
    }

    def wrong(*args: Any, **kwargs: Any) -> Any:
        run = opened(*args, **kwargs)
        return lambda *a, **k: answers[what](run(*a, **k))

    monkeypatch.setattr(lp, "open", wrong)
    outcome = judge(Spec("vector", [["linear", {"width": 8, "bias": True}]], recipe=["lp.Quantize(weights=lp.Int(8))"]))
    assert (outcome.kind, outcome.what) == ("silent", "the opened file differs")
