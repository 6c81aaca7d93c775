"""`lilliput clean`: what a run kept to go on with is removed, and what it made stays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.exits import DONE, leave


def clean_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a run: what --out named.")],
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also of a run that was cut off: it then begins anew.")
    ] = False,
) -> None:
    """Remove what a run has remembered so as to go on, or to be run again soon: answers, and files it built on the way.

    What it made stays: net.lil, the file for the target, the report.

    \b
      lilliput clean out

    \b
    Exit codes:
      0  done
      2  bad input: the message says what, where, why and what to do
    """

    def run() -> int:
        from lilliput.engine.resume import clean
        from lilliput.report.figures import size

        freed = clean(folder, unfinished=unfinished)
        print(f"{size(freed)} removed from {folder / 'work'}" if freed else f"{folder} holds nothing to remove")
        return DONE

    leave(run, f"run it again (folder {folder})")
