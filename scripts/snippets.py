"""Run every Python block of README.md and docs/, so that no page shows code that does not work.

The blocks of one page are one program: they run in order and share their names, in an empty temporary folder.
A block that cannot run says so, and why, on its opening line:

    ```python no-run: needs a data set of your own

A failure is reported with the page's own file and line.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300

_FENCE = re.compile(r"^(?P<indent>[ ]*)(?P<fence>`{3,}|~{3,})[ ]*(?P<info>[^`]*)$")


class Mistake(Exception):
    """A page that cannot be read as intended; the text begins with file:line."""


@dataclass(frozen=True)
class Block:
    """One fenced block of Python."""

    line: int  # of the first line of code, counted from 1
    code: list[str]
    skipped: str | None  # why it is not run


def blocks(text: str, page: str) -> list[Block]:
    """The Python blocks of a page, in order."""
    found: list[Block] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        at += 1
        if opening is None:
            continue
        first, fence, indent = at, opening["fence"], len(opening["indent"])
        closing = re.compile(rf"^[ ]*{re.escape(fence[0])}{{{len(fence)},}}[ ]*$")
        while at < len(lines) and not closing.match(lines[at]):
            at += 1
        if at == len(lines):
            raise Mistake(f"{page}:{first}: this fence is never closed")
        language, _, rest = opening["info"].strip().partition(" ")
        if language.lower() in {"python", "py", "python3"}:
            code = [line[min(indent, len(line) - len(line.lstrip(" "))) :] for line in lines[first:at]]
            found.append(Block(first + 1, code, _reason(rest.strip(), f"{page}:{first}")))
        at += 1
    return found


def _reason(info: str, where: str) -> str | None:
    if not info:
        return None
    marked, _, reason = info.partition("no-run")
    reason = reason.lstrip(" :").strip()
    if marked or not reason:
        raise Mistake(f"{where}: after `python` only `no-run: the reason` may stand, not {info!r}")
    return reason


def program(found: list[Block]) -> str:
    """The blocks to run as one program in which each line has the number that it has on the page."""
    lines: list[str] = []
    for block in found:
        if block.skipped is None:
            lines += [""] * (block.line - 1 - len(lines)) + block.code
    return "\n".join(lines) + "\n"


def run(page: Path, seconds: float) -> str | None:
    """Run one page and print one line about it; the answer is what went wrong, or None."""
    name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else str(page)
    try:
        found = blocks(page.read_text(encoding="utf-8"), name)
    except Mistake as mistake:
        return str(mistake)
    to_run = [block for block in found if block.skipped is None]
    start = time.monotonic()
    if to_run:
        with tempfile.TemporaryDirectory(prefix="snippets-") as folder:
            script = Path(folder) / f"{page.stem}_blocks.py"
            script.write_text(program(found), encoding="utf-8")
            try:
                done = subprocess.run(
                    [sys.executable, str(script)],
                    cwd=folder,
                    env={**os.environ, "PYTHONIOENCODING": "utf-8"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                    encoding="utf-8",
                    errors="replace",
                )
            except subprocess.TimeoutExpired:
                return f"{name}:{to_run[0].line}: the blocks of this page ran past {seconds:g} s"
            if done.returncode:
                return _failure(name, str(script), done.returncode, done.stdout, to_run[0].line)
    skipped = [block for block in found if block.skipped is not None]
    print(f"{name}: {len(to_run)} run, {len(skipped)} skipped, {time.monotonic() - start:.1f} s", flush=True)
    for block in skipped:
        print(f"  {name}:{block.line - 1}: not run: {block.skipped}", flush=True)
    return None


def _failure(name: str, script: str, status: int, output: str, first: int) -> str:
    places = re.findall(rf'File "{re.escape(script)}", line (\d+)', output)
    line = places[-1] if places else first
    shown = output.replace(script, name).rstrip()
    return f"{name}:{line}: a block failed (exit status {status})\n{shown}"


def main() -> int:
    """Run the pages named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description="Run the Python blocks of the documentation.")
    parser.add_argument("pages", nargs="*", type=Path, help="default: README.md and docs/**/*.md")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit for each page (default %(default)s)")
    asked = parser.parse_args()
    pages = [page.resolve() for page in asked.pages] or [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    failures = [failure for page in pages if (failure := run(page, asked.seconds)) is not None]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
