"""`lilliput check`: which runtimes take a file."""

from __future__ import annotations

import json as json_
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.exits import DONE, NOT_MET, leave

_FIRST = 5  # breaches that are printed


def check_command(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="An .onnx file, or a .lil with a graph inside.")],
    wanted: Annotated[
        str | None, typer.Option("--for", help="The one profile that it must keep to; default: tell of all.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, and nothing else.")] = False,
) -> None:
    """Say which runtimes take a file, and run its integers as integers: ort-cpu, ort-web, openvino, tensorrt, xnnpack.

    Where one does not, the first nodes that break a rule of it are told.

    \b
      lilliput check out/net.onnx
      lilliput check out/net.lil --for tensorrt

    \b
    Exit codes:
      0  done; with --for: it is taken
      2  bad input: the message says what, where, why and what to do
      3  with --for: it is not taken
    """

    def run() -> int:
        from lilliput.exporters.profiles import PROFILES, check
        from lilliput.file.container import Reader
        from lilliput.file.graph import restore

        names = [] if wanted is None else [wanted]
        with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
            inside = path.suffix == ".lil"
            built = restore(Reader(path), Path(folder) / "net.onnx") if inside else path
            found = check(built, *names)
        if json:
            print(json_.dumps({name: [vars(one) for one in broken] for name, broken in found.items()}, indent=1))
        for name, broken in [] if json else found.items():
            source = "" if PROFILES[name].ran else " (by its documentation)"
            verdict = f"does not take it: {len(broken)} broken rules" if broken else "takes it"
            print(f"{name}{source}: {verdict}")
            print(*(f"  {one}\n" for one in broken[:_FIRST]), sep="", end="")
        return NOT_MET if wanted is not None and any(found.values()) else DONE

    leave(run, "nothing was written")
