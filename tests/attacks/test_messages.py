"""What a file says of itself ends in messages: a line that a terminal can show, whatever the file holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import forge
import golden
import pytest

from lilliput.errors import LilliputError
from lilliput.file.container import Reader
from lilliput.file.graph import restored
from lilliput.file.inspect import inside
from lilliput.file.lil import read_into

LONGEST = 2600  # four parts of 600, and what joins them
TAKEN = forge.apart(golden.MODULE.read_bytes())
ESCAPES = "\x1b]0;title\x07\x1b[2J\x1b[31mall is well\r\n"  # what a terminal does when it is shown these
NAMES = {"escapes": ESCAPES, "long": "x" * 4000, "right to left": "\u202egnp.exe", "two lines": "a\nb"}


def header(change: Callable[[dict[str, Any]], Any]) -> Reader:
    index = TAKEN.index()
    change(index["header"])
    return Reader(forge.sealed(index, TAKEN.body))


def last(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header["edits"][-1]["edit"].update(value=name)


SAID: dict[str, Callable[[str], Any]] = {
    "a name": lambda text: Reader(forge.lone(b"\0ab", name=text)).read(text),
    "a name twice": lambda text: Reader(
        forge.sealed(forge.index(*[forge.entry(text, "uint8", (0,)) for _ in range(2)]))
    ),
    "a kind": lambda text: Reader(forge.sealed(forge.index(kind=text))),
    "a base": lambda text: Reader(forge.sealed(forge.index(base=text, references={"a": "b"}))),
    "an asset": lambda text: inside(forge.sealed(forge.index(assets={f"..{text}": "x"}))),
    "an alias": lambda text: read_into(header(lambda header: header["aliases"].update({text: "gain"})), golden.Net()),
    "a buffer": lambda text: read_into(header(lambda header: header["buffers"].append(text)), golden.Net()),
    "a value": lambda text: read_into(header(last(text)), golden.Net()),
    "a path": lambda text: read_into(header(lambda header: header["edits"][1]["edit"].update(path=text)), golden.Net()),
    "a place": lambda text: read_into(
        header(lambda header: header.update(attributes={":attribute::shift": ["conv", text]})), golden.Net()
    ),
    "why there is no graph": lambda text: restored(header(lambda header: header.update(graph=None, no_graph=text))),
    "an initializer": lambda text: restored(
        header(lambda header: header["graph"]["initializers"].update({text: {"tensor": "gain"}}))
    ),
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_message_is_a_line_that_can_be_shown(kind: str) -> None:
    for said, attack in SAID.items():
        with pytest.raises(LilliputError) as caught:
            attack(NAMES[kind])
        text = str(caught.value)
        assert len(text) < LONGEST and text.isprintable(), said
