"""Render every figure of README.md and docs/ from the CSVs that hold it; `--check` tells where they differ.

What a mark looks like is in scripts/marks/pages.py and CONTRIBUTING.md.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from marks.csvs import Results, Wrong
from marks.pages import places, rendered
from marks.prose import Exceptions, unsourced

ROOT = Path(__file__).resolve().parent.parent
EXCEPTIONS = Path(__file__).parent / "marks" / "exceptions.toml"


@dataclass(frozen=True)
class Found:
    """What came of one page: its text as it should be, and what is wrong with it as it is."""

    text: str
    drifted: list[str]  # figures that are not what their CSV says: rendering mends them
    wrong: list[str]  # marks that cannot be rendered, and figures that have none


def look(name: str, text: str, results: Results, exceptions: Exceptions) -> Found:
    """Render a page, and say where it differs; each line begins with file:line."""
    covered, drifted, wrong = places(text, results), [], []

    def at(start: int) -> str:
        return f"{name}:{text.count(chr(10), 0, start) + 1}"

    for place in covered:
        if isinstance(place.rendered, Wrong):
            wrong.append(f"{at(place.start)}: {place.rendered}")
        elif place.drifted:
            says = " ".join(place.says.split())
            drifted.append(f"{at(place.start)}: the text says {says!r}, the CSV {place.rendered!r}")
    wrong += [f"{at(one.start)}: {one.text}" for one in unsourced(name, text, covered, exceptions)]
    return Found(rendered(text, covered), drifted, wrong)


def main() -> int:
    """Render the pages named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description="Render the figures of the documentation from benchmarks/results/.")
    parser.add_argument("pages", nargs="*", type=Path, help="default: README.md and docs/**/*.md")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where text and CSV differ")
    asked = parser.parse_args()
    results, exceptions = Results(ROOT / "benchmarks" / "results"), Exceptions.read(EXCEPTIONS)
    failures = []
    for page in asked.pages or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        name = page.resolve().relative_to(ROOT).as_posix()
        text = page.read_text(encoding="utf-8")
        found = look(name, text, results, exceptions)
        failures += [*(found.drifted if asked.check else ()), *found.wrong]
        if not asked.check and found.text != text:
            page.write_text(found.text, encoding="utf-8")
            print(f"{name}: {len(found.drifted)} rendered anew")
    for why, names in results.doubtful.items():
        print(f"to be measured again, {why}: {', '.join(names)}")
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures and asked.check:
        print("`make figures` renders what differs", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
