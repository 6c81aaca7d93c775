"""Files that travel inside a `.lil`: configurations, tokenizers, word lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lilliput.errors import FormatError
from lilliput.file.container import Part, Reader
from lilliput.file.names import ASSET

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


def check_name(name: Any, where: str) -> str:
    """A relative path with ``/`` between its parts, or an error: nothing that leads out of the folder it is put into.

    >>> check_name("tokenizer/vocab.txt", "net.lil")
    'tokenizer/vocab.txt'
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    odd = any(part in ("", ".", "..") or part.endswith((".", " ")) or part.startswith(" ") for part in parts)
    if odd or _FORBIDDEN.search(name) or len(name) > 1024:
        raise FormatError(f"a file called {str(name)[:80]!r}", where=where, next="use a plain relative path")
    return str(name)


def asset_parts(assets: Mapping[str, bytes]) -> tuple[dict[str, str], list[Part]]:
    """What the header lists, and the tensors that hold the files."""
    listed = {check_name(name, "assets"): f"{ASSET}{name}" for name in sorted(assets)}
    parts = [Part.of(held, np.frombuffer(assets[name], np.uint8)) for name, held in listed.items()]
    return listed, parts


def asset_names(reader: Reader) -> dict[str, str]:
    """The files inside, with the tensors that hold them."""
    listed = reader.header.get("assets", {})
    if not isinstance(listed, dict):
        raise FormatError("has no sound list of assets", where=reader.where)
    for name, held in listed.items():
        check_name(name, reader.where)
        if held != ASSET + name or reader.entry(held).dtype != "uint8":
            raise FormatError("an asset that no bytes hold", where=f"{reader.where}: {name}")
    return listed


def read_asset(reader: Reader, name: str) -> bytes:
    """The bytes of the file called `name` inside."""
    listed = asset_names(reader)
    if name not in listed:
        raise FormatError(f"holds no file {name!r}", where=reader.where, next=f"it holds {', '.join(listed) or 'none'}")
    return reader.read(listed[name]).tobytes()
