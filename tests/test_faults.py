"""Each of nine planted faults is seen by tests of two files, and by what they compare, not by a crash."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults import _RAISED, FAULTS


@functools.cache
def ended() -> dict[str, dict[str, list[str]]]:
    """How the tests ended, by the fault that was planted."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "faults.py")], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_without_a_fault_they_pass() -> None:
    found = ended()["as it is"]
    assert found.keys() == {test.partition("[")[0] for fault in FAULTS.values() for test in fault.seen_by}
    assert not [test for test, raised in found.items() if raised]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen_by_tests_of_two_files(name: str) -> None:
    found = ended()[name]
    seen = {test.partition("::")[0] for test, raised in found.items() if raised}
    assert len(seen) >= 2, found
    assert {kind for raised in found.values() for kind in raised} <= set(_RAISED), found
