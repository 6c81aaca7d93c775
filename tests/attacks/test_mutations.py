"""200,000 mutations of the golden files: each is refused as it should be, or read as well as by the second decoder.

Most of them are right on the outside, with sizes and checksums that fit, so that they reach what lies behind those.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import golden
import mutations
import pytest

PROCESSES = 2
HANGS_S = 3600  # after which a process is given up; usually a hundredth of it

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory, and asks /proc how much was used")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process tells in the end."""
    places = [tmp_path_factory.mktemp("mutations") / str(share) for share in range(PROCESSES)]
    running = [
        subprocess.Popen(
            [sys.executable, mutations.__file__, str(share), str(PROCESSES), str(place)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for share, place in enumerate(places)
    ]
    try:
        return [result(process, place) for process, place in zip(running, places, strict=True)]
    finally:
        for process in running:
            process.kill()
            process.communicate()


def result(process: subprocess.Popen[str], place: Path) -> dict[str, Any]:
    """What a process tells; when it hangs or dies, the mutation that it was at is kept."""
    try:
        out, err = process.communicate(timeout=HANGS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    if process.returncode == 0:
        return json.loads(out.splitlines()[-1])  # type: ignore[no-any-return]
    (number,) = struct.unpack("<Q", Path(f"{place}.at").read_bytes())
    kept = place.with_suffix(".lil")
    kept.write_bytes(mutations.mutation(number)[1])
    pytest.fail(f"ended with {process.returncode} at mutation {number}, which is kept in {kept}\n{err[-2000:]}")


@pytest.fixture(scope="module")
def ended(told: list[dict[str, Any]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in told:
        found.update(one["ended"])
    return found


def test_nothing_but_errors_of_ours(told: list[dict[str, Any]]) -> None:
    """No foreign exception, no more memory than allowed, nothing that hangs."""
    assert [one for share in told for one in share["foreign"]] == []


def test_so_many(ended: Counter[str]) -> None:
    kinds = {kind: sum(n for key, n in ended.items() if key.startswith(f"{kind}: ")) for kind in mutations.COUNTS}
    assert kinds == mutations.COUNTS and sum(kinds.values()) == 200_000
    assert sum(n for kind, n in kinds.items() if kind != "bytes") >= 100_000  # right on the outside


def test_every_layer_is_reached(ended: Counter[str]) -> None:
    """And refuses; the numbers are somewhat below those that were found."""
    least = {
        **{"bytes: ends": 50_000, "bytes: sizes": 10_000, "bytes: checksums": 2_000},
        **{"streams: decode": 50_000, "streams: digest": 10_000},
        **{"entries: entries": 6_000, "entries: decode": 5_000, "entries: sizes": 400, "entries: digest": 2_000},
        **{"edits: load": 3_500, "graphs: graph": 5_000, "headers: inside": 1_000},
        **{"reached load": 3_900, "reached graph": 6_900, "reached inside": 1_000},
    }
    missed = {key: (ended[key], n) for key, n in least.items() if ended[key] < n}
    assert not missed


def test_some_are_fine(ended: Counter[str]) -> None:
    """Where a mutation says nothing else, or something else that is sound: not everything is refused."""
    assert ended["edits: fine"] > 50 and ended["graphs: fine"] > 500 and ended["headers: fine"] > 500


def test_both_decoders_agree(told: list[dict[str, Any]]) -> None:
    compared = sum((Counter(share["compared"]) for share in told), Counter())
    assert compared["read"] > 500 and compared["refused"] > 5_000
    assert [number for share in told for number in share["differ"]] == []


def test_every_flip_and_every_cut_is_found(told: list[dict[str, Any]]) -> None:
    """Each single bit of the golden files, each byte, and each of their beginnings."""
    assert [one for share in told for one in share["flips"]["kept"]] == []
    sizes = sum(path.stat().st_size for path in golden.FILES)
    assert sum(share["flips"]["found"] for share in told) == sizes * (len(mutations.MASKS) + 1)
