"""Modules drawn from a grammar, each with a recipe and a target: right, refused, or wrong?

    make bench NAME=grammar ARGS='--draws 3000 --jobs 2'     go on where the last stopped, then the table
    make bench NAME=grammar ARGS='--show 17'                 the script of a draw, and what comes of it
    make bench NAME=grammar ARGS='--reduce 17'               made smaller, and kept among the failures

The draws are numbered, and the same in every run of one version of the grammar. What comes of each is a line in
`out/bench/grammar/<commit>/`, by pieces, each made by a process of its own; nothing is timed. The exit code is 1 where
a draw is wrong: a silent difference, something of the user's that was changed, an error that is not ours, a process
that ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[1]
GRAMMAR = ROOT / "tests" / "grammar"
sys.path[:0] = [str(GRAMMAR)]
PIECE = 50  # draws to a process: torch.export keeps what it has seen


def work(place: Path, begin: int, end: int) -> None:
    """Judge the draws from `begin` to `end`, but for those that are done."""
    import torch
    from oracle import judge
    from spec import Spec

    torch.set_num_threads(1)
    done = {row["draw"] for row in lines(place)}
    with place.open("a", encoding="utf-8") as file:
        for draw in range(begin, end):
            if draw not in done:
                spec = Spec.drawn(Random(draw))
                print(json.dumps({"draw": draw, "kind": "begun"}), file=file, flush=True)
                outcome = judge(spec)
                row = {"draw": draw, **vars(outcome), "spec": json.loads(spec.to_json())}
                print(json.dumps(row, ensure_ascii=False), file=file, flush=True)


def lines(place: Path) -> list[dict[str, Any]]:
    """What came of each draw; one that was begun and not ended has ended its process."""
    found: dict[int, dict[str, Any]] = {}
    if place.exists():
        for line in place.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found[row["draw"]] = row
    begun = {"kind": "foreign", "what": "the process ended", "detail": ""}
    return [{**row, **begun} if row["kind"] == "begun" else row for row in found.values()]


def piece(folder: Path, begin: int, end: int) -> None:
    """One piece, by processes that are begun again where one ends too early."""
    place, left = folder / f"{begin:06}.jsonl", -1
    while len(lines(place)) < end - begin and left != (left := len(lines(place))):
        command = [sys.executable, __file__, "--worker", str(place), str(begin), str(end)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, check=False)
    rows = Counter(row["kind"] for row in lines(place))
    print(f"{begin} … {end - 1}: {dict(rows)}", flush=True)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each outcome, with the number of the first draw that shows it, and one for all."""
    order = ("silent", "foreign", "right", "refused")
    counts = Counter((row["kind"], row["what"]) for row in rows)
    first = {(row["kind"], row["what"]): row["draw"] for row in reversed(rows)}
    told = [
        {"outcome": kind, "what": what, "draws": n, "first_draw": first[kind, what]}
        for (kind, what), n in sorted(counts.items(), key=lambda item: (order.index(item[0][0]), -item[1]))
    ]
    return [*told, {"outcome": "all", "what": "", "draws": len(rows), "first_draw": ""}]


def commit() -> str:
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return told.stdout.strip() or "unknown"


def show(draw: int, smaller: bool) -> None:
    from oracle import judge
    from reduce import reduced
    from spec import Spec

    spec = Spec.drawn(Random(draw))
    spec, outcome = reduced(spec) if smaller else (spec, judge(spec))
    print(spec.script())
    print(f"# {outcome.kind}: {outcome.what}: {outcome.detail}")
    if smaller and outcome.failed:
        kept = GRAMMAR / "failures" / f"{draw}.json"
        kept.write_text(spec.to_json() + "\n", encoding="utf-8")
        print(f"# kept: {kept.relative_to(ROOT)}; give it the name of what it shows")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--begin", type=int, default=0, help="the number of the first")
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parser.add_argument("--show", type=int)
    parser.add_argument("--reduce", type=int)
    asked = parser.parse_args()
    if asked.show is not None or asked.reduce is not None:
        show(asked.reduce if asked.show is None else asked.show, asked.show is None)
        return
    from table import write

    folder = Path("out") / "bench" / "grammar" / commit()
    folder.mkdir(parents=True, exist_ok=True)
    end = asked.begin + asked.draws
    with ThreadPoolExecutor(asked.jobs) as pool:
        begins = range(asked.begin - asked.begin % PIECE, end, PIECE)
        list(pool.map(lambda begin: piece(folder, begin, begin + PIECE), begins))
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in lines(path)]
    told = table(rows)
    write("grammar", told, threads=1)
    wrong = [row for row in told if row["outcome"] in ("silent", "foreign")]
    for row in wrong:
        print(f"{row['outcome']}: {row['what']}: {row['draws']} draws, the first {row['first_draw']}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
