"""ONNX files whose tensors lie in another file beside them, `net.onnx.data` beside `net.onnx`.

A protobuf holds at most 2 GB, and is in memory as a whole, several times, wherever it is written or read. What lies
beside it is written tensor by tensor, and runtimes map it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from lilliput.disk import whole_file
from lilliput.errors import FormatError, reason

MOST = 64 << 20  # bytes of tensors that lie in the file itself; of more, all large ones lie beside it
SMALL = 1024  # bytes of a tensor that never lies beside: shapes, and what runtimes look at as they read the graph
_PLACE = 4096  # each tensor begins at a multiple of so many bytes, or runtimes could not map it


@dataclass(frozen=True)
class Held:
    """A tensor to be written: its size, and a function that writes its elements to a file."""

    size: int
    write: Callable[[IO[bytes]], object]


def data_of(built: Path) -> Path:
    """Where the tensors of a file lie that does not hold them.

    >>> data_of(Path("net.onnx")).name
    'net.onnx.data'
    """
    return built.with_name(f"{built.name}.data")


def keeps_beside(built: Path) -> bool:
    """Whether a file is there whose tensors lie beside it: a file of that name may be anybody's."""
    if not data_of(built).exists() or not built.is_file():
        return False
    try:
        model = onnx.load(built, load_external_data=False)
    except Exception:  # protobuf's own: it is no ONNX file
        return False
    return any(map(is_beside, model.graph.initializer))


def files_of(built: Path) -> list[Path]:
    """A built file, and the one that holds its tensors where there is one: what is to be moved together."""
    return [built, data_of(built)] if keeps_beside(built) else [built]


def bytes_of(built: Path) -> int:
    """What a built file weighs, with what lies beside it."""
    return sum(part.stat().st_size for part in files_of(built))


def beside(sizes: Iterable[int]) -> bool:
    """Whether tensors of so many bytes each lie beside the file.

    >>> beside([100, 200]), beside([1 << 20] * 100)
    (False, True)
    """
    return sum(sizes) > MOST


def write(path: Path, model: onnx.ModelProto, held: Mapping[str, Held]) -> None:
    """Write `model`, the initializers that `held` names into the file beside it; both whole or not at all.

    One that lay there before and is not needed any more is removed.
    """
    stale = not held and keeps_beside(path)
    if held:
        with whole_file(data_of(path)) as file:
            for tensor in model.graph.initializer:
                if tensor.name in held:
                    one = held[tensor.name]
                    file.write(bytes(-file.tell() % _PLACE))
                    _point(tensor, data_of(path).name, file.tell(), one.size)
                    one.write(file)
    with whole_file(path) as file:
        file.write(model.SerializeToString(deterministic=True))
    if stale:
        data_of(path).unlink()


def _point(tensor: TensorProto, name: str, offset: int, size: int) -> None:
    """Let a tensor say that its elements lie there."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", offset), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))


def read(path: Path) -> onnx.ModelProto:
    """The file without what lies beside it, which `array` gives.

    Raises FormatError where the file is no ONNX, or what lies beside it is missing or cut short.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own
        raise FormatError("is no sound ONNX file", where=str(path), why=reason(error)) from None
    check_whole(path, model)
    return model


def check_whole(path: Path, model: onnx.ModelProto) -> None:
    """Raise FormatError where the tensors that lie beside a file are not all there."""
    ends: dict[Path, int] = {}
    for tensor in model.graph.initializer:
        if is_beside(tensor):
            place, offset, size = _place(path, tensor)
            ends[place] = max(ends.get(place, 0), offset + size)
    for place, end in ends.items():
        there = place.stat().st_size if place.is_file() else None
        if there is None or there < end:
            raise FormatError(
                "the file with its tensors is " + ("missing" if there is None else "cut short"),
                where=str(path),
                why=f"{place.name} " + ("is not beside it" if there is None else f"has {there:,} of {end:,} bytes"),
                next=f"keep {path.name} and {place.name} together, under these names",
            )


def is_beside(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _place(path: Path, tensor: TensorProto) -> tuple[Path, int, int]:
    """The file, the first byte and the number of bytes of a tensor."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    try:
        name, offset, size = told["location"], int(told.get("offset", 0)), int(told.get("length", size_of(tensor)))
    except (KeyError, ValueError):
        raise FormatError("a tensor lies nowhere", where=f"{path}: {tensor.name}") from None
    if name in ("", "..", ".") or Path(name).name != name or offset < 0 or size != size_of(tensor):
        raise FormatError("a tensor lies where none can", where=f"{path}: {tensor.name}")
    return path.with_name(name), offset, size


def size_of(tensor: TensorProto) -> int:
    """Bytes of a tensor as files hold it: those of four bits lie two to a byte."""
    packed = tensor.data_type in (TensorProto.INT4, TensorProto.UINT4)
    each = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    count: int = prod(tensor.dims)
    return (count + 1) // 2 if packed else count * each


def array(tensor: TensorProto, path: Path | None) -> NDArray[Any]:
    """The elements of a tensor of the file at `path`; what lies beside it is mapped, and not in memory until used."""
    if path is None or not is_beside(tensor):
        return numpy_helper.to_array(tensor)
    place, offset, size = _place(path, tensor)
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if size == 0 or tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
        packed = TensorProto(data_type=tensor.data_type, dims=tensor.dims)
        packed.raw_data = np.fromfile(place, np.uint8, size, offset=offset).tobytes()
        return numpy_helper.to_array(packed)
    return np.memmap(place, kind, "r", offset, tuple(tensor.dims))


def packed_rows(rows: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Codes of 4 or 8 bits as ONNX Runtime's `MatMulNBits` has them: from 0 on, each row's in bytes, low bits first.

    >>> packed_rows(np.array([[-8, 7, 1]], np.int8), 4)
    array([[240,   9]], dtype=uint8)
    """
    middle = 1 << (bits - 1) if rows.dtype.kind == "i" else 0
    codes: NDArray[np.uint8] = np.add(rows, middle, dtype=np.int16).astype(np.uint8)
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    packed: NDArray[np.uint8] = even[:, 0::2] | even[:, 1::2] << np.uint8(4)
    return packed


def copied(source: Path, path: Path) -> Path:
    """The built file `source` under the name `path`, with what lies beside it."""
    if not keeps_beside(source):
        stale = keeps_beside(path)
        with whole_file(path) as file, source.open("rb") as given:
            shutil.copyfileobj(given, file)
        if stale:
            data_of(path).unlink()
        return path
    model = read(source)
    with whole_file(data_of(path)) as file, data_of(source).open("rb") as given:
        shutil.copyfileobj(given, file)
    for tensor in model.graph.initializer:
        if is_beside(tensor):
            _, offset, size = _place(source, tensor)
            _point(tensor, data_of(path).name, offset, size)
    with whole_file(path) as file:
        file.write(model.SerializeToString(deterministic=True))
    return path
