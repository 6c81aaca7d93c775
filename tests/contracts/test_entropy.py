"""Entropy coding: what comes out is what went in, in about as many bytes as its entropy says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lilliput.encodings import Fixed
from lilliput.entropy import CODERS, decode, dtype_called, encode, name_of
from lilliput.entropy.model import Model, fit, size
from lilliput.entropy.planes import field_of, join, pack, split, unpack
from lilliput.errors import FormatError
from lilliput.file.container import Part, Reader, write
from lilliput.file.index import CHUNK
from lilliput.file.parallel import read_all
from lilliput.model.carrier.arrays import to_array, to_tensor

ANSWER = {"kind": "answer"}
WIDE = ("uint16", "uint32", "uint64", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")


def entropy_bytes(symbols: NDArray) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def drawn(kind: str, count: int, bits: int) -> NDArray[np.uint8]:
    rng, top = np.random.default_rng(count + bits), 2**bits - 1
    middle = top / 2
    values = {
        "gaussian": rng.normal(middle, middle / 4, count),
        "laplace": rng.laplace(middle, middle / 20, count),
        "clipped": rng.normal(middle, middle, count),  # much of it at both ends
        "sparse": np.where(rng.random(count) < 0.9, round(middle), rng.normal(middle, middle / 3, count)),
        "uniform": rng.integers(0, top + 1, count),
        "few": rng.choice([0, top], count, p=[0.99, 0.01]),
        "constant": np.full(count, top),
        "repeating": np.arange(count) // 7,
    }[kind]
    return (np.clip(np.round(values), 0, top) if kind != "repeating" else values % (top + 1)).astype(np.uint8)


KINDS = ("gaussian", "laplace", "clipped", "sparse", "uniform", "few", "constant", "repeating")


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_codes_come_back(kind: str, bits: int, coder: str) -> None:
    for count in (1, 2, 7, 100, 5000):
        codes = drawn(kind, count, bits)
        signed = (codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
        for x in (codes, signed):
            data = encode(x, bits, coder)  # type: ignore[arg-type]
            again = decode(data, x.dtype.name, bits, count)
            assert again.dtype == x.dtype and np.array_equal(again, x)
            assert len(data) <= 1 + -(-count * field_of(bits) // 8)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("name", WIDE)
def test_every_bit_of_wide_elements_comes_back(name: str, coder: str) -> None:
    """Random bits: NaN payloads, infinities, subnormal numbers and -0 among them."""
    kind = dtype_called(name)
    assert kind is not None and name_of(kind) == name
    rng = np.random.default_rng(0)
    for count in (1, 3, 1000):
        for raw in (
            rng.integers(0, 256, count * kind.itemsize),
            np.zeros(count * kind.itemsize),
            np.arange(count * kind.itemsize) % 3,
        ):
            x = raw.astype(np.uint8).view(kind)
            assert decode(encode(x, 8 * kind.itemsize, coder), name, 8 * kind.itemsize, count).tobytes() == x.tobytes()  # type: ignore[arg-type]


@pytest.mark.parametrize("x", [float("nan"), -float("nan"), float("inf"), -0.0, 1e-45, -1e-45, 3.4e38])
def test_odd_floats_keep_their_bits(x: float, tmp_path: Path) -> None:
    payload = np.array([0x7FC12345, 0xFFF00001, 0x80000000], np.uint32).view(np.float32)
    held = np.append(np.float32(x), payload).astype(np.float32)
    write(tmp_path / "x", ANSWER, [Part.of("x", held)])
    assert Reader(tmp_path / "x").read("x").tobytes() == held.tobytes()


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "clipped", "sparse", "uniform", "few"])
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_dense_is_near_the_entropy_and_fast_near_dense(kind: str, bits: int) -> None:
    for count in (1000, 20_000, 300_000):
        codes = drawn(kind, count, bits)
        bound = min(entropy_bytes(codes), count * bits / 8)
        dense, fast = len(encode(codes, bits, "dense")), len(encode(codes, bits, "fast"))
        assert dense <= 1.01 * bound + 64
        assert dense <= fast


def test_frequencies_add_up_and_every_symbol_has_one() -> None:
    rng = np.random.default_rng(0)
    for i in range(300):
        counts = np.zeros(256, np.int64)
        used = rng.choice(256, rng.integers(2, 257), replace=False)
        counts[used] = 1 + np.floor(10 ** rng.uniform(0, 6 * rng.random(), len(used))).astype(np.int64)
        model = fit(counts)
        again, read = Model.from_bytes(model.to_bytes() + b"more")
        assert again == model and read == len(model.to_bytes())
        symbols, shares = model.frequencies()
        assert shares.sum() == 1 << 24 and shares.min() > 0 and set(used) <= set(symbols.tolist()), i
        own = -(counts[used] * np.log2(counts[used] / counts.sum())).sum() / 8
        assert own < size(model, counts) < 1.002 * own + 261, i  # no worse than a whole table


@pytest.mark.parametrize("bits", range(1, 9))
def test_fields_are_filled_from_the_lowest_bits(bits: int) -> None:
    width = field_of(bits)
    for count in (0, 1, 7, 64):
        symbols = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint8)
        data = pack(symbols, bits)
        stream = "".join(format(byte, "08b")[::-1] for byte in data)
        slow = [int(stream[i * width : (i + 1) * width][::-1], 2) for i in range(count)]
        assert slow == symbols.tolist() and len(data) == -(-count * width // 8)
        assert np.array_equal(unpack(data, bits, count), symbols)


def test_the_highest_plane_of_a_float_is_its_exponent() -> None:
    x = np.array([1.5, -2.25, 0.0, 3e38], np.float32)
    planes = split(x, 32)
    assert planes[0].tolist() == ((x.view(np.uint32) >> 23) & 0xFF).tolist()
    assert np.array_equal(join(planes, "float32", 32), x)


def test_codes_that_do_not_fit_their_bits_are_refused() -> None:
    with pytest.raises(FormatError, match="3 bits"):
        encode(np.array([8], np.uint8), 3, "dense")
    with pytest.raises(FormatError, match="1 bits"):
        encode(np.array([2], np.uint8).view(np.bool_), 1, "dense")


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float8_e5m2, torch.uint8], ids=str)
def test_tensors_become_arrays_and_tensors_again(dtype: torch.dtype) -> None:
    for x in (torch.randn(3, 4), torch.tensor(1.0), torch.zeros(0, 2), torch.randn(4, 3).t()):
        again = to_tensor(to_array(x.to(dtype)))
        assert again.dtype == dtype and again.shape == x.shape
        assert torch.equal(again.float(), x.to(dtype).float())


# the container


def test_parts_of_a_tensor_are_read_alone(tmp_path: Path) -> None:
    x = np.arange(2 * CHUNK + 5, dtype=np.int32)
    seen: list[tuple[int, int]] = []
    written = write(
        tmp_path / "x",
        {"kind": "answer", "a": [1]},
        [Part.of("x", x)],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (x.nbytes, x.nbytes) and len(seen) == 3
    reader = Reader(tmp_path / "x")
    assert (
        reader.header == {"kind": "answer", "a": [1]}
        and reader.digest == written.digest
        and len(reader.entries["x"].chunks) == 3
    )
    for first, last in ((0, 0), (5, 5), (3, 9), (CHUNK - 1, CHUNK + 1), (CHUNK, 2 * CHUNK), (7, None), (-3, None)):
        assert np.array_equal(reader.read("x", first, last), x[first:last])
    assert np.array_equal(np.concatenate(list(reader.chunks("x"))), x)
    reader.check_digest()


def test_the_digest_does_not_depend_on_the_coder(tmp_path: Path) -> None:
    parts = [Part.of("x", np.arange(3000) % 11), Part.of("codes", np.arange(64, dtype=np.uint8) % 5, 3)]
    digests = {write(tmp_path / coder, ANSWER, parts, coder).digest for coder in ("dense", "fast")}
    assert len(digests) == 1


def test_what_cannot_be_stored_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="complex64"):
        write(tmp_path / "x", ANSWER, [Part.of("x", np.zeros(2, np.complex64))])
    with pytest.raises(FormatError, match="more than readers will unfold"):
        write(
            tmp_path / "x", {}, [Part("x", "uint8", (1 << 30,), lambda first, last: np.zeros(last - first, np.uint8))]
        )
    assert list(tmp_path.iterdir()) == []


def test_several_processes_read_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {str(i): np.round(rng.normal(0, 9, (i, CHUNK // 3))).astype(np.int8) for i in (0, 1, 4)}
    write(tmp_path / "x", ANSWER, [Part.of(name, x) for name, x in arrays.items()])
    read = read_all(Reader(tmp_path / "x"), ["4", "0", "1"], workers=2)
    assert list(read) == ["4", "0", "1"]
    assert all(np.array_equal(read[name], x) and read[name].shape == x.shape for name, x in arrays.items())


def test_what_a_process_finds_damaged_is_told_with_its_place(tmp_path: Path) -> None:
    write(tmp_path / "x", ANSWER, [Part.of("x", np.arange(2 * CHUNK, dtype=np.int32))])
    reader = Reader(tmp_path / "x")
    data = bytearray((tmp_path / "x").read_bytes())
    data[reader.entries["x"].place(1) + 5] ^= 1
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(FormatError, match="x, chunk 1: the checksum does not match"):
        read_all(reader, ["x"], workers=2)


@pytest.mark.parametrize("spread", [20.0, 300.0])
def test_fixed_point_of_two_bytes_is_dense(spread: float) -> None:
    """Codes of 12 bits within 1.5 % of their entropy and back to the bit, though a file holds their bytes apart."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=200_000).astype(np.float32)) * spread * 2.0**-9
    codes = Fixed(2, 9).represent(x).tensors()["codes"].numpy()
    for coder in CODERS:
        coded = encode(codes, 16, coder)
        assert np.array_equal(decode(coded, "int16", 16, len(codes)), codes)
        assert coder == "fast" or len(coded) < 1.015 * entropy_bytes(codes)
