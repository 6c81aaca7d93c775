"""`lilliput diagnose`: where the compressed network loses, layer by layer, and what to try."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.exits import DONE, leave
from lilliput.cli.options import Data, Given, Inputs, Profile, RecipeFile, TargetName, TaskName


def diagnose_command(
    given: Given,
    inputs: Inputs = None,
    task: TaskName = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write it, as .html or .json.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where a compress has worked, or to go on from when cut off.")
    ] = None,
    recipe: RecipeFile = None,
    target: TargetName = "onnxruntime",
    profile: Profile = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime; default: all cores.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many samples to look at.")] = 16,
    worst: Annotated[int, typer.Option(min=0, help="How many layers to build alone and left out.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON, and nothing else.")] = False,
) -> None:
    """Say where the network that compress would give loses, worst layer first, why, and what to try.

    Every layer is encoded alone in the module, and the worst are built for the target, alone and left out.

    \b
      lilliput diagnose task.py
      lilliput diagnose task.py --recipe recipe.toml --folder out/ -o blame.html

    \b
    Exit codes:
      0  done
      2  bad input: the message says what, where, why and what to do
    """

    def run() -> int:
        from lilliput.cli import commands
        from lilliput.cli.load import Source

        source = Source(given, inputs, task, data)
        asked = commands.Options(source, folder or Path(), recipe, target, None, threads, None, profile, json)
        commands.diagnose(asked, out, folder, samples, worst)
        return DONE

    goes_on = "the same command goes on where it was"
    leave(run, f"with --folder {goes_on}" if folder is None else f"{goes_on} (folder {folder})")
