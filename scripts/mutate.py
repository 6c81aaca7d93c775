"""Whether the tests notice: small changes of the code, each held against the tests that reach it.

    make mutate                       400 changes, drawn by seed 0; what was done before is not done again
    make mutate ARGS='--count 40'     fewer of the same

cosmic-ray says what can be changed and changes it; coverage says which tests reach a line. Everything else is here,
for what each tool does by itself is to start Python anew for every change: importing torch takes longer than most
tests. So one process imports what is slow, and forks: a child reads one module of ours in its changed form and runs
the tests, the quickest first, until one fails. A child may use as much processor time as the tests took, four times.

What reaches what, and each outcome, is a line in out/mutate/COMMIT, so that it can be stopped and gone on with.
benchmarks/results/mutation.csv tells for each file how many were noticed, and names those that were not; what stands
there under `reason` stays when it is written again.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib.abc
import importlib.machinery
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutation.csv"
SUBJECTS = (
    *("encodings", "exporters", "measure", "model/surgery/coupling"),
    *("techniques/ranges.py", "techniques/rounding.py", "file/graph.py"),
)
_LEFT_OUT = ("core/VariableReplacer", "core/VariableInserter")  # they take a name
_TESTS_S, _TIMES, _LEAST_S = 90.0, 4, 20  # seconds of tests for one change; how much longer it may take; at least
_COLUMNS = ("file", "line", "changes", "noticed", "unnoticed", "change", "reason")


@dataclass(frozen=True)
class Change:
    """One change of one file."""

    path: str
    line: int
    operator: str
    occurrence: int

    def made(self) -> str | None:
        """The source of the whole file with the change in it."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        changed = mutate_code((ROOT / self.path).read_text(), get_operator(self.operator)(), self.occurrence)
        return None if changed is None else str(changed)


# what is changed


def sources() -> list[Path]:
    within = [ROOT / "src" / "lilliput" / name for name in SUBJECTS]
    return sorted(p for one in within for p in (one.rglob("*.py") if one.is_dir() else [one]))


def drawn(count: int, seed: int) -> list[Change]:
    """As many changes, each at a place of its own: places are drawn first, for some can be changed in many ways."""
    chance, places = random.Random(seed), defaultdict[tuple[Any, ...], list[Change]](list)
    for path in sources():
        for place, change in _changes(path):
            places[place].append(change)
    chosen = chance.sample(sorted(places), min(count, len(places)))
    return [chance.choice(places[place]) for place in chosen]


def _changes(path: Path) -> Iterator[tuple[tuple[Any, ...], Change]]:
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    name, source = str(path.relative_to(ROOT)), path.read_text()
    tree, types = get_ast(source), _annotations(source)
    for operator in operator_names():
        if operator in _LEFT_OUT:
            continue
        made, occurrence = get_operator(operator)(), -1
        for node in ast_nodes(tree):
            for start, end in made.mutation_positions(node):
                occurrence += 1
                if not any(first <= start < last for first, last in types):
                    yield (name, start, end), Change(name, start[0], operator, occurrence)


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where types stand: they are text, and nothing is computed by them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for held in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(held, ast.expr):
                last = (held.end_lineno or 0, held.end_col_offset or 0)
                found.append(((held.lineno, held.col_offset), last))
    return found


# what is run in a child


class _Changed(importlib.abc.MetaPathFinder):
    """Gives one module in its changed form."""

    def __init__(self, path: str, source: str) -> None:
        self.name = path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.path, self.source = str(ROOT / path), source

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        loader = importlib.machinery.SourceFileLoader(fullname, self.path)
        loader.get_code = lambda name: compile(self.source, self.path, "exec")  # type: ignore[method-assign,assignment]
        spec = importlib.machinery.ModuleSpec(fullname, loader, origin=self.path)
        spec.has_location = True
        if self.path.endswith("__init__.py"):
            spec.submodule_search_locations = [str(Path(self.path).parent)]
        return spec


def in_a_child(work: Any, processor_s: float) -> int:
    """How a fork of this process ends that does `work`: by its answer, or by the signal that ended it, negative."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(processor_s), int(processor_s) + 5))
        silent = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silent, stream)
        signal.alarm(int(10 * processor_s))  # what waits for ever uses no processor
        ended = 70
        try:
            ended = int(work())
        finally:
            os._exit(ended)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def tests_of(change: Change, source: str, tests: Sequence[str]) -> int:
    import pytest

    sys.meta_path.insert(0, _Changed(change.path, source))
    return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])


# what reaches what


class _Reached:
    """Under which test each line of ours is run, and how long each test that passes takes."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.taken = coverage, dict[str, float]()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if not report.passed:
            self.taken[report.nodeid] = float("inf")
        self.taken[report.nodeid] = self.taken.get(report.nodeid, 0.0) + report.duration


