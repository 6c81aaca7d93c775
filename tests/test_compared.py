"""What holds numbers against each other lets neither a constant pass nor a factor of 1.3, and is what the tests use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import MOST, close, spread

HERE = Path(__file__).parent
RIGHT = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)) + 3
LOOSEST: list[dict[str, Any]] = [{"atol": MOST * spread(RIGHT)}, {"share": MOST}, {}]
WRONG = {
    "a constant": torch.full_like(RIGHT, float(RIGHT.mean())),
    "outputs times 1.3": 1.3 * RIGHT,
    "other rows": RIGHT.flip(0),
    "a bias lost": RIGHT - 0.3,
}


@pytest.mark.parametrize("tolerance", LOOSEST, ids=str)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_fails_by_the_loosest_tolerance(name: str, tolerance: dict[str, Any]) -> None:
    close(RIGHT + 1e-6, RIGHT, **tolerance)
    with pytest.raises(AssertionError):
        close(WRONG[name], RIGHT, **tolerance)
    with pytest.raises(AssertionError):
        close({"a": [RIGHT, WRONG[name]]}, {"a": [RIGHT, RIGHT]}, **tolerance)


@pytest.mark.parametrize("tolerance", [{"atol": 0.06}, {"rtol": 0.02}, {"share": 0.06}], ids=str)
def test_a_tolerance_that_is_too_loose_is_refused_though_all_is_right(tolerance: dict[str, Any]) -> None:
    right = RIGHT / spread(RIGHT)
    with pytest.raises(AssertionError, match="refused"):
        close(right, right, **tolerance)


def test_one_number_is_held_to_its_magnitude_and_zeros_to_be_zeros() -> None:
    close(torch.tensor(2.0), 2.0, atol=0.1)
    with pytest.raises(AssertionError, match="refused"):
        close(torch.tensor(2.0), 2.0, atol=0.11)
    with pytest.raises(AssertionError):
        close(torch.full((3,), 1e-9), torch.zeros(3))


def test_one_outlier_makes_no_room() -> None:
    right = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([1e2])])
    assert spread(right) < 0.04 * float(right.max() - right.min())


def test_the_tests_compare_by_it() -> None:
    """What is not the same may be told by torch itself, whose tolerances are tight."""
    elsewhere = re.compile(r"testing\.assert_close|(?<!not torch\.)(?<!torch\.)\ballclose\(|(?<!not )torch\.allclose\(")
    found = [
        f"{path.relative_to(HERE)}:{i}"
        for path in HERE.rglob("*.py")
        if path.name not in ("compared.py", Path(__file__).name)
        for i, line in enumerate(path.read_text().splitlines(), 1)
        if elsewhere.search(line)
    ]
    assert not found
