"""Coverage-guided fuzzing of the `.lil` reader with atheris: `make bench NAME=fuzz ARGS='--seconds 3600 --jobs 2'`.

Each target is a process of its own that starts from the golden files and mutates what reached something new. Anything
but an error of ours ends it: another exception, ten seconds without an answer, more than 2 GB of memory. Such an input
is kept in `out/fuzz/` and printed, and the exit code is 1.

What is counted as coverage are the branches of Lilliput's own Python; NumPy, zstandard, constriction and protobuf are
run, but not looked into.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "attacks"), str(ROOT / "tests" / "golden")]

KEPT = Path("out") / "fuzz"
CODERS = ["lilliput.entropy", "lilliput.file.container"]
MODULES = [*CODERS, "lilliput.file", "lilliput.model", "lilliput.encodings", "lilliput.plain"]
SLOWEST_S, MOST_MB = 10, 2048
MOST_ELEMENTS = 4096  # of a chunk

One = Callable[[bytes], None]
Mutate = Callable[[bytes, int, int], bytes]


@dataclass(frozen=True)
class Target:
    """What is made of an input, where inputs start from, and what is instrumented."""

    what: str
    one: Callable[[], One]
    seeds: Callable[[], Iterable[bytes]]
    instrumented: list[str]
    longest: int  # bytes of an input
    mutate: Callable[[], Mutate] | None = None


def refused(call: Callable[[bytes], Any]) -> One:
    """`call`, where an error of ours is as good as an answer."""
    from lilliput.errors import LilliputError

    def one(data: bytes) -> None:
        with contextlib.suppress(LilliputError):
            call(data)

    return one


# Whole files, as they are


def files() -> One:
    from lilliput.file.container import Reader

    return refused(lambda data: Reader(data).check_digest())


def golden_files() -> Iterator[bytes]:
    import golden

    yield from (path.read_bytes() for path in golden.FILES)


# Chunks: a byte for the type, one for the bits, two for the number of elements, then what is stored


def described(data: bytes) -> tuple[bytes, str, int, int]:
    import golden

    dtype = golden.DTYPES[data[0] % len(golden.DTYPES)]
    bits = 1 + data[1] % 8 if dtype in ("uint8", "int8") else 1 if dtype == "bool" else 8
    return data[4:], dtype, bits, 1 + int.from_bytes(data[2:4], "little") % MOST_ELEMENTS


def chunks() -> One:
    from lilliput.entropy import decode

    def one(data: bytes) -> None:
        if len(data) > 4:
            stored, dtype, bits, count = described(data)
            x = decode(stored, dtype, bits, count)
            assert x.shape == (count,) and x.dtype.name == dtype

    return refused(one)


def both() -> One:
    """The two decoders, which share no code, give the same elements or both refuse."""
    from lilliput.entropy import decode
    from lilliput.errors import LilliputError
    from lilliput.file import second

    def read(call: Callable[[], bytes]) -> bytes | None:
        try:
            return call()
        except LilliputError:
            return None

    def one(data: bytes) -> None:
        if len(data) > 4:
            stored, dtype, bits, count = described(data)
            entry = second.Entry("x", dtype, (count,), bits, (len(stored),), b"")
            a = read(lambda: decode(stored, dtype, bits, count).tobytes())
            assert a == read(lambda: second._chunk(stored, entry, count))

    return one


def golden_chunks() -> Iterator[bytes]:
    import forge
    import golden

    for path in golden.FILES:
        taken = forge.apart(path.read_bytes())
        for entry in taken.index()["tensors"]:
            count = 1
            for n in entry["shape"]:
                count *= n
            if 0 < count <= MOST_ELEMENTS:
                head = bytes((golden.DTYPES.index(entry["dtype"]), entry.get("bits", 8) - 1))
                yield head + struct.pack("<H", count - 1) + taken.chunks[entry["name"]]


# Tensors: files of several, whose chunks the input gives; sizes and checksums are made right


def tensors() -> One:
    import forge
    import golden

    from lilliput.file.container import Reader

    def one(data: bytes) -> None:
        entries, body, at = [], b"", 0
        while at + 6 < len(data) and len(entries) < 16:
            kind, bits, axes, n, m, size = data[at : at + 6]
            dtype = golden.DTYPES[kind % len(golden.DTYPES)]
            packed = {"bits": 1 + bits % 9} if bits and dtype in ("uint8", "int8") else {}
            chunk = data[at + 6 : at + 6 + size]
            entries.append(
                forge.entry(f"x{len(entries)}", dtype, [n, m, 1][: axes % 4], *([chunk] if chunk else []), **packed)
            )
            body += chunk
            at += 6 + size
        reader = Reader(forge.sealed(forge.index(*entries), body))
        for name in reader.entries:
            reader.read(name)

    return refused(one)


def golden_tensors() -> Iterator[bytes]:
    import forge
    import golden

    for path in golden.FILES:
        taken, joined = forge.apart(path.read_bytes()), b""
        for entry in taken.index()["tensors"]:
            chunk, shape = taken.chunks[entry["name"]], entry["shape"]
            if 0 < len(chunk) < 256 and len(shape) < 3 and all(n < 256 for n in shape):
                n, m = (*shape, 1, 1)[:2]
                head = (golden.DTYPES.index(entry["dtype"]), entry.get("bits", 1) - 1, len(shape), n, m, len(chunk))
                yield bytes(head) + chunk
                joined += bytes(head) + chunk
        yield joined[:2000]


# The index as text, over the chunks of a golden file


def indexes() -> One:
    import forge
    import golden

    from lilliput.file.container import Reader

    body = forge.apart(golden.ANSWER.read_bytes()).body
    return refused(lambda data: Reader(forge.sealed(data, body)).check_digest())


def golden_indexes() -> Iterator[bytes]:
    import forge
    import golden

    yield forge.apart(golden.ANSWER.read_bytes()).text
    yield forge.written(forge.index())


# The header as text, of the golden module


def header_of(data: bytes) -> bytes:
    """A file with this header."""
    import forge

    before, after = INDEX
    return forge.sealed(before + data + after, BODY)


def edits() -> One:
    import golden
    import torch

    from lilliput.file.container import Reader
    from lilliput.file.lil import read_into

    torch.set_num_threads(1)
    _golden_header()
    return refused(lambda data: read_into(Reader(header_of(data)), golden.Net()))


def headers() -> One:
    from lilliput.file.container import Reader
    from lilliput.file.graph import restored
    from lilliput.file.inspect import inside

    _golden_header()
    tell, build = refused(lambda data: inside(header_of(data))), refused(lambda data: restored(Reader(header_of(data))))

    def one(data: bytes) -> None:
        tell(data)
        build(data)

    return one


INDEX: tuple[bytes, bytes] = (b"", b"")
BODY = b""


def _golden_header() -> bytes:
    """The header of the golden module; what lies around it is kept for `header_of`."""
    global INDEX, BODY
    import forge
    import golden

    taken = forge.apart(golden.MODULE.read_bytes())
    index = taken.index()
    header = forge.written(index["header"])
    rest = forge.written({"tensors": index["tensors"], "digest": index["digest"]})
    INDEX, BODY = (b'{"header":', b"," + rest[1:]), taken.body
    return header


def golden_headers() -> Iterator[bytes]:
    yield _golden_header()


def trees() -> Mutate:
    """Three times of four a change of the JSON that leaves it JSON, else one of bytes."""
    import atheris
    import mutations

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.25:
            return atheris.Mutate(data, most)  # type: ignore[no-any-return]
        try:
            tree = json.loads(data)
            ways = list(mutations.places(tree))
            mutations.tree_changed(rng, tree, rng.choice(ways), ways)
            return json.dumps(tree, separators=(",", ":")).encode()[:most]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return atheris.Mutate(data, most)  # type: ignore[no-any-return]

    return mutate


# The graph as protobuf, in the golden module


def graphs() -> One:
    import forge
    import golden

    from lilliput.file.container import Reader
    from lilliput.file.graph import restored

    taken = forge.apart(golden.MODULE.read_bytes())
    body = b"".join(chunk for name, chunk in taken.chunks.items() if name != ":graph")
    index = taken.index()
    others = [entry for entry in index["tensors"] if entry["name"] != ":graph"]

    def one(data: bytes) -> None:
        chunk = b"\0" + data
        index["tensors"] = [*others, forge.entry(":graph", "uint8", [len(data)], chunk)]
        restored(Reader(forge.sealed(index, body + chunk)))

    return refused(one)


def golden_graphs() -> Iterator[bytes]:
    import mutations

    yield mutations.PROTO


TARGETS = {
    "files": Target("bytes as a file: opened, all decoded", files, golden_files, CODERS, 8192),
    "chunks": Target("bytes as a chunk: decoded", chunks, golden_chunks, CODERS, 512),
    "both": Target("bytes as a chunk: two decoders agree", both, golden_chunks, [*CODERS, "lilliput.file"], 512),
    "tensors": Target("chunks in a file with right checksums", tensors, golden_tensors, CODERS, 2048),
    "indexes": Target("an index with right checksums", indexes, golden_indexes, CODERS, 16384, trees),
    "headers": Target("a header: told, and its graph rebuilt", headers, golden_headers, MODULES, 16384, trees),
    "edits": Target("a header: loaded into its module", edits, golden_headers, MODULES, 16384, trees),
    "graphs": Target("an ONNX graph: rebuilt", graphs, golden_graphs, MODULES, 16384),
}


# A target in a process of its own


def fuzz(name: str, arguments: list[str]) -> None:
    """Never comes back."""
    import atheris

    target = TARGETS[name]
    with atheris.instrument_imports(include=target.instrumented):
        one = target.one()
        for data in target.seeds():  # whatever it loads is loaded now, and no input waits for it
            one(data)
    more = {"custom_mutator": target.mutate()} if target.mutate else {}
    atheris.Setup([sys.argv[0], *arguments], one, **more)
    atheris.Fuzz()


def run(name: str, seconds: int, runs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Fuzz one target for so long; a row of the table."""
    corpus, artifacts = folder / name / "corpus", folder / name / "found"
    corpus.mkdir(parents=True)
    artifacts.mkdir()
    for i, data in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{i}").write_bytes(data)
    limits = [f"-max_total_time={seconds}"] + ([f"-runs={runs}"] if runs else [])
    options = [
        f"-max_len={TARGETS[name].longest}",
        f"-timeout={SLOWEST_S}",
        f"-rss_limit_mb={MOST_MB}",
        f"-seed={seed}",
    ]
    command = [
        sys.executable,
        __file__,
        "--worker",
        name,
        *limits,
        *options,
        f"-artifact_prefix={artifacts}/",
        str(corpus),
    ]
    began = time.perf_counter()
    told = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder)
    took = time.perf_counter() - began
    found = sorted(path for path in artifacts.iterdir() if not path.name.startswith("slow-unit"))
    if told.returncode or found:
        report(name, found, told.stderr)
    counts = re.findall(r"^#(\d+)\s+(\w+)\s+cov: (\d+)", told.stderr, re.MULTILINE)
    first = next((int(cov) for _, event, cov in counts if event == "INITED"), 0)
    last = int(counts[-1][2]) if counts else 0
    done = re.search(r"Done (\d+) runs in (\d+) second", told.stderr)
    inputs, spent = (
        (int(done[1]), max(1, int(done[2]))) if done else (int(counts[-1][0]) if counts else 0, max(1, took))
    )
    return {
        "target": name,
        "what": TARGETS[name].what,
        "inputs": inputs,
        "seconds": round(spent),
        "inputs_per_s": round(inputs / spent),
        "coverage_of_seeds": first,
        "new_coverage": last - first,
        "corpus": len(list(corpus.iterdir())),
        "crashes": max(len(found), int(told.returncode != 0)),
        "instrumented": " ".join(TARGETS[name].instrumented),
        "atheris": importlib.metadata.version("atheris"),
    }


