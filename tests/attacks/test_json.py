"""The index as an attacker writes it: JSON with everything JSON parsers were ever broken by, right on the outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import golden
import pytest
import zstandard

import lilliput
from lilliput.errors import LilliputError
from lilliput.file.container import Reader
from lilliput.file.inspect import inside
from lilliput.file.second import Second

WHOLE = "is not a whole Lilliput file"
ENTRY = "entry 0 of the index is not sound"
CHUNK = b"\0abc"


def header(text: str) -> bytes:
    """A file with this JSON as a field of its header."""
    index = forge.written(forge.index()).decode().replace('"data":"null"', f'"data":{text}')
    return forge.sealed(index.encode(errors="surrogatepass"))


def field(**more: Any) -> bytes:
    """A file of one tensor, described so."""
    return forge.sealed(forge.index({**forge.entry("x", "uint8", (3,), CHUNK), **more}), CHUNK)


def top(**more: Any) -> bytes:
    return forge.sealed({**forge.index(), **more})


DEEP = 100_000
TEXTS = {
    "lists without end": (header("[" * DEEP + "]" * DEEP), WHOLE),
    "objects without end": (header('{"a":' * DEEP + "1" + "}" * DEEP), WHOLE),
    "lists that never close": (header("[" * DEEP), WHOLE),
    "lists just deep enough to be parsed": (header("[" * 900 + "]" * 900), "structures within structures"),
    "objects just deep enough": (header('{"a":' * 500 + "1" + "}" * 500), "structures within structures"),
    "NaN": (header("NaN"), WHOLE),
    "infinity": (header("-Infinity"), WHOLE),
    "infinity by a large number": (header("1e999"), WHOLE),
    "a number of 100,000 digits": (header("9" * 100_000), WHOLE),
    "a key twice": (header('{"a":1,"a":2}'), WHOLE),
    "a key twice, written differently": (header('{"a":1,"\\u0061":2}'), WHOLE),
    "half a character": (header('"\\ud800"'), WHOLE),
    "half a character, as it is": (header('"\ud800"'), WHOLE),
    "a control character": (header('"\x01"'), WHOLE),
    "a comment": (header("1 /* one */"), WHOLE),
    "a comma too many": (header("[1,]"), WHOLE),
    "text after it": (forge.sealed(forge.written(forge.index()) + b" {}"), WHOLE),
    "a zero after it": (forge.sealed(forge.written(forge.index()) + b"\0"), WHOLE),
    "a byte order mark": (forge.sealed(b"\xef\xbb\xbf" + forge.written(forge.index())), WHOLE),
    "UTF-16": (forge.sealed(forge.written(forge.index()).decode().encode("utf-16")), WHOLE),
    "UTF-32": (forge.sealed(forge.written(forge.index()).decode().encode("utf-32-le")), WHOLE),
    "Latin-1": (forge.sealed(forge.written(forge.index()).replace(b"null", b"\xe9")), WHOLE),
    "overlong UTF-8": (forge.sealed(forge.written(forge.index()).replace(b"null", b"\xc0\xaf")), WHOLE),
    "nothing": (forge.sealed(b" "), WHOLE),
    "null": (forge.sealed(b"null"), WHOLE),
    "a list": (forge.sealed(b"[]"), WHOLE),
    "a string": (forge.sealed(b'"header"'), WHOLE),
    "no header": (forge.sealed({"tensors": [], "digest": "0" * 64}), WHOLE),
    "another field": (top(more=1), WHOLE),
    "a header that is a list": (top(header=[]), WHOLE),
    "a header without kind": (top(header={}), "kind"),
    "a header of an unknown kind": (top(header={"kind": "program"}), "kind"),
    "a kind that is a list": (top(header={"kind": []}), "kind"),
    "tensors that are an object": (top(tensors={}), WHOLE),
    "tensors that are a string": (top(tensors="x"), WHOLE),
    "tensors that are a number": (top(tensors=1), WHOLE),
    "a digest that is none": (top(digest=0), WHOLE),
    "a digest in capitals": (top(digest="A" * 64), WHOLE),
    "a digest with a line's end": (top(digest="0" * 64 + "\n"), WHOLE),
    "an entry that is null": (top(tensors=[None]), ENTRY),
    "an entry that is a list": (top(tensors=[[]]), ENTRY),
    "an entry that is a list of lists": (top(tensors=[[[]]]), ENTRY),
    "an entry that is a string": (top(tensors=[""]), ENTRY),
    "an entry that is true": (top(tensors=[True]), ENTRY),
    "an entry without fields": (top(tensors=[{}]), ENTRY),
    "an entry with another field": (field(offset=16), ENTRY),
    "an entry with a field of Python": (field(__class__="x"), ENTRY),
}

NUMBERS: dict[str, Any] = {
    **{"-1": -1, "-0.0": -0.0, "1.0": 1.0, "1.5": 1.5, "1e300": 1e300, "true": True, "null": None, "'3'": "3"},
    **{"[]": [], "{}": {}, "2^31": 2**31, "2^48 + 1": 2**48 + 1, "2^63": 2**63, "2^64": 2**64, "10^4000": 10**4000},
}
for name, number in NUMBERS.items():
    TEXTS[f"shape [{name}]"] = (field(shape=[number]), ENTRY)
    if name != "[]":  # a number has this shape
        TEXTS[f"shape {name}"] = (field(shape=number), ENTRY)
    TEXTS[f"chunks {name}"] = (field(chunks=number), ENTRY)
    TEXTS[f"bits {name}"] = (field(bits=number), ENTRY)
    TEXTS[f"name {name}"] = (field(name=number if number != "3" else "x" * 4097), ENTRY)
    TEXTS[f"dtype {name}"] = (field(dtype=number), ENTRY)
    TEXTS[f"checks {name}"] = (field(checks=number), ENTRY)
    if name != "true":
        TEXTS[f"chunks [{name}]"] = (field(chunks=[number]), f"{ENTRY}|do not fill the file")
SOUND = {  # near misses, so that the others are refused for what they say
    "plain": field(),
    "31 lists": header("[" * 31 + "]" * 31),
    "a pair of halves": header('"\\ud83d\\ude00"'),
    "a backslash and ud800": header('"\\\\ud800"'),
    "a large number": header("1e300"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_refused(kind: str, refused: Any) -> None:
    data, hint = TEXTS[kind]
    refused(hint, Reader, data)
    refused(hint, inside, data)
    with pytest.raises(LilliputError):
        Second(data)


@pytest.mark.parametrize("kind", SOUND)
def test_sound(kind: str) -> None:
    for name in Reader(SOUND[kind]).entries:
        Reader(SOUND[kind]).read(name)


def frame(*texts: bytes, **how: Any) -> bytes:
    return b"".join(zstandard.ZstdCompressor(**how).compress(text) for text in texts)


TEXT = forge.written(forge.index())
FRAMES = {
    "no frame": TEXT,
    "nothing": b"",
    "an empty frame": frame(b""),
    "a frame without its size": frame(TEXT, write_content_size=False),
    "two frames": frame(TEXT, b""),
    "half in each of two frames": frame(TEXT[:20], TEXT[20:]),
    "a frame to be skipped": b"\x50\x2a\x4d\x18\x04\0\0\0evil" + frame(TEXT),
    "a frame to be skipped after it": frame(TEXT) + b"\x50\x2a\x4d\x18\x04\0\0\0evil",
    "a frame cut short": frame(TEXT)[:-1],
    "a frame with a wrong checksum": frame(TEXT, write_checksum=True)[:-1] + b"\0",
    "gzip": b"\x1f\x8b\x08" + bytes(40),
    "a dictionary that is not there": zstandard.ZstdCompressor(
        dict_data=zstandard.ZstdCompressionDict(TEXT * 20, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    ).compress(TEXT),
}


@pytest.mark.parametrize("kind", [kind for kind in FRAMES if not kind.startswith("a dictionary")])
def test_a_frame_that_is_not_one_whole_frame_is_refused(kind: str, refused: Any) -> None:
    refused(WHOLE, Reader, forge.around(FRAMES[kind]))


def index_bomb(item: bytes, size: int = (1 << 25) - 200) -> bytes:
    """An index of 32 MB in a file of some kilobytes, and many times that as objects."""
    items = b",".join([item] * (size // (len(item) + 1)))
    return forge.sealed(
        b'{"header":{"kind":"answer","data":[' + items + b']},"tensors":[],"digest":"' + b"0" * 64 + b'"}'
    )


BOMBS = {
    "lists": index_bomb(b"[]"),
    "objects": index_bomb(b"{}"),
    "strings": index_bomb(b'"\\u0100\\u0101"'),
    "numbers": index_bomb(b"1e9"),
    "a thousandfold, as large as is let through": index_bomb(b"[]", 1 << 20),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bombs")


def opened(data: bytes) -> Callable[[], Any]:
    return lambda: Reader(data)


CAPPED: dict[str, Callable[[], Any]] = {
    **{f"{name} many": opened(data) for name, data in BOMBS.items() if not name.startswith("a thousand")},
    "as many as may be": lambda: (Reader(BOMBS["a thousandfold, as large as is let through"]), lilliput.open("none"))[
        1
    ],
}


@pytest.mark.parametrize("name", ["lists", "objects", "strings", "numbers"])
def test_an_index_takes_no_more_memory_than_its_file_pays_for(name: str, capped: Any) -> None:
    assert len(BOMBS[name]) < 10_000
    capped(f"{name} many", "an index of")


def test_the_largest_index_of_a_small_file_takes_little_memory(capped: Any) -> None:
    assert len(BOMBS["a thousandfold, as large as is let through"]) < 1000
    capped("as many as may be", "cannot be read")  # of the file that is opened after it


def test_the_golden_file_is_none_of_these() -> None:
    assert Reader(golden.MODULE).header["kind"] == "module"