def gathered(test_file: str, into: Path) -> int:
    """Run one file of tests and write which lines each of its tests reaches."""
    import coverage
    import pytest

    followed = coverage.Coverage(data_file=None, include=[str(path) for path in sources()])
    plugin = _Reached(followed)
    followed.start()
    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", test_file], plugins=[plugin])
    followed.stop()
    data = followed.get_data()
    lines = {
        str(Path(path).relative_to(ROOT)): {
            line: [test for test in tests if test] for line, tests in data.contexts_by_lineno(path).items()
        }
        for path in data.measured_files()
    }
    partial = into.with_suffix(".partial")
    partial.write_text(json.dumps({"taken": plugin.taken, "lines": lines}))
    partial.replace(into)
    return 0


@dataclass
class Reach:
    taken: dict[str, float]  # seconds of each test that passes
    lines: dict[str, dict[int, set[str]]]  # the tests that reach each line of each file

    def of(self, change: Change) -> list[str]:
        """The tests that reach a line, the quickest first; of a line that is run on import, those of the file."""
        lines = self.lines.get(change.path, {})
        found = lines.get(change.line) or {test for tests in lines.values() for test in tests}
        chosen, seconds = list[str](), 0.0
        for test in sorted(found & self.taken.keys(), key=self.taken.__getitem__):
            seconds += self.taken[test]
            if chosen and seconds > _TESTS_S:
                break
            chosen.append(test)
        return chosen


def reach(folder: Path, files: Sequence[str]) -> Reach:
    """What the tests of these files reach; gathered file by file, each once."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Reach({}, defaultdict(lambda: defaultdict(set)))
    for i, name in enumerate(files):
        into = folder / (name.replace("/", "-") + ".json")
        if not into.exists():
            print(f"which lines {name} reaches ({i + 1} of {len(files)})", flush=True)
            in_a_child(lambda name=name, into=into: gathered(name, into), 3600)
        if not into.exists():
            continue
        told = json.loads(into.read_text())
        found.taken |= {test: s for test, s in told["taken"].items() if s < float("inf")}
        for path, lines in told["lines"].items():
            for line, tests in lines.items():
                found.lines[path][int(line)].update(tests)
    return found


# outcomes


def outcome(change: Change, known: Reach) -> dict[str, Any]:
    """Whether the tests that reach a change notice it."""
    tests, source = known.of(change), change.made()
    told = {**asdict(change), "change": "" if source is None else _difference(change, source), "tests": len(tests)}
    if source is None or not tests:
        return {**told, "noticed": False}
    limit = max(_LEAST_S, _TIMES * sum(known.taken[test] for test in tests))
    ended = in_a_child(lambda: tests_of(change, source, tests), limit)
    return {**told, "noticed": ended != 0, "ended": ended}


def _difference(change: Change, source: str) -> str:
    before, after = (ROOT / change.path).read_text().splitlines(), source.splitlines()
    one, other = next(((a, b) for a, b in zip(before, after, strict=False) if a != b), ("", ""))
    return f"{one.strip()} → {other.strip()}"


def written(outcomes: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Write the table, with the reasons that stood in it; how many there were, and how many nobody noticed."""
    told, reasons = list(outcomes), dict[tuple[str, str], str]()
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            reasons = {(row["file"], row["change"]): row["reason"] for row in csv.DictReader(file)}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        table = csv.DictWriter(file, _COLUMNS, lineterminator="\n", restval="")
        table.writeheader()
        for path in sorted({one["path"] for one in told}):
            mine = [one for one in told if one["path"] == path]
            missed = [one for one in mine if not one["noticed"]]
            row = {"file": path, "changes": len(mine), "unnoticed": len(missed)}
            table.writerow({**row, "noticed": len(mine) - len(missed)})
            for one in sorted(missed, key=lambda one: int(one["line"])):
                reason = reasons.get((path, one["change"]), "")
                table.writerow({"file": path, "line": one["line"], "change": one["change"], "reason": reason})
    return len(told), sum(not one["noticed"] for one in told)


def main() -> None:
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("--count", type=int, default=400)
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--tests", nargs="*", help="files of tests; all by default")
    asked = given.parse_args()
    import onnxruntime  # noqa: F401
    import torch

    torch.set_num_threads(1)
    os.chdir(ROOT)
    git = ["git", "rev-parse", "--short=12", "HEAD"]
    folder = ROOT / "out" / "mutate" / subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    files = asked.tests or sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))
    known = reach(folder / "reached", [name for name in files if "test_faults" not in name])
    done = folder / "outcomes.jsonl"
    told = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    before = {Change(*(one[name] for name in ("path", "line", "operator", "occurrence"))) for one in told}
    chosen = drawn(asked.count, asked.seed)
    for i, change in enumerate(chosen):
        if change in before:
            continue
        one = outcome(change, known)
        told.append(one)
        with done.open("a") as file:
            file.write(json.dumps(one) + "\n")
        print(f"{i + 1} of {len(chosen)} {'noticed' if one['noticed'] else 'UNNOTICED'}: {change.path}:{change.line} "
              f"{one['change']}", flush=True)  # fmt: skip
    every = {Change(*(one[name] for name in ("path", "line", "operator", "occurrence"))): one for one in told}
    count, missed = written(every[change] for change in chosen)
    print(f"{missed} of {count} changes were noticed by no test ({missed / max(count, 1):.0%}): {RESULTS.name}")


if __name__ == "__main__":
    main()
