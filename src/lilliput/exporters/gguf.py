"""Language models as GGUF, the file that llama.cpp and what is built on it run.

Codes are written as they are, in the blocks of 32 that GGUF has for them; what no block holds exactly is refused. What
was written is read back by the `gguf` package, which is llama.cpp's own, and must be the module's numbers, each one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.disk import whole_file
from lilliput.encodings import BFloat16, Encoding, Float16, Int
from lilliput.errors import ExportError, not_installed
from lilliput.exporters.gguf_models import Decoder, vocabulary
from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.encoded_tensor import EncodedTensor

BLOCK = 32
_KINDS = {(4, True): "Q4_0", (4, False): "Q4_1", (5, True): "Q5_0", (5, False): "Q5_1", (8, True): "Q8_0"}
_HELD = "Int(4 or 5, group=32, scale=Float16()), beside symmetric=False with minimum=Float16(), or Int(8, …)"
_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Written:
    """One tensor as the file has it: bytes [rows, …] of one of GGUF's kinds, or floats."""

    kind: str
    data: np.ndarray


def write(path: Path, model: nn.Module, tokenizer: Any = None) -> None:
    """Write a decoder of transformers, its weights encoded or not, with its config and, if given, its `tokenizer`.

    Raises InputError where the package `gguf` is missing, or for a network or tokenizer that the format has no words
    for, and ExportError for an encoding that no block of GGUF holds exactly.
    """
    gguf = package()
    decoder = Decoder.of(model, gguf)
    held = {name: (_written(name, x, order), x, order) for name, x, order in _named(decoder, model)}
    with tempfile.TemporaryDirectory(prefix="lilliput-") as folder:
        made = Path(folder) / path.name
        writer = gguf.GGUFWriter(made, decoder.architecture)
        decoder.describe(writer)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(_file_type(gguf, [one for one, _, _ in held.values()]))
        for method, value in vocabulary(tokenizer, decoder.config):
            getattr(writer, method)(value)
        for name, factors in decoder.frequencies():
            writer.add_tensor(name, factors)
        for name, (one, _, _) in held.items():
            kind = getattr(gguf.GGMLQuantizationType, one.kind)
            writer.add_tensor(name, one.data, raw_dtype=None if one.kind in ("F32", "F16") else kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        check(gguf, made, {name: (x, order) for name, (_, x, order) in held.items()})
        with whole_file(path) as file, made.open("rb") as source:
            shutil.copyfileobj(source, file)


def package() -> ModuleType:
    """llama.cpp's own package for its files; raises InputError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise not_installed("gguf", where="GGUF") from None
    return gguf


def check(gguf: ModuleType, path: Path, held: dict[str, tuple[Tensor | EncodedTensor, Tensor | None]]) -> None:
    """Refuse a file in which another reader finds other numbers than the module has."""
    found = {one.name: one for one in gguf.GGUFReader(path).tensors}
    for name, (x, order) in held.items():
        ours = _decoded(x, order).float().numpy()
        theirs = gguf.quants.dequantize(found[name].data, found[name].tensor_type).reshape(ours.shape)
        if not np.array_equal(ours, theirs):
            raise ExportError(
                "holds other numbers than the module",
                where=f"{path.name}: {name}",
                why=f"the largest difference is {np.abs(ours - theirs).max():.3g}",
                next="please report the encoding of this tensor",
            )


def _named(decoder: Decoder, model: nn.Module) -> Iterator[tuple[str, Tensor | EncodedTensor, Tensor | None]]:
    """Every tensor of the network under GGUF's name, and the order of its rows there, where that is another."""
    for paths, x in tensors(model).items():
        name = decoder.name(paths)
        yield name, x, decoder.order(name, int(x.shape[0]))


def _decoded(x: Tensor | EncodedTensor, order: Tensor | None) -> Tensor:
    whole = (x() if isinstance(x, EncodedTensor) else x).detach()
    return whole if order is None else whole[order]


def _written(name: str, x: Tensor | EncodedTensor, order: Tensor | None) -> Written:
    if not isinstance(x, EncodedTensor):
        return _floats(_decoded(x, order))
    if isinstance(x.encoding, Float16 | BFloat16) and len(x.shape) > 1:
        codes = x.encoded().tensors()["codes"]
        return _floats(codes if order is None else codes[order])
    kind = _kind(x, x.encoding)
    if not kind:
        raise ExportError(
            f"is held as {x.encoding}, which no block of GGUF holds exactly",
            where=name,
            next=f"encode it as {_HELD}, or leave it in float",
        )
    return Written(kind, _blocks(name, kind, x, order))


def _floats(x: Tensor) -> Written:
    if x.dim() < 2 or x.dtype not in _FLOATS:  # what llama.cpp adds or scales by is in single precision
        x = x.float()
    kind = _FLOATS[x.dtype]
    x = x.contiguous()
    return Written(kind, x.view(torch.uint8).numpy() if kind == "BF16" else x.numpy())


def _kind(x: EncodedTensor, encoding: Encoding) -> str:
    """The kind whose blocks hold such codes: groups are whole blocks, along the inputs, and what the lowest code means
    is a minimum; empty where there is none.
    """
    if not isinstance(encoding, Int) or len(x.shape) != 2 or encoding.axis != 0 or encoding.per == "tensor":
        return ""
    around_zero = encoding.symmetric is not False
    whole = x.shape[1] % BLOCK == 0 and (encoding.group or BLOCK) % BLOCK == 0
    held = around_zero or encoding.minimum is not None
    return _KINDS.get((encoding.bits, around_zero), "") if whole and held else ""


def _blocks(name: str, kind: str, x: EncodedTensor, order: Tensor | None) -> np.ndarray:
    """Rows of blocks, as bytes: the scale, the minimum, the fifth bits, then the codes in halves of a byte."""
    encoding, parts = x.encoding, x.encoded()
    assert isinstance(encoding, Int)
    rows, width = x.shape
    codes = parts.tensors()["codes"]
    lowest = 0 if kind == "Q8_0" or not kind.endswith("_0") else 1 << (encoding.bits - 1)
    parameters = encoding.parameters(parts)
    heads = [_halves(name, parameters[part], rows, width) for part in ("scale", "minimum") if part in parameters]
    if order is not None:
        codes, heads = codes[order], [one[order] for one in heads]
    blocks = codes.reshape(rows, width // BLOCK, BLOCK).numpy().astype(np.int16) + lowest
    scales = [one.numpy().view(np.uint8).reshape(rows, width // BLOCK, 2) for one in heads]
    return np.concatenate([*scales, *_packed(blocks, encoding.bits)], axis=-1).reshape(rows, -1)


def _packed(blocks: np.ndarray, bits: int) -> Iterator[np.ndarray]:
    """Codes [rows, blocks, 32] as bytes: the first half of a block lies in the lower halves of its bytes."""
    if bits == 8:
        yield blocks.astype(np.int8).view(np.uint8)
        return
    if bits == 5:
        yield np.packbits((blocks >> 4).astype(np.uint8), axis=-1, bitorder="little")
    low = (blocks & 15).astype(np.uint8)
    yield low[..., : BLOCK // 2] | low[..., BLOCK // 2 :] << 4


def _halves(name: str, part: Tensor, rows: int, width: int) -> Tensor:
    """Scales or minima in half precision, one for each block [rows, width / 32]; refused where that is not exact."""
    whole = part.detach().float().reshape(rows, -1)
    half = whole.half()
    if not torch.equal(half.float(), whole):
        raise ExportError(
            "has scales that half precision does not hold",
            where=name,
            next="encode it with scale=Float16(), as in Int(4, group=32, scale=Float16())",
        )
    return half.repeat_interleave(width // BLOCK // half.shape[1], 1).contiguous()


def _file_type(gguf: ModuleType, written: list[Written]) -> int:
    """What most of the bytes are, as the format's list of such files has it."""
    most = Counter[str]()
    for one in written:
        most[one.kind] += one.data.nbytes
    kind = most.most_common(1)[0][0]
    named = "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"
    return int(getattr(gguf.LlamaFileType, named))
