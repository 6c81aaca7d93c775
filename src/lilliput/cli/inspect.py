"""`lilliput inspect` and `lilliput verify`: what is inside a file, and whether it is whole; without importing torch."""

from __future__ import annotations

import json as json_
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lilliput.cli.exits import DONE, leave

_BASE = "The file that it was made from, if any."
_WIDE = 160  # columns where stdout is no terminal


def inspect_command(
    path: Annotated[Path, typer.Argument(metavar="FILE.lil", help="A file that lilliput wrote.")],
    base: Annotated[
        Path | None, typer.Option(metavar="FILE.lil", help="The file that it was made from, if any.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, and nothing else.")] = False,
) -> None:
    """Say what is inside a file: tensors, their encodings, bits per weight, edits, where it comes from.

    The sizes add up to the file. Only the index is read, and nothing of it is run.

    \b
      lilliput inspect out/net.lil
      lilliput inspect out/net.lil --json | jq '.sizes'
    """

    def run() -> int:
        from lilliput.file.container import Reader
        from lilliput.file.inspect import inside

        found = inside(path, None if base is None else Reader(base))
        print(json_.dumps(found, indent=1)) if json else _show(found)
        return DONE

    leave(run, "nothing was written")


def verify_command(
    path: Annotated[Path, typer.Argument(metavar="FILE.lil", help="A file that lilliput wrote.")],
    base: Annotated[
        Path | None, typer.Option(metavar="FILE.lil", help="The file that it was made from, if any.")
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="The second decoder reads every chunk, of large files too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was checked as JSON, and nothing else.")] = False,
) -> None:
    """Check that a file is whole: every checksum, the digest, the graph inside, and all of it by a second decoder.

    \b
    Exit codes:
      0    whole
      2    not: the message says what is wrong, and where
      130  stopped
    """

    def run() -> int:
        from lilliput.cli.checkpoint import in_megabytes
        from lilliput.cli.progress import shown
        from lilliput.file.container import Reader
        from lilliput.file.inspect import verify

        given = None if base is None else Reader(base)
        with shown() as progress:
            told = verify(path, given, thorough=thorough, progress=in_megabytes(progress, "reading, MB"))
        if json:
            print(json_.dumps({"path": str(path), "whole": True, "checked": dict(told)}, indent=1))
        else:
            print(*(f"{what}: {found}" for what, found in told), f"{path} is whole", sep="\n")
        return DONE

    leave(run, "nothing was found until then")


def _show(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    told = f"{found['path']}: {found['kind']} {found['model']}".rstrip()
    console.print(
        f"{told}, {found['bytes']:,} bytes, format {found['version']}\ndigest {found['digest']}\n", soft_wrap=True
    )
    table = Table("tensor", "shape", "as", box=None)
    for title in ("bits", "bytes"):
        table.add_column(title, justify="right")
    for row in found["weights"]:
        bits = "" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.2f}"
        table.add_row(row["path"], "×".join(map(str, row["shape"])), row["encoding"], bits, f"{row['bytes']:,}")
    console.print(table)
    for line in _besides(found):
        console.print(line, soft_wrap=True)
    console.print("\nbytes", *(f"{count:>14,}  {what}" for what, count in _summed(found)), sep="\n")


_TOLD = (
    "SetTensor",
    "Replace",
    "LeaveOut",
    "Divide",
    "KeepChildren",
)  # of which `sizes` and encodings say nothing


def _besides(found: Mapping[str, Any]) -> list[str]:
    """What there is beside tensors, a line each."""
    lines = [f"the same tensor: {name} is {of}" for name, of in found["aliases"].items()]
    lines += [f"edit: {_edit(entry)}" for entry in found["edits"] if entry["edit"]["kind"] in _TOLD]
    lines += [f"buffers that are not persistent: {', '.join(found['buffers'])}"] if found["buffers"] else []
    lines += [f"attributes: {', '.join(found['attributes'])}"] if found["attributes"] else []
    lines += [f"file inside: {name}, {count:,} bytes" for name, count in found["assets"].items()]
    lines += [f"safetensors file: {name}" for name in found["files"]]
    if found["graph"]:
        graph = found["graph"]
        lines.append(
            f"graph: {graph['format']} for {graph['target']}, {graph['references']} of its tensors are the file's"
        )
    lines += [f"{key}: {json_.dumps(value)}" for key, value in found["provenance"].items()]
    return ["", *lines] if lines else []


def _edit(entry: Mapping[str, Any]) -> str:
    edit = entry["edit"]
    if edit["kind"] == "Replace":
        return f"{edit['path']} gives way to {edit.get('by', 'Identity')}"
    if edit["kind"] == "LeaveOut":
        return (
            f"{edit['path']} is left out: {'zeros stand' if edit.get('zeros') else 'what it is given stands'} in for it"
        )
    if edit["kind"] == "Divide":
        return f"{edit['path']} is divided into parts of {edit.get('outputs')} channels"
    if edit["kind"] == "KeepChildren":
        return f"{edit['container'] or 'the model'} keeps modules {edit.get('kept')} of {edit.get('count')}"
    return f"{edit['path']} was added"


def _summed(found: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(what, count) for what, count in found["sizes"].items() if count] + [("in all", found["bytes"])]


def export_command(
    path: Annotated[Path, typer.Argument(metavar="FILE.lil", help="A compressed network.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.onnx", help="The file to write.")],
) -> None:
    """Write the graph inside a file, with all its tensors, as the ONNX file that the runtime loads."""

    def run() -> int:
        from lilliput.external import files_of
        from lilliput.file.container import Reader
        from lilliput.file.graph import restore

        for written in files_of(restore(Reader(path), out)):
            print(f"{written}: {written.stat().st_size:,} bytes")
        return DONE

    leave(run, "nothing was written")
