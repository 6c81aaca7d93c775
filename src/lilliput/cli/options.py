"""Options that several commands have: what is to be compressed, how, and for what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Given = Annotated[
    Path,
    typer.Argument(
        metavar="TASK.py|NET.onnx|FOLDER",
        help="A file that defines `task`, an lp.Task or a function that returns one; a network; a folder of one.",
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="For NET.onnx: arrays by the names of its inputs, samples first."),
]
TaskName = Annotated[
    str | None, typer.Option("--task", metavar="NAME", help="For FOLDER: what it does, as text-classification.")
]
Data = Annotated[
    Path | None,
    typer.Option(metavar="FILE|FOLDER", help="For FOLDER: texts as .csv, .jsonl or .txt; images or sounds."),
]
RecipeFile = Annotated[Path | None, typer.Option(help="What to do, as TOML; without it, the target's own default.")]
TargetName = Annotated[
    str,
    typer.Option(help="The runtime that will run the result; web: a browser; onnx: a file for one that is not here."),
]
Profile = Annotated[str | None, typer.Option(help="Whose rules an ONNX file is to keep, as lilliput check knows them.")]
