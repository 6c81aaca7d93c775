"""A container whose header is told last: parts are taken one by one, and the file is that of a header told first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lilliput.errors import InputError
from lilliput.file.container import Part, Reader, write

ARRAYS = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.arange(5, dtype=np.int64)}


def test_a_header_that_is_told_last(tmp_path: Path) -> None:
    told: dict[str, Any] = {"kind": "module"}
    events: list[str] = []

    def parts() -> Iterator[Part]:
        for name, x in ARRAYS.items():
            events.append(f"asked for {name}")
            held = Part.of(name, x)
            yield Part(name, held.dtype, held.shape, lambda a, b, held=held: events.append("read") or held.read(a, b))  # type: ignore[misc,func-returns-value]
        told["seen"] = list(ARRAYS)

    written = write(tmp_path / "one", lambda: told, parts())
    assert events == ["asked for a", "read", "asked for b", "read"]
    write(tmp_path / "other", {"kind": "module", "seen": ["a", "b"]}, [Part.of(*item) for item in ARRAYS.items()])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    reader = Reader(tmp_path / "one")
    assert reader.header["seen"] == ["a", "b"] and written.bytes == reader.size
    for name, x in ARRAYS.items():
        np.testing.assert_array_equal(reader.read(name), x)


def test_a_part_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def parts() -> Iterator[Part]:
        yield Part.of("a", ARRAYS["a"])
        raise InputError("no more")

    with pytest.raises(InputError):
        write(tmp_path / "one", lambda: {"kind": "module"}, parts())
    assert list(tmp_path.iterdir()) == []