def report(name: str, found: list[Path], text: str) -> None:
    """Keep what was found, and say what it is."""
    KEPT.mkdir(parents=True, exist_ok=True)
    print(f"{name}: FOUND\n{text[-3000:]}", file=sys.stderr)
    for path in found:
        kept = KEPT / f"{name}-{path.name}"
        kept.write_bytes(path.read_bytes())
        print(f"{kept}: {path.read_bytes().hex()}", file=sys.stderr)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        fuzz(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--runs", type=int, default=0, help="inputs of each target at most; 0: no limit")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--jobs", type=int, default=1, help="targets at the same time")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("atheris is not installed: .venv/bin/python -m pip install -c constraints.txt atheris")
    from table import write

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(asked.jobs) as pool:
        jobs = [pool.submit(run, name, asked.seconds, asked.runs, asked.seed, Path(folder)) for name in asked.targets]
        rows = []
        for job in jobs:
            rows.append({**job.result(), "arguments": " ".join(sys.argv[1:])})
            print(
                {
                    key: rows[-1][key]
                    for key in ("target", "inputs", "seconds", "inputs_per_s", "new_coverage", "crashes")
                }
            )
    total = {
        "target": "all",
        "inputs": sum(row["inputs"] for row in rows),
        "crashes": sum(row["crashes"] for row in rows),
    }
    write("fuzz", [*rows, total], min(asked.jobs, os.cpu_count() or 1))
    if total["crashes"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
