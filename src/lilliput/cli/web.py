"""`lilliput web`: a page that runs a network in a browser."""

from __future__ import annotations

import contextlib
import json as json_
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.exits import DONE, leave
from lilliput.errors import InputError, reason

_BUILT = "net.onnx"  # what lilliput compress leaves in its folder


def web_command(
    source: Annotated[
        Path, typer.Argument(metavar="OUT", help="What lilliput compress wrote: its folder, or a .onnx or .lil file.")
    ],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Where the page goes; default: web/ beside the file.")
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The npm package onnxruntime-web; default: where Node.js finds it from here."
        ),
    ] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Get that package from npm for this once.")] = False,
    name: Annotated[str | None, typer.Option(help="The page's title; default: the network's file.")] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE.txt", help="The names of the classes, one a line, in their order.")
    ] = None,
    vocab: Annotated[
        Path | None,
        typer.Option(metavar="vocab.txt", help="BERT's pieces of words, one a line: the page takes a text."),
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width of a picture, in pixels.")] = None,
    mean: Annotated[
        str | None, typer.Option(help='Of the pixels, which go from 0 to 1: "0.485,0.456,0.406", or one number.')
    ] = None,
    std: Annotated[str | None, typer.Option(help="What they are divided by, after that.")] = None,
    crop: Annotated[float | None, typer.Option(help="Of the shorter side, the part that is kept.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON, and nothing else.")] = False,
) -> None:
    """Write a page that runs a network in a browser, and measures there what an answer takes.

    The page asks for a picture, a text or numbers, by what the network takes. All it needs lies in its folder: open
    index.html, from a disk or from any server. What runs the network is onnxruntime-web, which npm has.

    \b
      npm install onnxruntime-web
      lilliput compress task.py --target web -o out
      lilliput web out --labels names.txt --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

    \b
    Exit codes:
      0  done
      2  bad input: the message says what, where, why and what to do
    """

    def run() -> int:
        from lilliput.external import bytes_of
        from lilliput.web.package import fetched
        from lilliput.web.page import save_page

        with contextlib.ExitStack() as held:
            network, beside = held.enter_context(_network(source))
            found = runtime
            if fetch:
                found = fetched(Path(held.enter_context(tempfile.TemporaryDirectory(prefix="lilliput-")))).folder
            index = save_page(
                to or beside / "web",
                network,
                runtime=found,
                name=name or _title(source),
                labels=_lines(labels, "--labels"),
                vocabulary=_lines(vocab, "--vocab"),
                size=size,
                mean=_numbers(mean, "--mean"),
                std=_numbers(std, "--std"),
                crop=crop,
            )
            weighs = bytes_of(network)
        whole = sum(path.stat().st_size for path in index.parent.glob("*") if path.suffix in (".js", ".html"))
        told = {"page": str(index), "network_bytes": weighs, "page_bytes": whole}
        print(json_.dumps(told, indent=1) if json else _told(told))
        return DONE

    leave(run, "what was written so far stays; run it again")


def _told(told: dict[str, object]) -> str:
    return f"{told['page']}: {told['page_bytes']:,} bytes with all it needs; the network is {told['network_bytes']:,}"


def _title(source: Path) -> str:
    """What the report beside the network calls it, or else the name of its file."""
    report = (source if source.is_dir() else source.parent) / "report.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json_.loads(report.read_text(encoding="utf-8"))["name"])
    return source.resolve().stem


def _lines(path: Path | None, option: str) -> list[str] | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            "cannot be read", where=f"{option} {path}", why=reason(error), next="give a text file"
        ) from None


def _numbers(given: str | None, option: str) -> list[float] | None:
    if given is None:
        return None
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise InputError(
            f"is {given!r}", where=option, next='give numbers with commas between: "0.5,0.5,0.5"'
        ) from None


@contextlib.contextmanager
def _network(source: Path) -> Iterator[tuple[Path, Path]]:
    """The ONNX file that is meant, and the folder beside which the page goes."""
    from lilliput.file.container import Reader
    from lilliput.file.graph import restore

    if not source.exists():
        raise InputError("is not there", where=str(source), next="give the folder that lilliput compress wrote")
    if source.is_file():
        if source.suffix != ".lil":
            yield source, source.parent
            return
        with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
            yield restore(Reader(source), Path(folder) / _BUILT), source.parent
        return
    if (source / _BUILT).is_file():
        yield source / _BUILT, source
        return
    raise InputError(f"has no {_BUILT}", where=str(source), next="compress with --target web, or give an .onnx file")
