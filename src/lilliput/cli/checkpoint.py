"""`lilliput pack` and `lilliput unpack`: a checkpoint in safetensors as one file, and back; without importing torch."""

from __future__ import annotations

import json as json_
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lilliput.cli.exits import DONE, leave

if TYPE_CHECKING:
    from lilliput.file.checkpoint import Packed, Unpacked

_MB = 10**6


def pack(
    folder: Path, out: Path, coder: Literal["dense", "fast"] = "dense", without: Sequence[str] = (), json: bool = False
) -> Packed:
    """Pack a checkpoint and print what came of it."""
    from lilliput.cli.progress import shown
    from lilliput.file import checkpoint

    with shown() as progress:
        packed = checkpoint.pack(folder, out, coder, in_megabytes(progress, "packing, MB"), without)
    ratio = packed.bytes_after / packed.bytes_before
    _print(packed, packed.path, {"left_out": list(packed.left_out), "coder": packed.coder}, ratio, json)
    return packed


def unpack(path: Path, folder: Path, json: bool = False) -> Unpacked:
    """Unpack a checkpoint and print what came of it."""
    from lilliput.cli.progress import shown
    from lilliput.file import checkpoint

    with shown() as progress:
        unpacked = checkpoint.unpack(path, folder, in_megabytes(progress, "unpacking, MB"))
    ratio = unpacked.bytes_before / max(1, unpacked.bytes_after)
    _print(unpacked, unpacked.folder, {"left_out": []}, ratio, json)
    return unpacked


def in_megabytes(progress: Callable[[str, int, int], None], stage: str) -> Callable[[int, int], None]:
    """A stage told in bytes as one that is shown in MB, once for each; the last only when all is done."""
    shown = -1

    def told(done: int, total: int) -> None:
        nonlocal shown
        whole = max(1, total // _MB)
        now = whole if done == total else min(done // _MB, whole - 1)
        if now != shown:
            progress(stage, now, whole)
        shown = now

    return told


def _print(done: Packed | Unpacked, place: Path, besides: Mapping[str, Any], ratio: float, json: bool) -> None:
    """`ratio`: bytes of the `.lil` for each of the files, on the way in and on the way out."""
    if json:
        plain = {
            "path": str(place),
            "files": list(done.files),
            **besides,
            "bytes_before": done.bytes_before,
            "bytes_after": done.bytes_after,
            "ratio": ratio,
        }
        print(json_.dumps(plain, indent=1))
        return
    number = f"{len(done.files)} file{'s' * (len(done.files) != 1)}"
    print(f"{place}: {number}, {_size(done.bytes_before)} → {_size(done.bytes_after)} ({ratio:.1%} packed)")
    for name in besides["left_out"]:
        print(f"left out: {name}")


def _size(count: int) -> str:
    return f"{count:,} bytes" if count < 10_000 else f"{count / _MB:,.2f} MB"


def pack_command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder with a checkpoint, or a single .safetensors file.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.lil", help="The file to write.")],
    coder: Annotated[
        Literal["dense", "fast"],
        typer.Option(help="dense is smallest; fast unpacks in a fraction of the time and is a little larger."),
    ] = "dense",
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave out files or folders so called, as '*.bin'; may be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Pack a checkpoint in safetensors into one smaller file, without loss.

    Weights and all other files of FOLDER come back byte for byte from `lilliput unpack`. Memory stays small however
    large they are. What is left out is said: what --without names, and folders called .git. Pickled weights (.bin,
    .pt, …) are refused, for they can run code.

    \b
      lilliput pack all-MiniLM-L6-v2 -o minilm.lil
      lilliput pack all-MiniLM-L6-v2 -o minilm.lil --without '*.bin' --without onnx

    \b
    Exit codes:
      0    done
      2    bad input: the message says what, where, why and what to do
      130  stopped; nothing was written
    """

    def run() -> int:
        pack(folder, out, coder, without or (), json)
        return DONE

    leave(run, "nothing was written")


def unpack_command(
    path: Annotated[Path, typer.Argument(metavar="FILE.lil", help="What `lilliput pack` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder for the files; may exist.")],
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Unpack a checkpoint: the files that `lilliput pack` was given, byte for byte.

    Every file is checked before any appears. A file of the same name but other content in FOLDER is an error.

    \b
      lilliput unpack minilm.lil -o all-MiniLM-L6-v2

    \b
    Exit codes:
      0    done
      2    bad input: the message says what, where, why and what to do
      130  stopped; run again for all files
    """

    def run() -> int:
        unpack(path, out, json)
        return DONE

    leave(run, "run again for all files")
