"""`lilliput diagnose`: where the compressed network loses, layer by layer, and what to try."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.exits import DONE, leave


def diagnose_command(
    task: Annotated[
        Path,
        typer.Argument(
            metavar="TASK.py|NET.onnx",
            help="A file that defines `task`, an lp.Task or a function that returns one; or a network.",
        ),
    ],
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="For NET.onnx: arrays by the names of its inputs, samples first."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write it, as .html or .json.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where a compress has worked, or to go on from when cut off.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="What to do, as TOML; without it, the target's own default.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="The runtime that will run the result; onnx: a file for one that is not here.")
    ] = "onnxruntime",
    profile: Annotated[
        str | None, typer.Option(help="Whose rules an ONNX file is to keep, as lilliput check knows them.")
    ] = None,
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

        asked = commands.Options(task, inputs, folder or Path(), recipe, target, None, threads, None, profile, json)
        commands.diagnose(asked, out, folder, samples, worst)
        return DONE

    goes_on = "the same command goes on where it was"
    leave(run, f"with --folder {goes_on}" if folder is None else f"{goes_on} (folder {folder})")
