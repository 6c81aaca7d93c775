from __future__ import annotations

import math
from pathlib import Path

import pytest

from lilliput.measure.energy import Energy

RANGE = 1_000_000_000  # microjoules, after which a counter begins again


def package(root: Path, number: int, name: str, microjoules: int) -> Path:
    """As the system shows a counter: a folder with a file for each figure."""
    place = root / f"intel-rapl:{number}"
    place.mkdir(exist_ok=True)
    for file, text in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", RANGE)):
        (place / file).write_text(f"{text}\n")
    return place


def test_joules_of_all_packages_add_up(tmp_path: Path) -> None:
    package(tmp_path, 0, "package-0", 5_000_000)
    package(tmp_path, 1, "package-1", 7_000_000)
    package(tmp_path, 2, "psys", 0)  # the whole board, with the packages in it
    energy = Energy(tmp_path)
    assert energy() == 0.0
    package(tmp_path, 0, "package-0", 6_500_000)
    package(tmp_path, 1, "package-1", 7_250_000)
    package(tmp_path, 2, "psys", 90_000_000)
    assert energy() == pytest.approx(1.75)


def test_a_counter_that_begins_again_goes_on(tmp_path: Path) -> None:
    package(tmp_path, 0, "package-0", RANGE - 1_000_000)
    energy = Energy(tmp_path)
    assert energy() == 0.0
    package(tmp_path, 0, "package-0", 500_000)
    assert energy() == pytest.approx(1.5)


def test_where_nobody_may_read_it_nothing_is_known(tmp_path: Path) -> None:
    assert math.isnan(Energy(tmp_path)())
    place = package(tmp_path, 0, "package-0", 1)
    (place / "energy_uj").unlink()
    assert math.isnan(Energy(tmp_path)())
    (place / "energy_uj").write_text("denied")
    assert math.isnan(Energy(tmp_path)())
